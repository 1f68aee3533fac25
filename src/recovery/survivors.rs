//! What is still in flight in an epoch, dead letters among it.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;

use super::old_epochs::GuardedWrite;
use crate::Failure;
use crate::ids::{CouponId, IssuanceId};
use crate::issuance::{InFlight, Ledger};
use crate::queue::StreamScan;
use crate::queue::entry::{self, RawFields};
use crate::redis::KeyScan;
use crate::redis::keys::EpochKeys;
use crate::redis::{Call, LuaScript, Partition, keys};
use crate::runtime::damage::damaged;

static KEEP: LuaScript = LuaScript::new(include_str!("keep.lua"));

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

/// What is in flight for an issuance, and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnreadableInFlight {
    /// The field of the in-flight hash.
    pub field: Vec<u8>,
    pub value: Vec<u8>,
    /// As of a [`Survivor`].
    pub dead: Option<String>,
}

impl UnreadableInFlight {
    /// `None` if the field is no issuance's: then no request can ask for it.
    pub(super) fn id(&self) -> Option<IssuanceId> {
        IssuanceId::from_bytes(&self.field)
    }

    /// The value, but for the entry that it may begin with.
    pub(super) fn after_entry(&self) -> &[u8] {
        let entry = InFlight::entry_named_by(&self.value).map_or(0, |entry| entry.len() + 1);
        &self.value[entry..]
    }

    /// When and why it is set aside, as `set_aside.lua` writes it after the entry.
    pub(super) fn why_dead(&self) -> String {
        self.dead.clone().unwrap_or_else(|| {
            let (now, value) = (Timestamp::now().as_millisecond(), String::from_utf8_lossy(&self.value));
            format!(
                "{now} 0 Redis was recovered, and neither what was in flight for it ({value:?}) nor its stream \
                 entry could be read: nobody can decide it. Discard it, and answer its user"
            )
        })
    }
}

/// Everything that was found, and what could not be read.
#[derive(Debug, Default)]
pub(super) struct InFlightSnapshot {
    pub survivors: Vec<Survivor>,
    pub damaged: Vec<UnreadableInFlight>,
    /// Keys that are of another type than they should be: nothing in them can be read.
    pub wrong_type: Vec<String>,
    /// When and why dead letters were set aside, by their fields.
    dead: HashMap<Vec<u8>, String>,
}

impl InFlightSnapshot {
    /// How many values cannot be read and are not dead letters yet.
    pub(super) fn unknown_damage(&self) -> usize {
        self.damaged.iter().filter(|damaged| damaged.dead.is_none()).count()
    }
}

/// Reads what these epochs have in flight; of an issuance in several, what the latest has.
pub(super) async fn read(partition: &Partition, epochs: &[EpochKeys]) -> Result<InFlightSnapshot, Failure> {
    let mut survivors = BTreeMap::new();
    let (mut damaged, mut wrong_type) = (HashMap::new(), Vec::new());
    let mut dead: HashMap<Vec<u8>, String> = HashMap::new();
    for keys in epochs {
        let scanned = scan(partition, keys.dead(), |id, value| {
            dead.insert(id, why_dead(&value));
        });
        wrong_type.extend(scanned.await?.is_none().then(|| keys.dead()));
        let scanned = scan(partition, keys.in_flight(), |id, value| match parse(&id, &value) {
            // HSCAN may give a field more than once.
            Some((key, in_flight)) => {
                drop(survivors.insert(key, Survivor { id: key, in_flight, dead: dead.get(&id).cloned() }));
            }
            None => {
                let dead = dead.get(&id).cloned();
                damaged.insert(id.clone(), UnreadableInFlight { field: id, value, dead });
            }
        });
        wrong_type.extend(scanned.await?.is_none().then(|| keys.in_flight()));
    }
    let is_nowhere_else = |one: &UnreadableInFlight| one.id().is_none_or(|id| !survivors.contains_key(&id));
    let damaged = damaged.into_values().filter(is_nowhere_else).collect();
    Ok(InFlightSnapshot { survivors: survivors.into_values().collect(), damaged, wrong_type, dead })
}

/// Reads what an epoch has in flight of some coupons. A value that cannot be read belongs to no coupon.
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
    scanned.await?.ok_or_else(|| no_hash(keys)).map(|()| found)
}

