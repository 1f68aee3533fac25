//! How a coupon gets into Redis: computed from the ledger and from what is in flight, staged in keys
//! of its own, and put in place by one script that refuses if the coupon is there already.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use redis::Script;

use crate::Failure;
use crate::coupon::Coupon;
use crate::issuance::{InFlight, IssuanceId, Ledger};
use crate::keys::EpochKeys;
use crate::partition::{Call, Partition, script};
use crate::user::UserId;

static LOAD: LazyLock<Script> = LazyLock::new(|| script(include_str!("load.lua")));

/// A load that was given up leaves nothing behind for longer than this.
const STAGING_EXPIRES_SECS: i64 = 900;
/// Fields or members in one command.
const CHUNK: usize = 2_000;

/// What became of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loaded {
    Now,
    /// It was there.
    Before,
}

/// Loads a coupon into the open epoch, where nothing of it can be in flight: only what is loaded can
/// be reserved, and a rebuild loads all that has something in flight.
pub async fn load(partition: &Partition, ledger: &Ledger, coupon: &Coupon) -> Result<Loaded, Failure> {
    let keys = partition.keys();
    load_into(partition, &keys, false, ledger, coupon, &mut Vec::new()).await
}

/// Loads a coupon into an epoch that is open, or (`building`) being built. A survivor whose unit the
/// ledger, or another survivor, has is left without one: a worker finds it another. A survivor that the
/// ledger has decided by now (workers go on inserting during a rebuild) is no survivor: it is taken out
/// of `survivors`, or it would be counted twice.
pub(super) async fn load_into(
    partition: &Partition,
    keys: &EpochKeys,
    building: bool,
    ledger: &Ledger,
    coupon: &Coupon,
    survivors: &mut Vec<(IssuanceId, InFlight)>,
) -> Result<Loaded, Failure> {
    let mut staging = Staging::new(partition, keys);
    let mut units = Units::new(coupon.total);
    let mut surviving: HashMap<UserId, Vec<IssuanceId>> = HashMap::new();
    for (id, in_flight) in survivors.iter() {
        surviving.entry(in_flight.user.clone()).or_default().push(*id);
    }
    let mut decided: HashSet<IssuanceId> = HashSet::new();

    // One user's units come in a row, so their ids are complete when the next user begins.
    let mut issued = 0_u32;
    let mut holder: Option<(UserId, Vec<IssuanceId>)> = None;
    let mut last = None;
    loop {
        let page = ledger.issued_page(&coupon.id, last.as_ref()).await?;
        last = page.last().cloned();
        if last.is_none() {
            break;
        }
        for held in page {
            issued += 1;
            units.take(held.serial);
            if let Some(ids) = surviving.get_mut(&held.user)
                && ids.contains(&held.id)
            {
                ids.retain(|id| *id != held.id);
                decided.insert(held.id);
            }
            match &mut holder {
                Some((user, ids)) if *user == held.user => ids.push(held.id),
                _ => {
                    if let Some((user, ids)) = holder.replace((held.user, vec![held.id])) {
                        staging.holder(&user, ids, surviving.remove(&user)).await?;
                    }
                }
            }
        }
    }
    if let Some((user, ids)) = holder {
        staging.holder(&user, ids, surviving.remove(&user)).await?;
    }
    for (user, ids) in surviving.into_iter().filter(|(_, ids)| !ids.is_empty()) {
        staging.holder(&user, ids, None).await?;
    }
    survivors.retain(|(id, _)| !decided.contains(id));
    for (_, in_flight) in survivors {
        in_flight.serial = in_flight.serial.filter(|serial| units.take(*serial));
    }

    let mut last = None;
    loop {
        let page = ledger.rejected_page(&coupon.id, last).await?;
        last = page.last().copied();
        if last.is_none() {
            break;
        }
        for id in page.into_iter().filter(IssuanceId::is_keyed) {
            staging.rejected(id).await?;
        }
    }
    let (next, free) = units.rest();
    for serial in free {
        staging.free(serial).await?;
    }
    staging.finish(building, coupon, next, issued).await
}

/// Which units are taken.
struct Units {
    taken: Vec<bool>,
    highest: u32,
}

impl Units {
    fn new(total: u32) -> Self {
        Units { taken: vec![false; total as usize + 1], highest: 0 }
    }

    /// Takes a unit, if there is one of this number and it is free.
    fn take(&mut self, serial: u32) -> bool {
        match self.taken.get_mut(serial as usize) {
            Some(taken) if serial > 0 && !*taken => {
                *taken = true;
                self.highest = self.highest.max(serial);
                true
            }
            _ => false,
        }
    }

