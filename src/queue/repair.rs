//! Repairs an in-flight value that cannot be read. The stream entry of an issuance holds the same, so damage to one
//! of the two loses nothing.

use super::entry;
use crate::Failure;
use crate::ids::IssuanceId;
use crate::issuance::{InFlight, Ledger};
use crate::redis::keys::EpochKeys;
use crate::redis::{EpochBound, LuaScript, Partition};
use crate::redis::{cmd, pipe};

static REPAIR: LuaScript = LuaScript::new(include_str!("repair.lua"));

/// What Redis holds of an issuance in flight, readable or not.
#[derive(Debug, Clone)]
pub(super) struct RawFlight {
    /// `None` if it is not in flight.
    pub value: Option<Vec<u8>>,
    /// The text that `set_aside.lua` keeps of a dead letter.
    pub dead: Option<Vec<u8>>,
}

impl RawFlight {
    pub(super) async fn read(
        partition: &Partition,
        keys: &EpochKeys,
        id: IssuanceId,
    ) -> Result<Self, Failure> {
        let mut pipeline = pipe();
        pipeline.cmd("HGET").arg(keys.in_flight()).arg(id.as_bytes().as_slice());
        pipeline.cmd("HGET").arg(keys.dead()).arg(id.as_bytes().as_slice());
        let (value, dead) = partition.query_all("read what is in flight", &pipeline).await?;
        Ok(RawFlight { value, dead })
    }

    pub(super) fn in_flight(&self) -> Option<InFlight> {
        InFlight::parse(self.value.as_deref()?)
    }

    /// The stream entry of an issuance whose in-flight value cannot be read, by its dead letter or else by the value.
    pub(super) fn entry(&self) -> Option<&str> {
        [&self.dead, &self.value].into_iter().flatten().find_map(|kept| InFlight::entry_named_by(kept))
    }
}

/// What the stream entry holds of an issuance. `None` if the stream has no such entry, or the entry cannot be read or
/// belongs to another issuance.
pub(super) async fn in_stream(
    partition: &Partition,
    keys: &EpochKeys,
    id: IssuanceId,
    entry: &str,
) -> Result<Option<InFlight>, Failure> {
    let found: Vec<entry::RawEntry> = partition
        .query("read a stream entry", cmd("XRANGE").arg(keys.stream()).arg(entry).arg(entry))
        .await?;
    let mut read =
        found.into_iter().flat_map(|(entry, fields)| entry::in_flight(&entry, &fields.unwrap_or_default()));
    Ok(read.find_map(|one| one.ok().filter(|(of, _)| *of == id).map(|(_, held)| held)))
}

/// Replaces an in-flight value that cannot be read by `held`, without a unit if another issuance has the unit in the
/// ledger: settling would give it back. Returns the value in flight now; `None` if it changed in the meantime.
pub(super) async fn replace(
    partition: &Partition,
    keys: &EpochKeys,
    ledger: &Ledger,
    id: IssuanceId,
    raw: &RawFlight,
    mut held: InFlight,
) -> Result<Option<InFlight>, Failure> {
    if let Some(unit) = held.unit
        && ledger.is_lost(&held.coupon, unit, id).await?
    {
        held.unit = None;
    }
    let reply = partition
        .call_in_epoch(keys, &REPAIR, "repair an in-flight value", |keys, call| {
            call.key(keys.in_flight()).key(keys.dead());
            call.arg(id.as_bytes().as_slice()).arg(raw.value.as_deref().unwrap_or_default());
            call.arg(held.to_string());
        })
        .await?;
    let EpochBound::Epoch(mut reply) = reply else { return Ok(None) };
    let replaced = reply.number()? == 1;
    if replaced {
        let value = String::from_utf8_lossy(raw.value.as_deref().unwrap_or_default()).into_owned();
        tracing::error!(issuance = %id, value, now = %held, "an in-flight value could not be read; it was replaced");
    }
    Ok(replaced.then_some(held))
}

/// Repairs the in-flight value of an entry that was delivered. `false` if it names another entry, or is gone.
///
/// # Errors
///
/// If Redis or MongoDB fails.
pub async fn repair(
    partition: &Partition,
    keys: &EpochKeys,
    ledger: &Ledger,
    entry: &entry::Entry,
) -> Result<bool, Failure> {
    let raw = RawFlight::read(partition, keys, entry.id).await?;
    let named = raw.value.as_deref().and_then(InFlight::entry_named_by);
    if raw.value.is_none() || named.is_some_and(|named| named != entry.entry) {
        return Ok(false);
    }
    if raw.in_flight().is_some() {
        return Ok(true);
    }
    Ok(replace(partition, keys, ledger, entry.id, &raw, entry.in_flight()).await?.is_some())
}
