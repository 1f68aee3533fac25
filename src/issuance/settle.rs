//! Telling Redis the outcome: acknowledge, give back if rejected, publish. Guarded in the script, so
//! it may be repeated, and raced, without harm.

use std::sync::LazyLock;
use std::time::Instant;

use redis::Script;

use super::feed::message;
use super::ledger::Held;
use super::numbered::Numbered;
use super::{Decision, Outcome, metered};
use crate::Failure;
use crate::keys::{EpochKeys, GROUP, outcome_channel};
use crate::partition::{Partition, Under, script};

static SETTLE: LazyLock<Script> = LazyLock::new(|| script(include_str!("settle.lua")));

/// What became of one decided entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    Now,
    /// The in-flight hash does not name this entry: it was settled before, or belongs to another.
    Before,
    /// Another epoch is open; a recovery has dealt with it.
    AnotherEpoch,
}

/// A decided entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// The id of its stream entry.
    pub entry: String,
    pub decision: Decision,
    /// Of a user who was rejected as already issued: what they hold by the ledger.
    pub holds: Vec<Held>,
}

/// Settles a batch of decided entries, read under the epoch of `keys`.
/// At most [`BATCH_MAX`] at once.
pub async fn settle(
    partition: &Partition,
    keys: &EpochKeys,
    decided: &[Settlement],
) -> Result<Vec<Settled>, Failure> {
    let started = Instant::now();
    let settled = call(partition, keys, decided).await;
    metered::settled(started, decided, &settled);
    settled
}

async fn call(
    partition: &Partition,
    keys: &EpochKeys,
    decided: &[Settlement],
) -> Result<Vec<Settled>, Failure> {
    let coupons = Numbered::new(decided.iter().map(|settlement| &settlement.decision.coupon));
    let reply = partition
        .call_under(keys, &SETTLE, "settle", |keys, call| {
            coupons.add_keys(keys, call);
            call.arg(GROUP).arg(outcome_channel(keys.partition()));
            for Settlement { entry, decision, holds } in decided {
                let (letter, serial, given_back) = match decision.outcome {
                    Outcome::Issued { serial, .. } => ("I", Some(serial), false),
                    Outcome::Rejected { serial, lost, .. } => ("R", serial, !lost),
                };
                call.arg(coupons.number(&decision.coupon))
                    .arg(entry)
                    .arg(decision.id.as_bytes().as_slice())
                    .arg(letter)
                    .arg(serial.map(|serial| serial.to_string()).unwrap_or_default())
                    .arg(u8::from(given_back))
                    .arg(u8::from(decision.id.is_keyed()))
                    .arg(holds.iter().flat_map(held).collect::<Vec<u8>>())
                    .arg(message::write(decision));
            }
        })
        .await?;
    let Under::Epoch(mut reply) = reply else { return Ok(vec![Settled::AnotherEpoch; decided.len()]) };
    decided
        .iter()
        .map(|_| match reply.text()?.as_str() {
            "1" => Ok(Settled::Now),
            "0" => Ok(Settled::Before),
            _ => Err(reply.wrong()),
        })
        .collect()
}

/// An id and a serial, as the script reads them.
fn held(held: &Held) -> Vec<u8> {
    [held.id.as_bytes().as_slice(), format!("{:010}", held.serial).as_bytes()].concat()
}

/// The most entries of one call: a script must stay short.
pub const BATCH_MAX: usize = 500;
