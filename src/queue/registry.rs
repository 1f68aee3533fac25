//! Which workers live: a heartbeat registry, because Redis knows consumers only by their reads. A worker with a
//! fresh heartbeat keeps its entries; other workers claim those of one without.

use std::time::Duration;

use jiff::Timestamp;

use crate::Failure;
use crate::redis::cmd;
use crate::redis::keys::{EpochKeys, GROUP};
use crate::redis::{EpochBound, LuaScript, Partition};

static HEARTBEAT: LuaScript = LuaScript::new(include_str!("heartbeat.lua"));
static LEAVE: LuaScript = LuaScript::new(include_str!("leave.lua"));

/// How often a worker sends a heartbeat.
pub(crate) const BEAT_EVERY: Duration = Duration::from_secs(1);
/// A heartbeat that is older than this is stale.
pub(crate) const STALE_AFTER: Duration = Duration::from_secs(5);

/// The last heartbeat of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    pub consumer: String,
    pub at: Timestamp,
    /// What the worker says of itself: `key=value`, with spaces between.
    pub says: String,
}

/// Sends a heartbeat of `consumer`, under the epoch of `keys`. `false` if another epoch is open.
///
/// # Errors
///
/// If Redis fails, or its data is not certified.
pub async fn beat(
    partition: &Partition,
    keys: &EpochKeys,
    consumer: &str,
    says: &str,
) -> Result<bool, Failure> {
    let reply = partition
        .call_in_epoch(keys, &HEARTBEAT, "send a heartbeat", |keys, call| {
            call.key(keys.workers()).arg(consumer).arg(says);
        })
        .await?;
    Ok(matches!(reply, EpochBound::Epoch(_)))
}

/// Ends the heartbeat of `consumer`. Returns how many entries other workers will have to claim from it.
///
/// # Errors
///
/// If Redis fails, or its data is not certified.
pub async fn leave(partition: &Partition, consumer: &str) -> Result<u64, Failure> {
    let mut reply = partition
        .call(&LEAVE, "end the heartbeat", |keys, call| {
            call.key(keys.stream()).key(keys.workers()).arg(GROUP).arg(consumer);
        })
        .await?;
    reply.number()
}

/// Every worker with a heartbeat, stale or not. A heartbeat that cannot be read is left out.
///
/// # Errors
///
/// If Redis fails.
pub async fn beats(partition: &Partition) -> Result<Vec<Heartbeat>, Failure> {
    let found: Vec<(Vec<u8>, Vec<u8>)> =
        partition.query("read the heartbeats", cmd("HGETALL").arg(partition.keys().workers())).await?;
    Ok(found
        .into_iter()
        .filter_map(|(consumer, beat)| {
            let (consumer, beat) = (String::from_utf8(consumer).ok()?, String::from_utf8(beat).ok()?);
            let (ms, says) = beat.split_once(' ')?;
            let at = Timestamp::from_millisecond(ms.parse().ok()?).ok()?;
            Some(Heartbeat { consumer, at, says: says.to_owned() })
        })
        .collect())
}
