//! Building a partition's Redis data again, under a new epoch, from the ledger and from what is still
//! in flight. Reads: the old epoch's in-flight hash, the ledger, the coupons. Writes: keys of its own
//! epoch only, and the certificate through two guarded scripts, so a recoverer that sleeps or dies
//! leaves nothing but garbage behind.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use redis::{AsyncCommands, Script};

use super::lease::Lease;
use super::load::load_into;
use crate::Failure;
use crate::coupon::{CouponId, CouponStore};
use crate::issuance::{InFlight, IssuanceId, Ledger};
use crate::keys::{self, EpochKeys, GROUP};
use crate::partition::{Call, Partition, script};

static CLOSE: LazyLock<Script> = LazyLock::new(|| script(include_str!("close.lua")));
static OPEN: LazyLock<Script> = LazyLock::new(|| script(include_str!("open.lua")));

/// Well within the lease's length.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Ids in one read of the ledger, entries in one pipeline.
const CHUNK: usize = 1_000;

/// What a rebuild came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuilt {
    /// The new epoch is open.
    Opened { survivors: usize, decided: usize, coupons: usize },
    /// Somebody else recovers, or has done so.
    Superseded,
}

/// Rebuilds the partition under a lease that was just taken.
pub async fn rebuild(
    partition: &Partition,
    ledger: &Ledger,
    coupons: &CouponStore,
    lease: &Lease,
) -> Result<Rebuilt, Failure> {
    let work = build_and_open(partition, ledger, coupons, lease);
    tokio::select! {
        built = work => built,
        lost = lose(lease) => lost.map(|()| Rebuilt::Superseded),
    }
}

/// Renews the lease until it is lost.
async fn lose(lease: &Lease) -> Result<(), Failure> {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        if !lease.renew().await? {
            return Ok(());
        }
    }
}

async fn build_and_open(
    partition: &Partition,
    ledger: &Ledger,
    coupons: &CouponStore,
    lease: &Lease,
) -> Result<Rebuilt, Failure> {
    let keys = EpochKeys::new(partition.id(), lease.epoch);
    let Some(old) = close(partition, lease).await? else { return Ok(Rebuilt::Superseded) };

    let mut in_flight = match old {
        Some(old) => survivors(partition, &old).await?,
        None => Vec::new(),
    };
    let before = in_flight.len();
    in_flight = undecided(ledger, in_flight).await?;
    let decided = before - in_flight.len();

    let mut by_coupon: BTreeMap<CouponId, Vec<(IssuanceId, InFlight)>> = BTreeMap::new();
    for coupon in coupons.current(Timestamp::now()).await? {
        by_coupon.insert(coupon.id, Vec::new());
    }
    for (id, survivor) in in_flight {
        by_coupon.entry(survivor.coupon.clone()).or_default().push((id, survivor));
    }
    let mut queue = Vec::new();
    for (id, survivors) in &mut by_coupon {
        match coupons.get(id).await? {
            Some(coupon) => {
                load_into(partition, &keys, true, ledger, &coupon, survivors).await?;
            }
            // Coupons are never deleted: what is in flight for one that is gone still gets its answer.
            None => tracing::error!(coupon = %id, "a coupon with issuances in flight has no record"),
        }
        queue.append(survivors);
    }
    queue.sort_by_key(|(_, survivor)| survivor.sequence);
    write_queue(partition, &keys, &mut queue).await?;

    if !lease.renew().await? || !open(partition, &keys, lease, queue.len()).await? {
        return Ok(Rebuilt::Superseded);
    }
    partition.set_epoch(lease.epoch);
    delete_other_epochs(partition, &keys).await?;
    Ok(Rebuilt::Opened { survivors: queue.len(), decided, coupons: by_coupon.len() })
}

/// Closes the certificate, and returns the keys of the epoch that was open last, if any. `None` if
/// somebody recovers under a later term.
async fn close(partition: &Partition, lease: &Lease) -> Result<Option<Option<EpochKeys>>, Failure> {
    let mut call = Call::default();
    call.key(keys::certificate(partition.id())).arg(lease.term).arg(lease.epoch.to_string());
    let mut reply = partition.invoke(&CLOSE, "close the certificate", &call).await?;
    if reply.text()? != "closed" {
        return Ok(None);
    }
    let epoch = reply.text()?;
    if epoch.is_empty() {
        return Ok(Some(None));
    }
    let epoch = epoch.parse().map_err(|_| reply.wrong())?;
    Ok(Some(Some(EpochKeys::new(partition.id(), epoch))))
}

