//! Coupon System: a server for first-come-first-served coupon campaigns. A hundred thousand people
//! press the button in the same second, and exactly as many coupons as exist are issued, each to one
//! person, with an answer for everyone.
//!
//! # How it works
//!
//! The **API** reserves a unit and queues the issuance in one Redis script
//! ([`issuance::reserve`]); a **worker** drains the queue into MongoDB, where one document, inserted
//! once, decides ([`worker::Decider`], [`issuance::Ledger`]), and tells Redis
//! ([`issuance::settle`]); clients poll ([`issuance::Lookup`]) or wait
//! ([`issuance::Feed`]).
//!
//! # What always holds
//!
//! - **Never oversold, never twice.** A unit is a serial number. Unique indexes of the ledger
//!   ([`issuance::ledger::indexes`]) hold each serial of a coupon once, and each user's nth unit
//!   once; no process starts without them.
//! - **Never lost.** An accepted request is in the in-flight hash and the stream until its decision
//!   is in the ledger; whoever asks is never told 404 after a 202.
//! - **Accounted for.** A unit is free, reserved or issued. It is given back only by the settling of
//!   a rejection that the ledger holds, guarded by the in-flight hash, so never twice.
//! - **Fails closed.** An ambiguous error is "unknown": it is answered 503, or tried again; it never
//!   gives a unit back. Redis's data is used only while a certificate says that it is the data that
//!   was left there ([`recovery`]).
//!
//! # Layout
//!
//! Imports run one way: `cli` → `dev`, `load` → `api`, `worker` → `audit`, `privacy`, `recovery`, `redemption`,
//! `issuance`, `queue`, `coupon`, `user` → `keys`. `api` and `worker` do not know each other.
//!
//! | module | what it is |
//! |---|---|
//! | [`config`] | every flag and variable, a struct a topic |
//! | [`access`] | who sends a request, what they may do, what operators did |
//! | [`coupon`], [`user`], [`service`] | the offer; who may have it; whether anything is accepted |
//! | [`issuance`] | reserve, decide, settle, look up, wait |
//! | [`queue`] | the stream |
//! | [`redemption`] | using a held coupon, undoing it, revoking it |
//! | [`limits`] | how often one user or address may ask |
//! | [`recovery`] | the certificate, loading coupons, rebuilding |
//! | [`audit`] | whether Redis and the ledger agree, unit by unit; mending what drifted |
//! | [`privacy`] | deleting users while the accounts still add up; what is not kept for ever |
//! | [`worker`] | the drain loop |
//! | [`http`], [`api`] | server and problems; routes, wire types, OpenAPI, pages |
//! | [`dev`] | redis-server and mongod as child processes; the whole system on one machine |
//! | [`load`] | requests as planned, what users were told, the judgement; the bench |
//! | [`cli`] | `couponctl` |
//! | [`partition`], [`redis_client`], [`mongo`], [`keys`], [`batch`] | Redis and MongoDB as everyone uses them |
//! | [`metrics`] | the table of metrics, and handles to count with |

pub mod access;
pub mod api;
pub mod audit;
mod backoff;
pub mod batch;
pub mod boot;
pub mod cli;
pub mod config;
pub mod coupon;
mod damage;
pub mod dev;
mod failure;
pub mod http;
pub mod issuance;
pub mod keys;
pub mod limits;
pub mod load;
pub mod metrics;
pub mod mongo;
pub mod partition;
pub mod privacy;
pub mod queue;
pub mod recovery;
pub mod redemption;
pub mod redis_client;
pub mod service;
pub mod shutdown;
pub mod telemetry;
mod text;
mod turn;
pub mod user;
pub mod worker;

pub use failure::Failure;

/// A request makes and drops hundreds of small things.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Twelve letters and digits that nobody can guess and nothing else has: 60 random bits.
pub(crate) fn random_id() -> String {
    id_of(rand::random())
}

/// Twelve letters and digits: the lower 60 of these bits.
pub(crate) fn id_of(bits: u64) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    (0..12).map(|place| char::from(LETTERS[(bits >> (place * 5)) as usize % LETTERS.len()])).collect()
}

/// Now, in whole milliseconds: as precise as MongoDB keeps it, so that what is written equals what is
/// read.
pub(crate) fn now_in_milliseconds() -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}
