//! What is still in flight in an epoch, dead letters among it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::LazyLock;

use jiff::Timestamp;
use redis::Script;

use super::forget::Forgotten;
use crate::Failure;
use crate::coupon::CouponId;
use crate::damage::damaged;
use crate::issuance::{InFlight, IssuanceId, Ledger};
use crate::keys::{self, EpochKeys};
use crate::partition::{Call, Partition, script};

static KEEP: LazyLock<Script> = LazyLock::new(|| script(include_str!("keep.lua")));

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
    /// Keys that are of another type than they should be: nothing in them can be read.
    pub wrong_type: Vec<String>,
}

/// Fields and values, as Redis has them.
type RawPairs = Vec<(Vec<u8>, Vec<u8>)>;

impl Found {
    /// Whether all that is in flight could be read.
    pub(super) fn is_whole(&self) -> bool {
        self.damaged.is_empty() && self.wrong_type.is_empty()
    }
}

/// What these epochs have in flight; of one issuance, what the latest has.
pub(super) async fn read(partition: &Partition, epochs: &[EpochKeys]) -> Result<Found, Failure> {
    let mut survivors = BTreeMap::new();
    let (mut damaged, mut wrong_type) = (HashMap::new(), Vec::new());
    for keys in epochs {
        let mut dead: HashMap<Vec<u8>, String> = HashMap::new();
        let scanned = scan(partition, keys.dead(), |id, value| {
            dead.insert(id, why_dead(&value));
        });
        wrong_type.extend(scanned.await?.is_none().then(|| keys.dead()));
        let scanned = scan(partition, keys.in_flight(), |id, value| match parse(&id, &value) {
            // HSCAN may give a field more than once.
            Some((key, in_flight)) => {
                drop(survivors.insert(key, Survivor { id: key, in_flight, dead: dead.get(&id).cloned() }));
            }
            None => drop(damaged.insert(id, value)),
        });
        wrong_type.extend(scanned.await?.is_none().then(|| keys.in_flight()));
    }
    Ok(Found {
        survivors: survivors.into_values().collect(),
        damaged: damaged.into_iter().collect(),
        wrong_type,
    })
}

/// What an epoch has in flight of some coupons. What cannot be read is nobody's.
pub(super) async fn of_coupons(
    partition: &Partition,
    keys: &EpochKeys,
    coupons: &HashSet<CouponId>,
) -> Result<HashMap<CouponId, Vec<Survivor>>, Failure> {
    let mut seen = HashSet::new();
    let mut found: HashMap<CouponId, Vec<Survivor>> = HashMap::new();
    let scanned = scan(partition, keys.in_flight(), |id, value| {
        if let Some((id, in_flight)) = parse(&id, &value)
            && coupons.contains(&in_flight.coupon)
            && seen.insert(id)
        {
            let of_coupon = found.entry(in_flight.coupon.clone()).or_default();
            of_coupon.push(Survivor { id, in_flight, dead: None });
        }
    });
    match scanned.await? {
        Some(()) => Ok(found),
        None => Err(Failure::Damaged {
            what: "what is in flight",
            why: format!("{} is no hash", keys.in_flight()),
        }),
    }
}

/// Reads a whole hash. `None` if the key is of another type.
async fn scan(
    partition: &Partition,
    key: String,
    mut take: impl FnMut(Vec<u8>, Vec<u8>),
) -> Result<Option<()>, Failure> {
    let mut connection = partition.connection();
    let mut cursor = 0_u64;
    loop {
        let page: redis::RedisResult<(u64, RawPairs)> = redis::cmd("HSCAN")
            .arg(&key)
            .arg(cursor)
            .arg("COUNT")
            .arg(CHUNK)
            .query_async(&mut connection)
            .await;
        let (next, page) = match page {
            Ok(page) => page,
            Err(error) if error.code() == Some("WRONGTYPE") => return Ok(None),
            Err(error) => return Err(Failure::redis("read what is in flight")(error)),
        };
        for (field, value) in page {
            take(field, value);
        }
        if next == 0 {
            return Ok(Some(()));
        }
        cursor = next;
    }
}

