//! Building a partition's Redis data again, under a new epoch, from the ledger and from what is still
//! in flight. Reads: the old epoch's in-flight hash, dead letters and stream, the ledger, the coupons. Writes:
//! keys of its own epoch, and the certificate, through guarded scripts. What is in flight is moved, not copied
//! (`move.lua`), so a recoverer that sleeps or dies leaves it in two epochs at worst, and garbage.
//!
//! An in-flight value that cannot be read is taken from its stream entry. Where that cannot be read either, it
//! is moved as it is, as a dead letter: what was accepted is in flight until it is decided.
//!
//! Only coupons with something in flight are loaded before the epoch is opened: the outage does not grow with
//! the number of coupons. The others, and those that could not be loaded, are loaded when a request
//! asks for them ([`super::Loader`]).

use std::collections::BTreeMap;

use futures::StreamExt;
use futures::stream;

use super::RecoveryStep;
use super::certificate::{ClosedInstance, OpenOutcome, open_outcome, restarted};
use super::coupon_state::{BuildContext, Destination, build_and_place};
use super::load::LOADS_AT_ONCE;
use super::old_epochs::{self, GuardedWrite, epochs_in_flight};
use super::recover::{Recovery, RecoveryOutcome};
use super::refill::{RebuiltQueue, move_queue};
use super::staging::PlacementOutcome;
use super::survivors::{self, Survivor};
use crate::Failure;
use crate::ids::CouponId;
use crate::redis::keys::{EpochKeys, GROUP};
use crate::redis::{Call, LuaScript};
use crate::runtime::damage::damaged;

static OPEN: LuaScript = LuaScript::new(include_str!("open.lua"));

/// How much was built, for the script that opens it.
struct BuiltCounts {
    in_flight: usize,
    dead: usize,
    coupons: usize,
}

/// Builds the epoch of the lease on this Redis, after `last` was open, and opens it.
pub(super) async fn rebuild(
    recovery: &Recovery<'_>,
    last: Option<EpochKeys>,
    on: &ClosedInstance,
) -> Result<RecoveryOutcome, Failure> {
    let Recovery { partition, ledger, lease, progress, .. } = recovery;
    let keys = EpochKeys::new(partition.id(), lease.epoch);
    let old = match last {
        Some(last) => vec![last],
        // The certificate is gone. Where it alone is, what was in flight is still there.
        None => epochs_in_flight(partition).await?,
    };
    let mut found = survivors::read(partition, &old).await?;
    let taken = found.take_from_streams(partition, &old).await?;
    if found.keep(partition, &keys, &old, &taken).await? == GuardedWrite::Superseded {
        return Ok(RecoveryOutcome::Superseded);
    }
    // All that is read by now goes first: else the data must fit twice, and each failed attempt adds another
    // copy. From here on the old epoch cannot be certified any more.
    if old_epochs::make_uncertifiable(partition, &keys, &old).await? == GuardedWrite::Superseded {
        return Ok(RecoveryOutcome::Superseded);
    }
    let mut from: Vec<String> = old.iter().flat_map(|old| [old.in_flight(), old.dead()]).collect();
    let outcome: Vec<String> = from.iter().cloned().chain([keys.prefix().to_owned()]).collect();
    if old_epochs::delete_all_but(partition, &keys, &outcome).await? == GuardedWrite::Superseded {
        return Ok(RecoveryOutcome::Superseded);
    }

    from.extend(found.take_set_aside(partition).await?);
    progress(&RecoveryStep::Read { in_flight: found.survivors.len() });
    let decided = found.leave_out_decided(ledger).await?;
    progress(&RecoveryStep::Sorted { undecided: found.survivors.len() });

    let (queue, coupons) = place_coupons(recovery, &keys, found.survivors).await?;
    let mut queue = RebuiltQueue { survivors: queue, damaged: found.damaged };
    let service = recovery.services.get().await?;
    if move_queue(partition, &keys, &from, &mut queue, service, progress).await? == GuardedWrite::Superseded {
        return Ok(RecoveryOutcome::Superseded);
    }
    progress(&RecoveryStep::Built);
    let built = BuiltCounts { in_flight: queue.len(), dead: queue.dead(), coupons };
    if !recovery.remember(&keys, on).await? {
        return Ok(RecoveryOutcome::Superseded);
    }
    match open(recovery, &keys, &built).await? {
        OpenOutcome::Opened => {}
        OpenOutcome::Superseded => return Ok(RecoveryOutcome::Superseded),
        OpenOutcome::Restarted => return Err(restarted()),
        OpenOutcome::Incomplete(what) => {
            return Err(Failure::Stale {
                operation: "open the certificate",
                why: format!("what was built is not complete: {what}; it is built again"),
            });
        }
    }
    progress(&RecoveryStep::Opened);
    recovery.opened(&keys);
    old_epochs::delete_leftovers(partition, &keys).await;
    Ok(RecoveryOutcome::Rebuilt { survivors: built.in_flight, decided, coupons })
}

