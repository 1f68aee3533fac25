//! Dead letters: entries that failed alone, again and again, for a reason of their own. Each stays in
//! flight, with its unit, until an operator redrives or discards it.

use std::sync::LazyLock;

use jiff::Timestamp;
use redis::Script;

use super::DEAD_LETTER_CONSUMER;
use crate::issuance::ledger::Inserted;
use crate::issuance::settle::{Settled, Settlement, settle};
use crate::issuance::{Decision, InFlight, IssuanceId, Ledger, Outcome, Reason};
use crate::keys::{EpochKeys, GROUP};
use crate::partition::{Partition, Under, script};
use crate::{Failure, metrics};

static SET_ASIDE: LazyLock<Script> = LazyLock::new(|| script(include_str!("set_aside.lua")));
static REDRIVE: LazyLock<Script> = LazyLock::new(|| script(include_str!("redrive.lua")));

/// The owner of an entry that is sent through again: nobody with this name ever lives, so the next
/// worker claims from it.
const REDRIVE_CONSUMER: &str = "redrive";
/// What is kept of a reason.
const WHY_MAX: usize = 500;

/// An entry that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub id: IssuanceId,
    pub set_aside_at: Timestamp,
    pub attempts: u32,
    pub why: String,
    /// `None` if it is in flight no more: then its dead letter is a leftover.
    pub in_flight: Option<InFlight>,
}

/// Sets an entry aside. `false` if it is not in flight with this entry any more.
pub async fn set_aside(
    partition: &Partition,
    keys: &EpochKeys,
    entry: &str,
    id: IssuanceId,
    attempts: u32,
    why: &str,
) -> Result<bool, Failure> {
    let why: String = why.chars().take(WHY_MAX).collect();
    let reply = partition
        .call_under(keys, &SET_ASIDE, "set an entry aside", |keys, call| {
            call.key(keys.stream()).key(keys.in_flight()).key(keys.dead());
            call.arg(GROUP).arg(DEAD_LETTER_CONSUMER).arg(entry).arg(id.as_bytes().as_slice());
            call.arg(attempts).arg(&why);
        })
        .await?;
    match reply {
        Under::Epoch(mut reply) => {
            let done = reply.number()? == 1;
            metrics::DEAD_LETTERED.increment(done.into());
            Ok(done)
        }
        Under::AnotherEpoch => Ok(false),
    }
}

/// Sends a dead letter through again. `false` if there is none with this id.
pub async fn redrive(partition: &Partition, id: IssuanceId) -> Result<bool, Failure> {
    let mut reply = partition
        .call(&REDRIVE, "redrive a dead letter", |keys, call| {
            call.key(keys.stream()).key(keys.in_flight()).key(keys.dead());
            call.arg(GROUP).arg(REDRIVE_CONSUMER).arg(id.as_bytes().as_slice());
        })
        .await?;
    Ok(reply.number()? == 1)
}

/// One dead letter.
pub async fn get(partition: &Partition, id: IssuanceId) -> Result<Option<DeadLetter>, Failure> {
    let keys = partition.keys();
    let mut pipeline = redis::pipe();
    pipeline.cmd("HGET").arg(keys.dead()).arg(id.as_bytes().as_slice());
    pipeline.cmd("HGET").arg(keys.in_flight()).arg(id.as_bytes().as_slice());
    let (dead, in_flight): (Option<String>, Option<String>) = pipeline
        .query_async(&mut partition.connection())
        .await
        .map_err(Failure::redis("read the dead letter"))?;
    Ok(dead.and_then(|dead| parse(id, &dead, in_flight.as_deref())))
}