/// What `set_aside.lua` writes after the entry: when, how many attempts, why. Where that cannot be read, it is
/// a dead letter all the same.
fn why_dead(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    let readable = || {
        let (_, rest) = text.split_once(' ')?;
        let (at, rest_of_it) = rest.split_once(' ')?;
        let (attempts, _) = rest_of_it.split_once(' ')?;
        (at.parse::<i64>().is_ok() && attempts.parse::<u32>().is_ok()).then(|| rest.to_owned())
    };
    readable().unwrap_or_else(|| {
        let now = Timestamp::now().as_millisecond();
        format!("{now} 0 it was set aside, and the reason that was kept cannot be read: {text:?}")
    })
}

fn parse(id: &[u8], value: &[u8]) -> Option<(IssuanceId, InFlight)> {
    let id = IssuanceId::from_bytes(<[u8; 16]>::try_from(id).ok()?)?;
    Some((id, std::str::from_utf8(value).ok()?.parse().ok()?))
}

impl Found {
    /// Keeps what cannot be read, and is not decided, for a person to look at: it will not be in the new epoch.
    pub(super) async fn keep_damaged(
        &mut self,
        partition: &Partition,
        keys: &EpochKeys,
        ledger: &Ledger,
    ) -> Result<Forgotten, Failure> {
        let id_of = |field: &[u8]| IssuanceId::from_bytes(<[u8; 16]>::try_from(field).ok()?);
        let ids: Vec<_> = self.damaged.iter().filter_map(|(field, _)| id_of(field)).collect();
        let decided = decided(ledger, &ids).await?;
        self.damaged.retain(|(field, _)| id_of(field).is_none_or(|id| !decided.contains(&id)));
        for (id, value) in &self.damaged {
            let (id, value) = (id.escape_ascii(), String::from_utf8_lossy(value));
            damaged!(id; %id, %value, "an in-flight entry cannot be read; it is kept aside");
        }
        let aside = |key: &str| format!("{}:{}", keys::damaged(partition.id()), key.replace(':', "-"));
        for key in &self.wrong_type {
            damaged!(key; key, kept_as = aside(key), "a key cannot be read; it is kept aside");
        }
        let mut wrong_type = self.wrong_type.iter();
        let mut chunks = self.damaged.chunks(CHUNK);
        loop {
            let (keys_aside, values) = (wrong_type.by_ref().take(CHUNK), chunks.next().unwrap_or_default());
            let mut call = Call::default();
            let damaged = keys::damaged(partition.id());
            let instead = aside(&format!("{}before", keys.prefix()));
            call.key(keys.certificate()).key(damaged).key(instead);
            let mut any = !values.is_empty();
            for key in keys_aside {
                call.key(key.clone()).key(aside(key));
                any = true;
            }
            if !any {
                return Ok(Forgotten::All);
            }
            call.arg(keys.epoch().to_string());
            for (id, value) in values {
                call.arg(id).arg(value);
            }
            if partition.invoke(&KEEP, "keep what is damaged", &call).await?.text()? != "kept" {
                return Ok(Forgotten::Superseded);
            }
        }
    }
}

/// Which of some issuances the ledger has decided, readable or not.
pub(super) async fn decided(ledger: &Ledger, ids: &[IssuanceId]) -> Result<HashSet<IssuanceId>, Failure> {
    let mut decided = HashSet::new();
    for ids in ids.chunks(CHUNK) {
        decided.extend(ledger.decided_among(ids).await?);
    }
    Ok(decided)
}

/// Which of them it has issued, readable or not.
pub(super) async fn issued(ledger: &Ledger, ids: &[IssuanceId]) -> Result<HashSet<IssuanceId>, Failure> {
    let mut issued = HashSet::new();
    for ids in ids.chunks(CHUNK) {
        issued.extend(ledger.issued_among(ids).await?);
    }
    Ok(issued)
}
