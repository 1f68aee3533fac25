//! What is still in flight in an old epoch, dead letters among it. Reads only.

use std::collections::{BTreeMap, HashMap};

use redis::AsyncCommands;

use crate::Failure;
use crate::issuance::ledger::Unreadable;
use crate::issuance::{Decision, InFlight, IssuanceId, Ledger};
use crate::keys::{self, EpochKeys};
use crate::partition::Partition;

/// Fields in one page of a scan, ids in one read of the ledger.
const CHUNK: usize = 1_000;

/// An issuance that was in flight when the data was closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Survivor {
    pub id: IssuanceId,
    pub in_flight: InFlight,
    /// Of a dead letter: when and why it was set aside, as `set_aside.lua` writes it after the entry.
    pub dead: Option<String>,
}

/// Everything that was found, and what could not be read.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub survivors: Vec<Survivor>,
    /// Fields and values of the in-flight hash.
    pub damaged: RawPairs,
}

/// Fields and values, as Redis has them.
type RawPairs = Vec<(Vec<u8>, Vec<u8>)>;

/// What these epochs have in flight; of one issuance, what the latest has.
pub(super) async fn read(partition: &Partition, epochs: &[EpochKeys]) -> Result<Found, Failure> {
    let mut found = BTreeMap::new();
    let mut damaged = Vec::new();
    for keys in epochs {
        let mut dead: HashMap<Vec<u8>, String> = HashMap::new();
        scan(partition, &keys.dead(), |id, value| {
            let why = String::from_utf8_lossy(&value).split_once(' ').map(|(_, why)| why.to_owned());
            dead.insert(id, why.unwrap_or_default());
        })
        .await?;
        scan(partition, &keys.in_flight(), |id, value| match parse(&id, &value) {
            // HSCAN may give a field more than once.
            Some((key, in_flight)) => {
                drop(found.insert(key, Survivor { id: key, in_flight, dead: dead.get(&id).cloned() }));
            }
            None => damaged.push((id, value)),
        })
        .await?;
    }
    Ok(Found { survivors: found.into_values().collect(), damaged })
}

async fn scan(
    partition: &Partition,
    key: &str,
    mut take: impl FnMut(Vec<u8>, Vec<u8>),
) -> Result<(), Failure> {
    let mut connection = partition.connection();
    let mut cursor = 0_u64;
    loop {
        let (next, page): (u64, RawPairs) = redis::cmd("HSCAN")
            .arg(key)
            .arg(cursor)
            .arg("COUNT")
            .arg(CHUNK)
            .query_async(&mut connection)
            .await
            .map_err(Failure::redis("read what is in flight"))?;
        for (field, value) in page {
            take(field, value);
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

fn parse(id: &[u8], value: &[u8]) -> Option<(IssuanceId, InFlight)> {
    let id = IssuanceId::from_bytes(<[u8; 16]>::try_from(id).ok()?)?;
    Some((id, std::str::from_utf8(value).ok()?.parse().ok()?))
}

impl Found {
    /// Keeps what cannot be read for a person to look at: it will not be in the new epoch.
    pub(super) async fn keep_damaged(&self, partition: &Partition) -> Result<(), Failure> {
        for (id, value) in &self.damaged {
            tracing::error!(?id, value = %String::from_utf8_lossy(value), "an in-flight entry cannot be read; it is kept aside");
            let kept: redis::RedisResult<()> =
                partition.connection().hset(keys::damaged(partition.id()), id, value).await;
            kept.map_err(Failure::redis("keep a damaged entry"))?;
        }
        Ok(())
    }
}

/// What the ledger has decided about some survivors, be it readable or not.
pub(super) async fn decisions(
    ledger: &Ledger,
    survivors: &[IssuanceId],
) -> Result<HashMap<IssuanceId, Result<Decision, Unreadable>>, Failure> {
    let mut decided = HashMap::new();
    for ids in survivors.chunks(CHUNK) {
        decided.extend(ledger.decisions(ids).await?);
    }
    Ok(decided)
}