/// Some dead letters, from a cursor on (`0` at first), and the next cursor (`0` at the end).
pub async fn scan(
    partition: &Partition,
    cursor: u64,
    count: usize,
) -> Result<(Vec<DeadLetter>, u64), Failure> {
    let keys = partition.keys();
    let failed = || Failure::redis("read the dead letters");
    let mut connection = partition.connection();
    let (next, found): (u64, Vec<(Vec<u8>, String)>) = redis::cmd("HSCAN")
        .arg(keys.dead())
        .arg(cursor)
        .arg("COUNT")
        .arg(count)
        .query_async(&mut connection)
        .await
        .map_err(failed())?;
    if found.is_empty() {
        return Ok((Vec::new(), next));
    }
    let mut command = redis::cmd("HMGET");
    command.arg(keys.in_flight());
    for (id, _) in &found {
        command.arg(id.as_slice());
    }
    let in_flight: Vec<Option<String>> = command.query_async(&mut connection).await.map_err(failed())?;
    let letters = found
        .into_iter()
        .zip(in_flight)
        .filter_map(|((id, dead), in_flight)| {
            let id = <[u8; 16]>::try_from(id).ok().and_then(IssuanceId::from_bytes)?;
            parse(id, &dead, in_flight.as_deref())
        })
        .collect();
    Ok((letters, next))
}

/// The text that `set_aside.lua` keeps: entry, time, attempts, why.
fn parse(id: IssuanceId, dead: &str, in_flight: Option<&str>) -> Option<DeadLetter> {
    let mut fields = dead.splitn(4, ' ');
    fields.next()?;
    Some(DeadLetter {
        id,
        set_aside_at: Timestamp::from_millisecond(fields.next()?.parse().ok()?).ok()?,
        attempts: fields.next()?.parse().ok()?,
        why: fields.next()?.to_owned(),
        in_flight: in_flight.and_then(|value| value.parse().ok()),
    })
}

/// Rejects a dead letter for good, and gives its unit back; or adopts what was decided before. `None` if
/// there is none with this id.
pub async fn discard(
    partition: &Partition,
    ledger: &Ledger,
    id: IssuanceId,
) -> Result<Option<Decision>, Failure> {
    let keys = partition.keys();
    let Some(in_flight) = get(partition, id).await?.and_then(|letter| letter.in_flight) else {
        return Ok(None);
    };
    // A unit that another record holds is lost: giving it back would hand it out twice.
    let holder = match in_flight.serial {
        Some(serial) => ledger.holder_of(&in_flight.coupon, serial).await?,
        None => None,
    };
    let lost = match holder {
        Some(Ok(held)) => held.id != id,
        Some(Err(unreadable)) => unreadable.id != Some(id),
        None => false,
    };
    let rejected = Decision {
        id,
        coupon: in_flight.coupon,
        user: in_flight.user,
        outcome: Outcome::Rejected { reason: Reason::Discarded, serial: in_flight.serial, lost },
        accepted_at: in_flight.accepted_at,
        decided_at: crate::now_in_milliseconds(),
    };
    let decision = match ledger.insert(std::slice::from_ref(&rejected)).await?.pop() {
        Some(Inserted::Decided) => rejected,
        // Whoever decided it first has.
        Some(Inserted::Conflict) => match ledger.decisions(&[id]).await?.remove(&id) {
            Some(winner) => winner?,
            None => return Err(undecided("its decision is not visible yet".into())),
        },
        Some(Inserted::Refused(why)) => return Err(undecided(why)),
        None => return Err(undecided("the insert answered nothing".into())),
    };
    let settlement = Settlement { entry: in_flight.entry, decision: decision.clone(), holds: Vec::new() };
    match settle(partition, &keys, &[settlement]).await?.as_slice() {
        [Settled::Now | Settled::Before] => Ok(Some(decision)),
        [Settled::Unreadable] => Err(Failure::Damaged {
            what: "the in-flight value of this issuance",
            why: format!("issuance {id}, decided now"),
        }),
        _ => Err(Failure::Uncertified),
    }
}

fn undecided(why: String) -> Failure {
    Failure::MongoDb { operation: "discard a dead letter", source: why.into() }
}
