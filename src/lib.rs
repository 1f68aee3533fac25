//! Coupon System: a server for first-come-first-served coupon campaigns. A hundred thousand people
//! press the button in the same second, and exactly as many coupons as exist are issued, each to one
//! person, with an answer for everyone.
//!
//! # How it works
//!
//! The **API** reserves a unit and queues the issuance in one Redis script
//! ([`issuance::reserve`]); a **worker** drains the queue into MongoDB, where one document, inserted
//! once, decides ([`worker::Decider`], [`issuance::Ledger`]), and tells Redis
//! ([`issuance::settle`]); clients poll ([`issuance::Lookup`]) or wait ([`issuance::feed`]).
//!
//! # What always holds
//!
//! - **Never oversold, never twice.** A unit is a serial number. Unique indexes of the ledger
//!   ([`issuance::ledger::indexes`]) hold each serial of a coupon once, and each user's nth unit
//!   once; no process starts without them. A coupon may lie in several shares ([`ids::Shares`]): a unit then
//!   belongs to one share at a time, and a move between two is an issuance ([`issuance::shares`]) under the same
//!   indexes.
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
//! Imports run one way, down this table, and a test holds it (`tests/it/layers.rs`). `api` and `worker` do not
//! know each other.
//!
//! | modules, from the top | what they are |
//! |---|---|
//! | [`cli`] | `couponctl` |
//! | `bench`, `rush`, [`dev`] | measuring; a simulated campaign and its judgement; the whole system on one machine |
//! | [`api`], [`worker`] | routes, wire types, OpenAPI, pages; the drain loop |
//! | [`process`] | what every process has: checked connections, probes, gauges; when Redis rewrites its append-only file |
//! | [`config`] | every flag and variable, a struct a topic |
//! | [`audit`] | whether Redis and the ledger agree, unit by unit; repairing what drifted |
//! | [`privacy`] | deleting users while the accounts still add up; what is not kept for ever |
//! | [`recovery`] | the certificate, loading coupons, rebuilding |
//! | [`redemption`] | using a held coupon, undoing it, revoking it |
//! | [`queue`] | the stream |
//! | [`issuance`] | reserve, decide, settle, look up, wait |
//! | [`coupon`], [`service`] | the offer; whether anything is accepted |
//! | [`access`], [`user`], [`limits`] | who sends a request and what they may do; who may have coupons; how often one may ask |
//! | [`http`] | the server, problems, reading requests strictly |
//! | [`redis`], [`mongo`] | the two databases as everything uses them |
//! | [`runtime`], [`metrics`], [`failure`], [`ids`] | batching, backoff, shutdown, logs; the table of metrics; errors; parsed names |

#![allow(rustdoc::private_intra_doc_links)] // The library is the programs' own: who reads about it has the source.

pub mod access;
pub mod api;
pub mod audit;
mod bench;
pub mod cli;
pub mod config;
pub mod coupon;
pub mod dev;
pub mod failure;
pub mod http;
pub mod ids;
pub mod issuance;
pub mod limits;
pub mod metrics;
pub mod mongo;
pub mod privacy;
pub mod process;
pub mod queue;
pub mod recovery;
pub mod redemption;
pub mod redis;
pub mod runtime;
mod rush;
pub mod service;
mod text;
pub mod user;
pub mod worker;

pub use failure::Failure;

/// A request makes and drops hundreds of small things.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