    /// The serial to take next, and the free ones below it.
    fn rest(&self) -> (u32, impl Iterator<Item = u32>) {
        (self.highest + 1, (1..=self.highest).filter(|serial| !self.taken[*serial as usize]))
    }
}

/// What is written before the coupon is put in place.
struct Staging<'a> {
    partition: &'a Partition,
    keys: &'a EpochKeys,
    holders: Staged,
    free: Staged,
}

struct Staged {
    key: String,
    command: &'static str,
    waiting: Vec<Vec<u8>>,
    count: usize,
}

impl<'a> Staging<'a> {
    fn new(partition: &'a Partition, keys: &'a EpochKeys) -> Self {
        let (holders, free) = keys.staging(&crate::random_id());
        let staged = |key, command| Staged { key, command, waiting: Vec::new(), count: 0 };
        Staging { partition, keys, holders: staged(holders, "HSET"), free: staged(free, "SADD") }
    }

    async fn holder(
        &mut self,
        user: &UserId,
        mut ids: Vec<IssuanceId>,
        more: Option<Vec<IssuanceId>>,
    ) -> Result<(), Failure> {
        ids.extend(more.unwrap_or_default());
        let value = ids.iter().flat_map(|id| *id.as_bytes()).collect();
        self.holders.push(self.partition, [user.as_str().as_bytes().to_vec(), value]).await
    }

    async fn rejected(&mut self, id: IssuanceId) -> Result<(), Failure> {
        let field = [b"!", id.as_bytes().as_slice()].concat();
        self.holders.push(self.partition, [field, b"1".to_vec()]).await
    }

    async fn free(&mut self, serial: u32) -> Result<(), Failure> {
        self.free.push(self.partition, [serial.to_string().into_bytes()]).await
    }

    async fn finish(
        mut self,
        building: bool,
        coupon: &Coupon,
        next: u32,
        issued: u32,
    ) -> Result<Loaded, Failure> {
        self.holders.flush(self.partition).await?;
        self.free.flush(self.partition).await?;
        let mut call = Call::default();
        call.key(self.keys.certificate())
            .key(self.keys.coupon(&coupon.id))
            .key(self.keys.holders(&coupon.id))
            .key(self.keys.free(&coupon.id))
            .key(self.holders.key.clone())
            .key(self.free.key.clone());
        call.arg(self.keys.epoch().to_string())
            .arg(u8::from(building))
            .arg(self.holders.count)
            .arg(self.free.count);
        for (field, value) in [
            ("total", i64::from(coupon.total)),
            ("next", next.into()),
            ("settled", issued.into()),
            ("per_user", coupon.per_user.into()),
            ("starts_at", coupon.starts_at.as_millisecond()),
            ("ends_at", coupon.ends_at.as_millisecond()),
            ("paused", coupon.paused.into()),
            ("archived", coupon.archived.into()),
            ("generation", coupon.generation),
        ] {
            call.arg(field).arg(value);
        }
        call.arg("id").arg(coupon.id.as_str());
        let mut reply = self.partition.invoke(&LOAD, "load the coupon", &call).await?;
        match reply.text()?.as_str() {
            "ok" => match reply.text()?.as_str() {
                "loaded" => Ok(Loaded::Now),
                "present" => Ok(Loaded::Before),
                _ => Err(Failure::Redis {
                    operation: "load the coupon",
                    source: "what was staged has expired; try again".into(),
                }),
            },
            _ => Err(Failure::Uncertified),
        }
    }
}

impl Staged {
    async fn push<const N: usize>(
        &mut self,
        partition: &Partition,
        parts: [Vec<u8>; N],
    ) -> Result<(), Failure> {
        self.waiting.extend(parts);
        self.count += 1;
        if self.waiting.len() >= CHUNK { self.flush(partition).await } else { Ok(()) }
    }

    async fn flush(&mut self, partition: &Partition) -> Result<(), Failure> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut pipeline = redis::pipe();
        pipeline.cmd(self.command).arg(&self.key).arg(std::mem::take(&mut self.waiting)).ignore();
        pipeline.cmd("EXPIRE").arg(&self.key).arg(STAGING_EXPIRES_SECS).ignore();
        pipeline
            .query_async::<()>(&mut partition.connection())
            .await
            .map_err(Failure::redis("stage the coupon"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_below_the_highest_taken_one_are_free_and_the_next_follows_it() {
        let mut units = Units::new(10);
        assert!(units.take(2) && units.take(5));
        assert!(!units.take(5) && !units.take(0) && !units.take(11));
        let (next, free) = units.rest();
        assert_eq!(next, 6);
        assert_eq!(free.collect::<Vec<_>>(), [1, 3, 4]);
    }
}
