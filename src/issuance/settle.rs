//! Tells Redis outcomes: acknowledges them, gives units of rejected ones back, and publishes them. The script guards
//! this, so that it may be repeated, and raced, without harm.

use std::time::Instant;

use super::coupon_index::CouponIndex;
use super::feed::message;
use super::ledger::HeldUnit;
use super::{Decision, Outcome, outcome_metrics};
use crate::Failure;
use crate::ids::Unit;
use crate::redis::keys::{EpochKeys, GROUP};
use crate::redis::{EpochBound, LuaScript, Partition};

static SETTLE: LuaScript = LuaScript::new(include_str!("settle.lua"));

/// The letters of verdicts and of the script's answers. (`settle.lua` has them too.)
const ISSUED: char = 'I';
const REJECTED: char = 'R';
const MOVED: char = 'M';
const SETTLED: u8 = b'1';
const GUARDED_OFF: u8 = b'0';
const UNREADABLE: u8 = b'2';

/// The answer to one decided entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    Now,
    /// The in-flight hash does not name this entry: the issuance was settled before, or has another entry.
    GuardedOff,
    /// Another epoch is open, and its recovery has dealt with the entry.
    AnotherEpoch,
    /// Its in-flight value cannot be read: nothing was done.
    Unreadable,
}

/// A decided entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// The id of its stream entry.
    pub entry: String,
    /// The number of issuances that the entry holds; 0 if unknown.
    pub of: usize,
    pub decision: Decision,
    /// What the user holds by the ledger, if the issuance was rejected as already issued.
    pub holds: Vec<HeldUnit>,
}

/// Settles at most [`BATCH_MAX`] decided issuances that were read under the epoch of `keys`. If a stream entry holds
/// others too, each of them gets an entry of its own.
///
/// # Errors
///
/// If Redis fails, or its data is not certified. That leaves open what was settled.
pub async fn settle(
    partition: &Partition,
    keys: &EpochKeys,
    decided: &[Settlement],
) -> Result<Vec<Settled>, Failure> {
    let started = Instant::now();
    let settled = call(partition, keys, decided).await;
    outcome_metrics::settled(started, decided, &settled);
    settled
}

async fn call(
    partition: &Partition,
    keys: &EpochKeys,
    decided: &[Settlement],
) -> Result<Vec<Settled>, Failure> {
    let coupons = CouponIndex::new(decided.iter().map(|settlement| &settlement.decision.coupon));
    let reply = partition
        .call_in_epoch(keys, &SETTLE, "settle", |keys, call| {
            coupons.add_queue_and_coupons(keys, call);
            call.arg(GROUP).arg(partition.announcing());
            for Settlement { entry, of, decision, holds } in decided {
                call.arg(coupons.number(&decision.coupon))
                    .arg(entry)
                    .arg(decision.id.as_bytes().as_slice())
                    .arg(verdict(decision, holds))
                    .arg(message::write(decision))
                    .arg(*of);
            }
        })
        .await?;
    let EpochBound::Epoch(mut reply) = reply else { return Ok(vec![Settled::AnotherEpoch; decided.len()]) };
    let answers = reply.bytes()?;
    if answers.len() != decided.len() {
        return Err(reply.wrong());
    }
    answers
        .into_iter()
        .map(|answer| match answer {
            SETTLED => Ok(Settled::Now),
            GUARDED_OFF => Ok(Settled::GuardedOff),
            UNREADABLE => Ok(Settled::Unreadable),
            _ => Err(reply.wrong()),
        })
        .collect()
}

/// A verdict, as `settle.lua` reads it.
fn verdict(decision: &Decision, holds: &[HeldUnit]) -> Vec<u8> {
    match decision.outcome {
        Outcome::Issued { unit, .. } => format!("{ISSUED}{unit}").into_bytes(),
        Outcome::Moved { unit, .. } => format!("{MOVED}{unit}").into_bytes(),
        Outcome::Rejected { unit, lost, .. } => {
            let (given_back, keyed) = (u8::from(!lost), u8::from(decision.id.is_keyed()));
            let mut verdict =
                format!("{REJECTED}{given_back}{keyed}{:010}", unit.map_or(0, Unit::number)).into_bytes();
            for held in holds {
                verdict.extend_from_slice(held.id.as_bytes());
                verdict.extend_from_slice(format!("{:010}", held.unit.number()).as_bytes());
            }
            verdict
        }
    }
}

/// Entries of one call at most: a script must stay short.
pub(crate) const BATCH_MAX: usize = 500;
