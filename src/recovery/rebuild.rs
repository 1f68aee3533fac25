//! Building a partition's Redis data again, under a new epoch, from the ledger and from what is still
//! in flight. Reads: the old epoch's in-flight hash and dead letters, the ledger, the coupons. Writes:
//! keys of its own epoch only, and the certificate through a guarded script, so a recoverer that sleeps
//! or dies leaves nothing but garbage behind.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jiff::Timestamp;
use redis::Script;

use super::Step;
use super::certificate::{ClosedOn, Opening, opening, restarted};
use super::forget::{self, Forgotten, epochs_in_flight};
use super::picture::{Place, load_into};
use super::recover::{Recovered, Recovery};
use super::refill::write_queue;
use super::survivors::{self, Survivor};
use crate::Failure;
use crate::coupon::CouponId;
use crate::keys::{EpochKeys, GROUP};
use crate::partition::{Call, script};

static OPEN: LazyLock<Script> = LazyLock::new(|| script(include_str!("open.lua")));

/// How much was built, for the script that opens it.
struct Built {
    in_flight: usize,
    dead: usize,
    coupons: usize,
}

/// Builds the epoch of the lease on this Redis, after `last` was open, and opens it.
pub(super) async fn rebuild(
    recovery: &Recovery<'_>,
    last: Option<EpochKeys>,
    on: &ClosedOn,
) -> Result<Recovered, Failure> {
    let Recovery { partition, ledger, lease, watch, .. } = recovery;
    let keys = EpochKeys::new(partition.id(), lease.epoch);
    let old = match last {
        Some(last) => vec![last],
        // The certificate is gone. Where it alone is, what was in flight is still there.
        None => epochs_in_flight(partition).await?,
    };
    // All that is not read here goes first: else the data must fit twice, and each failed attempt adds another
    // copy. From here on the old epoch cannot be certified any more.
    if forget::unfit(partition, &keys, &old).await? == Forgotten::Superseded {
        return Ok(Recovered::Superseded);
    }
    let in_flight = old.iter().flat_map(|old| [old.in_flight(), old.dead()]);
    let kept: Vec<String> = in_flight.chain([keys.prefix().to_owned()]).collect();
    if forget::all_but(partition, &keys, &kept).await? == Forgotten::Superseded {
        return Ok(Recovered::Superseded);
    }

    let found = survivors::read(partition, &old).await?;
    watch(&Step::Read { in_flight: found.survivors.len() });
    found.keep_damaged(partition).await?;
    let ids: Vec<_> = found.survivors.iter().map(|survivor| survivor.id).collect();
    let decisions = survivors::decisions(ledger, &ids).await?;
    let mut undecided = found.survivors;
    undecided.retain(|survivor| !decisions.contains_key(&survivor.id));
    watch(&Step::Sorted { undecided: undecided.len() });

    let (mut queue, coupons) = place_coupons(recovery, &keys, undecided).await?;
    let service = recovery.services.get().await?;
    write_queue(partition, &keys, &mut queue, service, watch).await?;
    watch(&Step::Built);
    let dead = queue.iter().filter(|survivor| survivor.dead.is_some()).count();
    let built = Built { in_flight: queue.len(), dead, coupons };
    if !recovery.remember(&keys, on).await? {
        return Ok(Recovered::Superseded);
    }
    match open(recovery, &keys, &built).await? {
        Opening::Opened => {}
        Opening::Superseded => return Ok(Recovered::Superseded),
        Opening::Restarted => return Err(restarted()),
        Opening::Incomplete(what) => {
            return Err(Failure::Redis {
                operation: "open the certificate",
                source: format!("what was built is not complete: {what}; it is built again").into(),
            });
        }
    }
    watch(&Step::Opened);
    recovery.opened(&keys);
    forget::leftovers(partition, &keys).await;
    Ok(Recovered::Rebuilt { survivors: built.in_flight, decided: decisions.len(), coupons })
}

/// Loads the current coupons, and those with something in flight. Returns what is in flight, each with
/// the unit that it keeps, and how many coupons there are.
async fn place_coupons(
    recovery: &Recovery<'_>,
    keys: &EpochKeys,
    undecided: Vec<Survivor>,
) -> Result<(Vec<Survivor>, usize), Failure> {
    let mut by_coupon: BTreeMap<CouponId, Vec<Survivor>> = BTreeMap::new();
    for coupon in recovery.coupons.current(Timestamp::now()).await? {
        by_coupon.insert(coupon.id, Vec::new());
    }
    for survivor in undecided {
        by_coupon.entry(survivor.in_flight.coupon.clone()).or_default().push(survivor);
    }
    let of = by_coupon.len();
    let (mut queue, mut placed) = (Vec::new(), 0);
    for (number, (id, survivors)) in by_coupon.iter_mut().enumerate() {
        let placed_now = match recovery.coupons.get(id).await {
            Ok(Some(coupon)) => {
                let place = Place {
                    partition: recovery.partition,
                    keys,
                    building: true,
                    retired: 0,
                    watch: recovery.watch,
                    number: number + 1,
                    of,
                };
                load_into(&place, recovery.ledger, &coupon, survivors).await.map(drop)
            }
            Ok(None) => Err(Failure::Damaged { what: "the record of a coupon", why: "it is gone".into() }),
            Err(failure) => Err(failure),
        };
        match placed_now {
            Ok(()) => placed += 1,
            // It stays closed alone, not all the others with it: what is in flight for it is kept.
            Err(damaged) if damaged.is_damage() => {
                tracing::error!(coupon = %id, error = damaged.chain(), "the coupon cannot be loaded; it is left out");
            }
            Err(failure) => return Err(failure),
        }
        queue.append(survivors);
    }
    Ok((queue, placed))
}

async fn open(recovery: &Recovery<'_>, keys: &EpochKeys, built: &Built) -> Result<Opening, Failure> {
    let mut call = Call::default();
    call.key(keys.certificate())
        .key(keys.stream())
        .key(keys.in_flight())
        .key(keys.dead())
        .key(keys.loaded())
        .key(keys.built());
    call.arg(recovery.lease.term)
        .arg(keys.epoch().to_string())
        .arg(GROUP)
        .arg(built.in_flight)
        .arg(built.dead)
        .arg(built.coupons)
        .arg(&recovery.lease.ledger)
        .arg(recovery.partition.outcome_channel());
    opening(recovery.partition.invoke(&OPEN, "open the certificate", &call).await?)
}
