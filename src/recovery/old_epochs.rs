//! Deleting the keys of old epochs, and finding which there are.

use crate::Failure;
use crate::redis::Epoch;
use crate::redis::cmd;
use crate::redis::keys::EpochKeys;
use crate::redis::{Call, LuaScript, Partition, keys};

static FORGET: LuaScript = LuaScript::new(include_str!("forget.lua"));

/// Keys in one page of the walk, about.
const PAGE: usize = 1_000;

/// Whether a script wrote that only the current recoverer may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuardedWrite {
    Done,
    /// Another process recovers by now: nothing more was written.
    Superseded,
}

/// Deletes the streams and counters of epochs, as the recoverer of `mine`: without them none of these can be
/// certified, however far their other keys are deleted.
pub(super) async fn make_uncertifiable(
    partition: &Partition,
    mine: &EpochKeys,
    epochs: &[EpochKeys],
) -> Result<GuardedWrite, Failure> {
    let keys: Vec<_> = epochs.iter().flat_map(|epoch| [epoch.stream(), epoch.counters()]).collect();
    if keys.is_empty() { Ok(GuardedWrite::Done) } else { forget(partition, mine, keys).await }
}

/// Deletes the keys of all epochs but those that begin with one of `kept`, as the recoverer of `mine`.
pub(super) async fn delete_all_but(
    partition: &Partition,
    mine: &EpochKeys,
    kept: &[String],
) -> Result<GuardedWrite, Failure> {
    let mut walk = EpochKeyScan::new(partition);
    while let Some(page) = walk.next().await? {
        let old: Vec<_> =
            page.into_iter().filter(|key| !kept.iter().any(|kept| key.starts_with(kept))).collect();
        if old.is_empty() {
            continue;
        }
        if forget(partition, mine, old).await? == GuardedWrite::Superseded {
            return Ok(GuardedWrite::Superseded);
        }
    }
    Ok(GuardedWrite::Done)
}

async fn forget(partition: &Partition, mine: &EpochKeys, keys: Vec<String>) -> Result<GuardedWrite, Failure> {
    let mut call = Call::default();
    call.key(mine.certificate()).arg(mine.epoch().to_string());
    for key in keys {
        call.key(key);
    }
    Ok(match partition.invoke(&FORGET, "delete an old epoch", &call).await?.text()?.as_str() {
        "forgotten" => GuardedWrite::Done,
        _ => GuardedWrite::Superseded,
    })
}

/// Deletes what is not of the epoch that was just opened: what was there before, and what recoverers that
/// died have half-built. The outage is over; what this leaves behind, the next recovery takes.
pub(super) async fn delete_leftovers(partition: &Partition, opened: &EpochKeys) {
    if let Err(failure) = delete_all_but(partition, opened, &[opened.prefix().to_owned()]).await {
        tracing::warn!(error = failure.chain(), "keys of old epochs could not be deleted yet");
    }
}

/// Every epoch that has something in flight, the oldest first.
pub(super) async fn epochs_in_flight(partition: &Partition) -> Result<Vec<EpochKeys>, Failure> {
    let mut epochs = Vec::new();
    let mut walk = EpochKeyScan::new(partition);
    while let Some(page) = walk.next().await? {
        epochs.extend(page.iter().filter_map(|key| keys::epoch_of_in_flight(partition.id(), key)));
    }
    epochs.sort_by_key(|epoch: &Epoch| epoch.to_string());
    Ok(epochs.into_iter().map(|epoch| EpochKeys::new(partition.id(), epoch)).collect())
}

/// A walk through all keys of epochs, a page at a time.
struct EpochKeyScan<'a> {
    partition: &'a Partition,
    /// `None` at the end.
    cursor: Option<u64>,
}

impl<'a> EpochKeyScan<'a> {
    fn new(partition: &'a Partition) -> Self {
        EpochKeyScan { partition, cursor: Some(0) }
    }

    async fn next(&mut self) -> Result<Option<Vec<String>>, Failure> {
        let Some(cursor) = self.cursor else { return Ok(None) };
        let (next, page): (u64, Vec<Vec<u8>>) = self
            .partition
            .query(
                "scan the keys",
                cmd("SCAN")
                    .arg(cursor)
                    .arg("MATCH")
                    .arg(keys::any_epoch(self.partition.id()))
                    .arg("COUNT")
                    .arg(PAGE),
            )
            .await?;
        self.cursor = Some(next).filter(|next| *next != 0);
        // A key whose name is no text is not this program's.
        Ok(Some(page.into_iter().filter_map(|key| String::from_utf8(key).ok()).collect()))
    }
}