/// Loads the coupons with something in flight. Returns what is in flight, each with the unit that it keeps, and
/// how many coupons were loaded. One that cannot be loaded is left out: it stays closed alone, what is in flight
/// for it is kept, and the next request for it loads it with that.
async fn place_coupons(
    recovery: &Recovery<'_>,
    keys: &EpochKeys,
    undecided: Vec<Survivor>,
) -> Result<(Vec<Survivor>, usize), Failure> {
    let mut by_coupon: BTreeMap<CouponId, Vec<Survivor>> = BTreeMap::new();
    for survivor in undecided {
        by_coupon.entry(survivor.in_flight.coupon.clone()).or_default().push(survivor);
    }
    let ids: Vec<CouponId> = by_coupon.keys().cloned().collect();
    let mut terms = recovery.coupons.all_terms(&ids).await?;
    let of = ids.len();
    let loads = by_coupon.into_iter().enumerate().map(|(number, (id, mut survivors))| {
        let terms = terms.remove(&id).unwrap_or_else(|| {
            Err(Failure::Damaged { what: "the record of a coupon", why: format!("coupon {id} has none") })
        });
        async move {
            let context = BuildContext {
                partition: recovery.partition,
                keys,
                destination: Destination::Building,
                progress: recovery.progress,
                number: number + 1,
                of,
            };
            let placed = match terms {
                Ok(terms) => build_and_place(&context, recovery.ledger, &terms, &mut survivors).await,
                Err(failure) => Err(failure),
            };
            (id, placed, survivors)
        }
    });
    let mut loads = stream::iter(loads).buffer_unordered(LOADS_AT_ONCE);
    let (mut queue, mut placed) = (Vec::new(), 0);
    while let Some((id, placed_now, mut survivors)) = loads.next().await {
        match placed_now {
            Ok(PlacementOutcome::Now) => placed += 1,
            Ok(PlacementOutcome::Before | PlacementOutcome::Outdated) => return Err(Failure::Uncertified),
            // MongoDB may be busy, or this coupon a hard one: that is not the others' trouble. If it is away,
            // nothing is opened, for the lease cannot be renewed.
            Err(failure)
                if failure.is_of_one()
                    || matches!(failure, Failure::MongoDb { .. } | Failure::Panicked { .. }) =>
            {
                damaged!(
                    id; coupon = %id, in_flight = survivors.len(), error = failure.chain(),
                    "the coupon is left out: its requests are answered 503, and what is in flight for it waits, until \
                     its record can be read; then it is loaded with that"
                );
            }
            Err(failure) => return Err(failure),
        }
        queue.append(&mut survivors);
    }
    Ok((queue, placed))
}

async fn open(
    recovery: &Recovery<'_>,
    keys: &EpochKeys,
    built: &BuiltCounts,
) -> Result<OpenOutcome, Failure> {
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
        .arg(recovery.partition.announcing());
    open_outcome(recovery.partition.invoke(&OPEN, "open the certificate", &call).await?)
}