/// The coupons that have something in flight in an epoch, as far as it can be read.
pub(crate) async fn coupons_in_flight(
    partition: &Partition,
    keys: &EpochKeys,
) -> Result<HashSet<CouponId>, Failure> {
    let mut coupons = HashSet::new();
    let scanned = scan(partition, keys.in_flight(), |id, value| {
        if let Some((_, in_flight)) = parse(&id, &value) {
            coupons.insert(in_flight.coupon);
        }
    });
    scanned.await?.ok_or_else(|| no_hash(keys)).map(|()| coupons)
}

/// Which of these users have something in flight in an epoch, whatever else can be read of it.
pub(crate) async fn users_in_flight(
    partition: &Partition,
    keys: &EpochKeys,
    users: &HashSet<&str>,
) -> Result<HashSet<String>, Failure> {
    let mut found = HashSet::new();
    let scanned = scan(partition, keys.in_flight(), |_, value| {
        let user = value.rsplit(|byte| *byte == b' ').next().and_then(|user| std::str::from_utf8(user).ok());
        if let Some(user) = user.filter(|user| users.contains(user)) {
            found.insert(user.to_owned());
        }
    });
    scanned.await?.ok_or_else(|| no_hash(keys)).map(|()| found)
}

fn no_hash(keys: &EpochKeys) -> Failure {
    Failure::Damaged { what: "what is in flight", why: format!("{} is no hash", keys.in_flight()) }
}

