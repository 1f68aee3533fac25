//! Building a partition's Redis data again, under a new epoch, from the ledger and from what is still
//! in flight. Reads: the old epoch's in-flight hash, the ledger, the coupons. Writes: keys of its own
//! epoch only, and the certificate through two guarded scripts, so a recoverer that sleeps or dies
//! leaves nothing but garbage behind.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use redis::{AsyncCommands, Script};

use super::Epoch;
use super::lease::{LASTS, Lease};
use super::load::load_into;
use crate::Failure;
use crate::coupon::{CouponId, CouponStore};
use crate::issuance::{InFlight, IssuanceId, Ledger};
use crate::keys::{self, EpochKeys, GROUP};
use crate::partition::{Call, Partition, script};
use crate::service::{Service, ServiceStore};

static CLOSE: LazyLock<Script> = LazyLock::new(|| script(include_str!("close.lua")));
static FORGET: LazyLock<Script> = LazyLock::new(|| script(include_str!("forget.lua")));
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
    services: &ServiceStore,
    lease: &Lease,
) -> Result<Rebuilt, Failure> {
    let work = build_and_open(partition, ledger, coupons, services, lease);
    tokio::select! {
        built = work => built,
        lost = lose(lease) => lost.map(|()| Rebuilt::Superseded),
    }
}

/// Renews the lease until it is lost. That MongoDB is away for a moment does not lose it yet.
async fn lose(lease: &Lease) -> Result<(), Failure> {
    let mut renewed = Instant::now();
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        match lease.renew().await {
            Ok(true) => renewed = Instant::now(),
            Ok(false) => return Ok(()),
            Err(failure) if renewed.elapsed() + RENEW_EVERY > LASTS => return Err(failure),
            Err(failure) => {
                tracing::warn!(error = failure.chain(), "the recovery lease could not be renewed yet")
            }
        }
    }
}

async fn build_and_open(
    partition: &Partition,
    ledger: &Ledger,
    coupons: &CouponStore,
    services: &ServiceStore,
    lease: &Lease,
) -> Result<Rebuilt, Failure> {
    let keys = EpochKeys::new(partition.id(), lease.epoch);
    let old = match close(partition, lease).await? {
        Closed::Superseded => return Ok(Rebuilt::Superseded),
        Closed::After(Some(epoch)) => vec![EpochKeys::new(partition.id(), epoch)],
        // The certificate is gone. Where it alone is, what was in flight is still there.
        Closed::After(None) => epochs_in_flight(partition).await?,
    };
    // What recoverers before us left half-built: else each failed attempt adds another copy.
    let kept: Vec<&EpochKeys> = old.iter().chain([&keys]).collect();
    if !forget_all_but(partition, &keys, &kept).await? {
        return Ok(Rebuilt::Superseded);
    }

    let mut in_flight = survivors(partition, &old).await?;
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
    write_queue(partition, &keys, &mut queue, services.get().await?).await?;

    if !lease.renew().await? || !open(partition, &keys, lease, queue.len()).await? {
        return Ok(Rebuilt::Superseded);
    }
    partition.set_epoch(lease.epoch);
    forget_all_but(partition, &keys, &[&keys]).await?;
    Ok(Rebuilt::Opened { survivors: queue.len(), decided, coupons: by_coupon.len() })
}

/// What the closing of the certificate came to.
enum Closed {
    /// Closed; this epoch was open last, if the certificate was there.
    After(Option<Epoch>),
    /// Somebody recovers under a later term.
    Superseded,
}

async fn close(partition: &Partition, lease: &Lease) -> Result<Closed, Failure> {
    let mut call = Call::default();
    call.key(keys::certificate(partition.id())).arg(lease.term).arg(lease.epoch.to_string());
    let mut reply = partition.invoke(&CLOSE, "close the certificate", &call).await?;
    if reply.text()? != "closed" {
        return Ok(Closed::Superseded);
    }
    let epoch = reply.text()?;
    if epoch.is_empty() {
        return Ok(Closed::After(None));
    }
    epoch.parse().map(|epoch| Closed::After(Some(epoch))).map_err(|_| reply.wrong())
}

/// The term that the certificate was closed or opened under last.
pub(super) async fn certified_term(partition: &Partition) -> Result<i64, Failure> {
    let term: Option<i64> = redis::cmd("HGET")
        .arg(keys::certificate(partition.id()))
        .arg("term")
        .query_async(&mut partition.connection())
        .await
        .map_err(Failure::redis("read the certificate"))?;
    Ok(term.unwrap_or(0))
}

