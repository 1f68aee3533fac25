//! Takes stream entries of many apart, so that each of their issuances has an entry of its own.

use std::collections::HashSet;

use super::Entry;
use crate::Failure;
use crate::issuance::lookup::read_in_flight;
use crate::redis::keys::{EpochKeys, GROUP};
use crate::redis::{EpochBound, LuaScript, Partition};

static SPLIT: LuaScript = LuaScript::new(include_str!("split.lua"));

/// Entries that one script takes apart: it must stay short.
const SPLIT_MAX: usize = 8;
/// In-flight values in one read.
const READ_MAX: usize = 500;

/// Takes stream entries of many apart: each of their issuances gets an entry of its own, at the end of the stream.
/// What the entries hold that is not in flight under them is dropped. Returns how many issuances got one.
///
/// # Errors
///
/// If Redis fails; it may be repeated.
pub async fn split(
    partition: &Partition,
    keys: &EpochKeys,
    entries: impl IntoIterator<Item = &str>,
) -> Result<u64, Failure> {
    let entries: Vec<&str> = entries.into_iter().collect();
    let mut count = 0;
    for entries in entries.chunks(SPLIT_MAX) {
        let called = partition.call_in_epoch(keys, &SPLIT, "take entries apart", |keys, call| {
            call.key(keys.stream()).key(keys.in_flight()).arg(GROUP).arg(entries);
        });
        // The recovery has dealt with those of another epoch.
        let EpochBound::Epoch(mut reply) = called.await? else { return Ok(count) };
        count += reply.number()?;
    }
    Ok(count)
}

/// Takes apart the stream entries of many that hold these. Returns each as the entry of one that it has now; `None` for
/// what is in flight no more, cannot be read, or is as it was.
///
/// # Errors
///
/// If Redis fails; it may be repeated.
pub(crate) async fn taken_apart(
    partition: &Partition,
    keys: &EpochKeys,
    entries: &[&Entry],
) -> Result<Vec<Option<Entry>>, Failure> {
    let names: HashSet<&str> = entries.iter().map(|entry| entry.entry.as_str()).collect();
    split(partition, keys, names).await?;
    let mut ones = Vec::with_capacity(entries.len());
    for entries in entries.chunks(READ_MAX) {
        let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        let found = read_in_flight(partition, &ids).await?;
        ones.extend(entries.iter().zip(found).map(|(before, found)| {
            let (held, _) = found.ok()??;
            let is_new = held.entry != before.entry;
            is_new.then(|| Entry { entry: held.entry, of: 1, unit: held.unit, ..(*before).clone() })
        }));
    }
    Ok(ones)
}