/// Reads a whole hash. `None` if the key is of another type.
async fn scan(
    partition: &Partition,
    key: String,
    mut take: impl FnMut(Vec<u8>, Vec<u8>),
) -> Result<Option<()>, Failure> {
    let mut scan = KeyScan::new("HSCAN", key, CHUNK);
    loop {
        match scan.next::<RawFields>(partition, "read what is in flight").await {
            Ok(Some(page)) => page.into_iter().for_each(|(field, value)| take(field, value)),
            Ok(None) => return Ok(Some(())),
            Err(Failure::Damaged { .. }) => return Ok(None),
            Err(failure) => return Err(failure),
        }
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
    Some((IssuanceId::from_bytes(id)?, InFlight::parse(value)?))
}

impl InFlightSnapshot {
    /// Takes from the streams what is in flight and cannot be read, or is gone: an entry holds the same, and is
    /// deleted when its issuance is settled. Returns what was found there.
    pub(super) async fn take_from_streams(
        &mut self,
        partition: &Partition,
        epochs: &[EpochKeys],
    ) -> Result<Vec<Survivor>, Failure> {
        let mut taken: BTreeMap<IssuanceId, Survivor> = BTreeMap::new();
        for keys in epochs {
            scan_stream(partition, keys.stream(), |id, in_flight| {
                if self.survivors.binary_search_by_key(&id, |survivor| survivor.id).is_err() {
                    let dead = self.dead.get(id.as_bytes().as_slice()).cloned();
                    taken.insert(id, Survivor { id, in_flight, dead });
                }
            })
            .await?;
        }
        self.damaged.retain(|damaged| damaged.id().is_none_or(|id| !taken.contains_key(&id)));
        for survivor in taken.values() {
            tracing::error!(
                issuance = %survivor.id, in_flight = %survivor.in_flight,
                "its in-flight value could not be read; took it from the stream"
            );
        }
        let taken: Vec<_> = taken.into_values().collect();
        self.survivors.extend(taken.iter().cloned());
        Ok(taken)
    }

    /// Adds the values that an earlier version set aside in a rebuild, and dropped. Returns the key that they
    /// are in, if there are any.
    pub(super) async fn take_set_aside(&mut self, partition: &Partition) -> Result<Option<String>, Failure> {
        let key = keys::damaged(partition.id());
        let mut aside = HashMap::new();
        let scanned = scan(partition, key.clone(), |field, value| drop(aside.insert(field, value)));
        if scanned.await?.is_none() || aside.is_empty() {
            return Ok(None);
        }
        let known: HashSet<_> = self.survivors.iter().map(|survivor| survivor.id).collect();
        let is_new = |id: IssuanceId| {
            !known.contains(&id) && self.damaged.iter().all(|damaged| damaged.id() != Some(id))
        };
        let aside: Vec<_> = aside
            .into_iter()
            .filter(|(field, _)| IssuanceId::from_bytes(field).is_some_and(is_new))
            .map(|(field, value)| UnreadableInFlight { field, value, dead: None })
            .collect();
        self.damaged.extend(aside);
        Ok(Some(key))
    }

    /// Leaves out what the ledger has decided. Returns how much that was.
    pub(super) async fn leave_out_decided(&mut self, ledger: &Ledger) -> Result<usize, Failure> {
        let damaged = self.damaged.iter().filter_map(UnreadableInFlight::id);
        let ids: Vec<_> = self.survivors.iter().map(|survivor| survivor.id).chain(damaged).collect();
        let decided = decided(ledger, &ids).await?;
        self.survivors.retain(|survivor| !decided.contains(&survivor.id));
        self.damaged.retain(|damaged| damaged.id().is_none_or(|id| !decided.contains(&id)));
        Ok(decided.len())
    }

    /// Keeps keys of a wrong type under other names, and in the in-flight hash of an epoch what was taken from
    /// the streams, for these are deleted next. Values under ids that are none are kept for a person to
    /// read: they will not be in the new epoch.
    pub(super) async fn keep(
        &self,
        partition: &Partition,
        keys: &EpochKeys,
        old: &[EpochKeys],
        taken: &[Survivor],
    ) -> Result<GuardedWrite, Failure> {
        let aside = |key: &str| format!("{}:{}", keys::damaged(partition.id()), key.replace(':', "-"));
        for key in &self.wrong_type {
            damaged!(key; key, kept_as = aside(key), "a key cannot be read; it is kept aside");
        }
        for chunk in self.wrong_type.chunks(CHUNK) {
            let mut call = Call::default();
            call.key(keys.certificate()).key(keys::damaged(partition.id())).key(aside(keys.prefix()));
            for key in chunk {
                call.key(key.clone()).key(aside(key));
            }
            call.arg(keys.epoch().to_string());
            if keep_by(partition, &call).await? == GuardedWrite::Superseded {
                return Ok(GuardedWrite::Superseded);
            }
        }
        let nobodys = self.damaged.iter().filter(|damaged| damaged.id().is_none());
        let nobodys: RawFields = nobodys.map(|one| (one.field.clone(), one.value.clone())).collect();
        let taken: RawFields = taken
            .iter()
            .map(|one| (one.id.as_bytes().to_vec(), one.in_flight.to_string().into_bytes()))
            .collect();
        let in_flight = old.last().map(EpochKeys::in_flight).unwrap_or_default();
        for (hash, pairs) in [(keys::damaged(partition.id()), nobodys), (in_flight, taken)] {
            for chunk in pairs.chunks(CHUNK) {
                let mut call = Call::default();
                call.key(keys.certificate())
                    .key(hash.clone())
                    .key(aside(&format!("{}before", keys.prefix())));
                call.arg(keys.epoch().to_string());
                for (field, value) in chunk {
                    call.arg(field).arg(value);
                }
                if keep_by(partition, &call).await? == GuardedWrite::Superseded {
                    return Ok(GuardedWrite::Superseded);
                }
            }
        }
        Ok(GuardedWrite::Done)
    }
}

async fn keep_by(partition: &Partition, call: &Call) -> Result<GuardedWrite, Failure> {
    Ok(match partition.invoke(&KEEP, "keep what is damaged", call).await?.text()?.as_str() {
        "kept" => GuardedWrite::Done,
        _ => GuardedWrite::Superseded,
    })
}

/// Reads what the entries of a stream say, but for those that cannot be read. Of a key that is no stream,
/// nothing.
async fn scan_stream(
    partition: &Partition,
    stream: String,
    mut take: impl FnMut(IssuanceId, InFlight),
) -> Result<(), Failure> {
    let mut scan = StreamScan::new(stream, "+");
    loop {
        let page = match scan.next(partition).await {
            Ok(page) => page,
            Err(Failure::Damaged { .. }) => return Ok(()),
            Err(failure) => return Err(failure),
        };
        if page.is_empty() {
            return Ok(());
        }
        for (entry, fields) in page {
            for (id, in_flight) in entry::in_flight(&entry, &fields.unwrap_or_default()).into_iter().flatten()
            {
                take(id, in_flight);
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

/// Which of them it has issued, or moved away, readable or not.
pub(super) async fn taken(ledger: &Ledger, ids: &[IssuanceId]) -> Result<HashSet<IssuanceId>, Failure> {
    let mut taken = HashSet::new();
    for ids in ids.chunks(CHUNK) {
        taken.extend(ledger.taken_among(ids).await?);
    }
    Ok(taken)
}
