//! Dead letters: entries that cannot be decided for a reason of their own. Each stays in
//! flight, with its unit, until an operator redrives or discards it.

mod discard;
mod search;

use std::time::Duration;

use jiff::Timestamp;

use super::DEAD_LETTER_CONSUMER;
use super::repair::RawFlight;
use crate::ids::IssuanceId;
use crate::issuance::InFlight;
use crate::redis::cmd;
use crate::redis::keys::{EpochKeys, GROUP};
use crate::redis::{EpochBound, LuaScript, Partition};
use crate::runtime::damage::damaged;
use crate::{Failure, metrics};
pub use discard::{discard, discard_all};
pub use search::{DeadLetterFilter, DeadLetterPlace, Found, search};

static SET_ASIDE: LuaScript = LuaScript::new(include_str!("set_aside.lua"));
static REDRIVE: LuaScript = LuaScript::new(include_str!("redrive.lua"));

/// The owner of an entry that is redriven: no consumer of this name has a heartbeat, so the next worker claims the
/// entry.
const REDRIVE_CONSUMER: &str = "redrive";
/// How long a redriven dead letter is remembered: a client that lost the answer repeats within minutes.
const REDRIVEN_REMEMBERED: Duration = Duration::from_secs(15 * 60);
/// Dead letters of one call of a script, or of one write to the ledger, at most: each must stay short.
pub const BATCH_MAX: usize = 100;
/// Characters of a reason that are kept.
pub const WHY_MAX: usize = 500;

/// An entry that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub id: IssuanceId,
    /// 1970 if the time cannot be read.
    pub set_aside_at: Timestamp,
    pub attempts: u32,
    pub why: String,
    /// `None` if it is no longer in flight: then its dead letter is a leftover. Also `None` if its in-flight value
    /// cannot be read: then `why` says so.
    pub in_flight: Option<InFlight>,
}

/// An entry to be set aside.
#[derive(Debug, Clone, Copy)]
pub struct SetAside<'a> {
    /// The id of its stream entry.
    pub entry: &'a str,
    pub id: IssuanceId,
    pub attempts: u32,
    pub why: &'a str,
}

/// Sets an entry aside. `false` if it is not in flight with this entry any more.
///
/// # Errors
///
/// If Redis fails, or its data is not certified.
pub async fn set_aside(
    partition: &Partition,
    keys: &EpochKeys,
    entry: &str,
    id: IssuanceId,
    attempts: u32,
    why: &str,
) -> Result<bool, Failure> {
    let done = set_all_aside(partition, keys, &[SetAside { entry, id, attempts, why }]).await?;
    Ok(done == [true])
}

/// Sets entries aside, in one script. `false` for those that are not in flight with their entry any more.
///
/// # Errors
///
/// If Redis fails, or its data is not certified.
pub async fn set_all_aside(
    partition: &Partition,
    keys: &EpochKeys,
    entries: &[SetAside<'_>],
) -> Result<Vec<bool>, Failure> {
    let reply = partition
        .call_in_epoch(keys, &SET_ASIDE, "set entries aside", |keys, call| {
            call.key(keys.stream()).key(keys.in_flight()).key(keys.dead());
            call.arg(GROUP).arg(DEAD_LETTER_CONSUMER);
            for SetAside { entry, id, attempts, why } in entries {
                let why: String = why.chars().take(WHY_MAX).collect();
                call.arg(*entry).arg(id.as_bytes().as_slice()).arg(*attempts).arg(why);
            }
        })
        .await?;
    let EpochBound::Epoch(mut reply) = reply else { return Ok(vec![false; entries.len()]) };
    let answers = reply.bytes()?;
    if answers.len() != entries.len() {
        return Err(reply.wrong());
    }
    let done: Vec<bool> = answers.into_iter().map(|answer| answer == b'1').collect();
    metrics::DEAD_LETTERED.increment(done.iter().filter(|done| **done).count() as u64);
    Ok(done)
}

/// What became of a dead letter that was to be redriven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redriven {
    Now,
    /// There is no dead letter with this id, perhaps no more.
    NoDeadLetter,
    /// Neither its in-flight value nor its stream entry can be read: it can only be discarded.
    Unreadable,
}

/// Redrives a dead letter, and remembers it for [`redriven`]. `false` if there is none with this id.
///
/// # Errors
///
/// [`Failure::Damaged`] if neither its in-flight value nor its stream entry can be read; or if Redis fails.
pub async fn redrive(partition: &Partition, id: IssuanceId) -> Result<bool, Failure> {
    match call_redrive(partition, &[id], true).await?.as_slice() {
        [Redriven::Unreadable] => Err(unreadable(id)),
        answers => Ok(answers == [Redriven::Now]),
    }
}

/// Redrives at most [`BATCH_MAX`] dead letters in one script, and remembers none: there may be more than Redis has
/// room for.
///
/// # Errors
///
/// If Redis fails, or its data is not certified. That leaves open which were redriven; it may be repeated.
pub async fn redrive_all(partition: &Partition, ids: &[IssuanceId]) -> Result<Vec<Redriven>, Failure> {
    call_redrive(partition, ids, false).await
}

