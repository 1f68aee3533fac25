//! Claims the pending entries of dead workers, and appends entries anew that were lost from the stream.

use super::entry::RawFields;
use super::registry::STALE_AFTER;
use super::{DEAD_LETTER_CONSUMER, Delivered};
use crate::ids::IssuanceId;
use crate::redis::keys::{EpochKeys, GROUP};
use crate::redis::{EpochBound, LuaScript, Partition, Reply};
use crate::{Failure, metrics};

static CLAIM: LuaScript = LuaScript::new(include_str!("claim.lua"));
static RESTORE: LuaScript = LuaScript::new(include_str!("restore.lua"));

/// Claims at most `count` entries from consumers without a fresh heartbeat.
///
/// # Errors
///
/// If Redis fails, or its data is not certified.
pub async fn claim(
    partition: &Partition,
    keys: &EpochKeys,
    consumer: &str,
    count: usize,
) -> Result<Delivered, Failure> {
    let reply = partition
        .call_in_epoch(keys, &CLAIM, "claim entries", |keys, call| {
            call.key(keys.stream()).key(keys.workers());
            call.arg(GROUP).arg(consumer).arg(DEAD_LETTER_CONSUMER);
            call.arg(u64::try_from(STALE_AFTER.as_millis()).unwrap_or(u64::MAX)).arg(count);
        })
        .await?;
    let EpochBound::Epoch(mut reply) = reply else { return Ok(Delivered::default()) };
    reply.number()?;
    let mut claimed = reply.list()?;
    let mut delivered = Delivered::default();
    while claimed.len() > 0 {
        let mut entry = claimed.list()?;
        let id = entry.text()?;
        delivered.add(&id, &fields(&mut entry.list()?)?);
    }
    metrics::CLAIMED.increment(delivered.count() as u64);
    Ok(delivered)
}

fn fields(pairs: &mut Reply) -> Result<RawFields, Failure> {
    let mut fields = RawFields::new();
    while pairs.len() > 1 {
        fields.push((pairs.bytes()?, pairs.bytes()?));
    }
    Ok(fields)
}

/// Searches a part of the in-flight hash, after `cursor`, for issuances whose entry no worker will ever get, and
/// appends their entries anew. It reads about `count` issuances, in flight or in the entries that they name. Returns
/// those that were restored, and the next cursor; `None` at the end.
///
/// # Errors
///
/// If Redis fails, or its data is not certified.
pub async fn restore(
    partition: &Partition,
    cursor: Option<String>,
    count: usize,
) -> Result<(Vec<IssuanceId>, Option<String>), Failure> {
    let from = cursor.as_deref().unwrap_or("0");
    let mut reply = partition
        .call(&RESTORE, "look for lost entries", |keys, call| {
            call.key(keys.stream()).key(keys.in_flight()).arg(GROUP).arg(from).arg(count);
        })
        .await?;
    let next = reply.text()?;
    let mut restored = Vec::new();
    while reply.len() > 0 {
        // One under an id that is none has its entry too, and that cannot be read: it is named as such.
        restored.extend(IssuanceId::from_bytes(reply.bytes()?));
    }
    metrics::RESTORED.increment(restored.len() as u64);
    Ok((restored, Some(next).filter(|next| next != "0")))
}