/// What the old epoch has in flight.
async fn survivors(partition: &Partition, old: &EpochKeys) -> Result<Vec<(IssuanceId, InFlight)>, Failure> {
    let mut found = BTreeMap::new();
    let mut connection = partition.connection();
    let mut cursor = 0_u64;
    loop {
        let (next, page): (u64, Vec<(Vec<u8>, String)>) = redis::cmd("HSCAN")
            .arg(old.in_flight())
            .arg(cursor)
            .arg("COUNT")
            .arg(CHUNK)
            .query_async(&mut connection)
            .await
            .map_err(Failure::redis("read what is in flight"))?;
        for (id, value) in page {
            let id = <[u8; 16]>::try_from(id).ok().and_then(IssuanceId::from_bytes);
            match (id, value.parse::<InFlight>()) {
                // HSCAN may give a field more than once.
                (Some(id), Ok(in_flight)) => drop(found.insert(id, in_flight)),
                (id, parsed) => {
                    tracing::error!(?id, value, error = ?parsed.err(), "an in-flight entry is damaged; it is left out");
                }
            }
        }
        if next == 0 {
            return Ok(found.into_iter().collect());
        }
        cursor = next;
    }
}

/// Leaves out what the ledger has decided: its accounts come from there.
async fn undecided(
    ledger: &Ledger,
    in_flight: Vec<(IssuanceId, InFlight)>,
) -> Result<Vec<(IssuanceId, InFlight)>, Failure> {
    let mut left = Vec::with_capacity(in_flight.len());
    let mut rest = in_flight.into_iter().peekable();
    while rest.peek().is_some() {
        let chunk: Vec<_> = rest.by_ref().take(CHUNK).collect();
        let ids: Vec<_> = chunk.iter().map(|(id, _)| *id).collect();
        let decided = ledger.decisions(&ids).await?;
        left.extend(chunk.into_iter().filter(|(id, _)| !decided.contains_key(id)));
    }
    Ok(left)
}

/// Writes stream, group, in-flight hash and counters, the oldest first.
async fn write_queue(
    partition: &Partition,
    keys: &EpochKeys,
    queue: &mut [(IssuanceId, InFlight)],
) -> Result<(), Failure> {
    let failed = || Failure::redis("write the queue");
    let mut connection = partition.connection();
    let mut sequence = 0_u64;
    for chunk in queue.chunks_mut(CHUNK) {
        let mut entries = redis::pipe();
        for (id, survivor) in chunk.iter() {
            crate::queue::entry::append(&mut entries, &keys.stream(), *id, survivor);
        }
        let entries: Vec<String> = entries.query_async(&mut connection).await.map_err(failed())?;
        let mut hash = redis::cmd("HSET");
        hash.arg(keys.in_flight());
        for ((id, survivor), entry) in chunk.iter_mut().zip(entries) {
            sequence += 1;
            survivor.entry = entry;
            survivor.sequence = sequence;
            hash.arg(id.as_bytes().as_slice()).arg(survivor.to_string());
        }
        hash.query_async::<()>(&mut connection).await.map_err(failed())?;
    }
    let mut rest = redis::pipe();
    rest.cmd("HSET").arg(keys.counters()).arg("accepted").arg(sequence).arg("settled").arg(0).ignore();
    rest.cmd("XGROUP").arg("CREATE").arg(keys.stream()).arg(GROUP).arg(0).arg("MKSTREAM").ignore();
    rest.set(marker(keys), keys.epoch().to_string()).ignore();
    rest.query_async::<()>(&mut connection).await.map_err(failed())
}

/// Written last: what is built without it is not complete.
fn marker(keys: &EpochKeys) -> String {
    format!("{}built", keys.prefix())
}

async fn open(partition: &Partition, keys: &EpochKeys, lease: &Lease, count: usize) -> Result<bool, Failure> {
    let mut call = Call::default();
    call.key(keys.certificate()).key(keys.stream()).key(keys.in_flight()).key(marker(keys));
    call.arg(lease.term).arg(keys.epoch().to_string()).arg(GROUP).arg(count);
    let mut reply = partition.invoke(&OPEN, "open the certificate", &call).await?;
    match reply.text()?.as_str() {
        "opened" => Ok(true),
        "superseded" => Ok(false),
        _ => {
            let missing = reply.text()?;
            Err(Failure::Redis {
                operation: "open the certificate",
                source: format!("what was built is not complete: {missing}; it is built again").into(),
            })
        }
    }
}

/// Deletes the keys of every epoch but this one.
async fn delete_other_epochs(partition: &Partition, keys: &EpochKeys) -> Result<(), Failure> {
    let failed = || Failure::redis("delete the old epoch");
    let mut scanning = partition.connection();
    let mut deleting = partition.connection();
    let mut cursor = 0_u64;
    loop {
        let (next, page): (u64, Vec<String>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(keys::any_epoch(partition.id()))
            .arg("COUNT")
            .arg(CHUNK)
            .query_async(&mut scanning)
            .await
            .map_err(failed())?;
        let old: Vec<_> = page.into_iter().filter(|key| !key.starts_with(keys.prefix())).collect();
        if !old.is_empty() {
            deleting.unlink::<_, ()>(old).await.map_err(failed())?;
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}