/// The failure of a dead letter that is [`Redriven::Unreadable`].
pub(crate) fn unreadable(id: IssuanceId) -> Failure {
    Failure::Damaged {
        what: "what is in flight for this dead letter",
        why: format!("issuance {id}, and its stream entry cannot be read either: discard it"),
    }
}

async fn call_redrive(
    partition: &Partition,
    ids: &[IssuanceId],
    is_remembered: bool,
) -> Result<Vec<Redriven>, Failure> {
    let mut reply = partition
        .call(&REDRIVE, "redrive dead letters", |keys, call| {
            call.key(keys.stream()).key(keys.in_flight()).key(keys.dead());
            call.arg(GROUP).arg(REDRIVE_CONSUMER).arg(REDRIVEN_REMEMBERED.as_secs());
            for id in ids {
                call.arg(id.as_bytes().as_slice());
                if is_remembered {
                    call.key(keys.redriven(*id));
                }
            }
        })
        .await?;
    let answers = reply.bytes()?;
    if answers.len() != ids.len() {
        return Err(reply.wrong());
    }
    let answer = |letter| match letter {
        b'1' => Ok(Redriven::Now),
        b'0' => Ok(Redriven::NoDeadLetter),
        b'2' => Ok(Redriven::Unreadable),
        _ => Err(reply.wrong()),
    };
    answers.into_iter().map(answer).collect()
}

/// The dead letter with this id that was redriven within the last 15 minutes, as it was set aside.
///
/// # Errors
///
/// If Redis fails.
pub async fn redriven(partition: &Partition, id: IssuanceId) -> Result<Option<DeadLetter>, Failure> {
    let (dead, in_flight): (Option<Vec<u8>>, Option<Vec<u8>>) = partition
        .query(
            "read what was redriven",
            cmd("HMGET").arg(partition.keys().redriven(id)).arg(&["dead", "in_flight"]),
        )
        .await?;
    Ok(dead.map(|dead| read(id, &dead, in_flight.as_deref())))
}

/// One dead letter; `None` if there is none with this id.
///
/// # Errors
///
/// If Redis fails.
pub async fn get(partition: &Partition, id: IssuanceId) -> Result<Option<DeadLetter>, Failure> {
    let RawFlight { value, dead } = RawFlight::read(partition, &partition.keys(), id).await?;
    Ok(dead.map(|dead| read(id, &dead, value.as_deref())))
}

/// Fields and values, as Redis has them.
type RawPairs = Vec<(Vec<u8>, Vec<u8>)>;

/// About `count` dead letters after a cursor (`0` at first), and the next cursor (`0` at the end).
///
/// # Errors
///
/// If Redis fails.
pub async fn scan(
    partition: &Partition,
    cursor: u64,
    count: usize,
) -> Result<(Vec<DeadLetter>, u64), Failure> {
    let keys = partition.keys();
    let mut scan = cmd("HSCAN");
    scan.arg(keys.dead()).arg(cursor).arg("COUNT").arg(count);
    let (next, found): (u64, RawPairs) = partition.query("read the dead letters", &scan).await?;
    if found.is_empty() {
        return Ok((Vec::new(), next));
    }
    let mut command = cmd("HMGET");
    command.arg(keys.in_flight());
    for (id, _) in &found {
        command.arg(id.as_slice());
    }
    let in_flight: Vec<Option<Vec<u8>>> = partition.query("read the dead letters", &command).await?;
    let letters = found
        .into_iter()
        .zip(in_flight)
        .filter_map(|((id, dead), in_flight)| {
            let issuance = IssuanceId::from_bytes(&id);
            if issuance.is_none() {
                let id = id.escape_ascii();
                damaged!(id; %id, "a dead letter is left out: it is kept under an id that is none");
            }
            Some(read(issuance?, &dead, in_flight.as_deref()))
        })
        .collect();
    Ok((letters, next))
}

/// Reads a dead letter. If a part cannot be read, its reason says so: a damaged one must not hide the others, nor be
/// out of reach itself.
fn read(id: IssuanceId, dead: &[u8], in_flight: Option<&[u8]>) -> DeadLetter {
    let text = String::from_utf8_lossy(dead);
    let (set_aside_at, attempts, mut why) = parse(&text).unwrap_or_else(|| {
        (
            Timestamp::UNIX_EPOCH,
            0,
            format!("why it was set aside cannot be read ({text:?}); redrive or discard it"),
        )
    });
    let in_flight = in_flight.map(InFlight::parse);
    if in_flight == Some(None) {
        why.push_str("; and what is in flight for it cannot be read: redrive it, or discard it");
    }
    DeadLetter { id, set_aside_at, attempts, why, in_flight: in_flight.flatten() }
}

/// The text that `set_aside.lua` keeps: entry, time, attempts, why.
fn parse(dead: &str) -> Option<(Timestamp, u32, String)> {
    let mut fields = dead.splitn(4, ' ');
    fields.next()?;
    let set_aside_at = Timestamp::from_millisecond(fields.next()?.parse().ok()?).ok()?;
    Some((set_aside_at, fields.next()?.parse().ok()?, fields.next()?.to_owned()))
}