/// Every epoch that has something in flight, the oldest first.
async fn epochs_in_flight(partition: &Partition) -> Result<Vec<EpochKeys>, Failure> {
    let mut epochs = Vec::new();
    let mut scan = Scan::new(partition, keys::any_epoch(partition.id()));
    while let Some(page) = scan.next().await? {
        for key in page {
            epochs.extend(keys::epoch_of_in_flight(partition.id(), &key));
        }
    }
    epochs.sort_by_key(|epoch: &Epoch| epoch.to_string());
    Ok(epochs.into_iter().map(|epoch| EpochKeys::new(partition.id(), epoch)).collect())
}

/// What the old epochs have in flight; of one issuance, what the latest has.
async fn survivors(partition: &Partition, old: &[EpochKeys]) -> Result<Vec<(IssuanceId, InFlight)>, Failure> {
    let failed = || Failure::redis("read what is in flight");
    let mut found = BTreeMap::new();
    let mut connection = partition.connection();
    for keys in old {
        let mut cursor = 0_u64;
        loop {
            let (next, page): (u64, RawPairs) = redis::cmd("HSCAN")
                .arg(keys.in_flight())
                .arg(cursor)
                .arg("COUNT")
                .arg(CHUNK)
                .query_async(&mut connection)
                .await
                .map_err(failed())?;
            for (id, value) in page {
                // HSCAN may give a field more than once.
                match parse(&id, &value) {
                    Some((id, in_flight)) => drop(found.insert(id, in_flight)),
                    None => {
                        tracing::error!(?id, value = %String::from_utf8_lossy(&value), "an in-flight entry cannot be read; it is kept aside");
                        let kept: redis::RedisResult<()> =
                            connection.hset(keys::damaged(partition.id()), id, value).await;
                        kept.map_err(failed())?;
                    }
                }
            }
            if next == 0 {
                break;
            }
            cursor = next;
        }
    }
    Ok(found.into_iter().collect())
}

/// Fields and values, as Redis has them.
type RawPairs = Vec<(Vec<u8>, Vec<u8>)>;

fn parse(id: &[u8], value: &[u8]) -> Option<(IssuanceId, InFlight)> {
    let id = IssuanceId::from_bytes(<[u8; 16]>::try_from(id).ok()?)?;
    Some((id, std::str::from_utf8(value).ok()?.parse().ok()?))
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
    service: Service,
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
    rest.cmd("HSET")
        .arg(keys.counters())
        .arg("service_generation")
        .arg(service.generation)
        .arg("paused")
        .arg(u8::from(service.paused))
        .ignore();
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

/// Deletes the keys of every epoch but some, as the recoverer of `mine`. `false` if that is somebody
/// else by now: then nothing more is deleted.
async fn forget_all_but(
    partition: &Partition,
    mine: &EpochKeys,
    kept: &[&EpochKeys],
) -> Result<bool, Failure> {
    let mut scan = Scan::new(partition, keys::any_epoch(partition.id()));
    while let Some(page) = scan.next().await? {
        let old: Vec<_> =
            page.into_iter().filter(|key| !kept.iter().any(|kept| key.starts_with(kept.prefix()))).collect();
        if old.is_empty() {
            continue;
        }
        let mut call = Call::default();
        call.key(mine.certificate()).arg(mine.epoch().to_string());
        for key in old {
            call.key(key);
        }
        if partition.invoke(&FORGET, "delete an old epoch", &call).await?.text()? != "forgotten" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A walk through keys, a page at a time.
struct Scan<'a> {
    partition: &'a Partition,
    pattern: String,
    /// `None` at the end.
    cursor: Option<u64>,
}

impl<'a> Scan<'a> {
    fn new(partition: &'a Partition, pattern: String) -> Self {
        Scan { partition, pattern, cursor: Some(0) }
    }

    async fn next(&mut self) -> Result<Option<Vec<String>>, Failure> {
        let Some(cursor) = self.cursor else { return Ok(None) };
        let (next, page): (u64, Vec<String>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(&self.pattern)
            .arg("COUNT")
            .arg(CHUNK)
            .query_async(&mut self.partition.connection())
            .await
            .map_err(Failure::redis("look through the keys"))?;
        self.cursor = Some(next).filter(|next| *next != 0);
        Ok(Some(page))
    }
}
