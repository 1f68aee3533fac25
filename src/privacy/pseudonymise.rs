//! Redis's part of a deletion: what it counts for the user comes under the pseudonym.

use std::collections::HashMap;

use crate::Failure;
use crate::ids::{CouponId, IssuanceId};
use crate::redis::keys::EpochKeys;
use crate::redis::{EpochBound, LuaScript, Partition};
use crate::user::Deletion;

static PSEUDONYMISE: LuaScript = LuaScript::new(include_str!("pseudonymise.lua"));
static OUTDATE: LuaScript = LuaScript::new(include_str!("outdate.lua"));

/// Coupons in one script: of each, a user may hold a hundred units.
const BATCH: usize = 50;

/// Whether the user's name stays beside the pseudonym.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PseudonymiseMode {
    Copy,
    Move,
}

/// The outcome of bringing a user's issuances under the pseudonym; the later ones outweigh those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PseudonymiseOutcome {
    All,
    /// Redis counts more for the user than the ledger has issued.
    Left,
    /// Another epoch is open: begin again.
    AnotherEpoch,
    /// Something of the user is in flight.
    InFlight,
}

/// Brings the user's issuances of some loaded coupons under the pseudonym.
pub(super) async fn pseudonymise(
    partition: &Partition,
    keys: &EpochKeys,
    deletion: &Deletion,
    coupons: &[CouponId],
    issued: &HashMap<CouponId, Vec<IssuanceId>>,
    mode: PseudonymiseMode,
) -> Result<PseudonymiseOutcome, Failure> {
    let mut moved = PseudonymiseOutcome::All;
    // Where no coupon is known to be loaded, the script still tells whether these keys are of the open epoch: a process
    // that has just started may know an earlier one, in which nothing is loaded.
    let batches = coupons.chunks(BATCH).chain(coupons.is_empty().then_some(&[][..]));
    for coupons in batches {
        let called =
            partition.call_in_epoch(keys, &PSEUDONYMISE, "move what a deleted user holds", |keys, call| {
                call.key(keys.in_flight());
                call.arg(deletion.user.as_str()).arg(deletion.pseudonym.as_str());
                call.arg(if mode == PseudonymiseMode::Move { "move" } else { "copy" });
                for coupon in coupons {
                    let ids = issued.get(coupon).into_iter().flatten();
                    call.key(keys.holders(coupon));
                    call.arg(ids.flat_map(|id| *id.as_bytes()).collect::<Vec<u8>>());
                }
            });
        let EpochBound::Epoch(mut reply) = called.await? else {
            return Ok(PseudonymiseOutcome::AnotherEpoch);
        };
        match reply.text()?.as_str() {
            "done" => {}
            "left" => moved = PseudonymiseOutcome::Left,
            "in-flight" => return Ok(PseudonymiseOutcome::InFlight),
            _ => return Err(reply.wrong()),
        }
    }
    Ok(moved)
}

/// Makes loads that have read the ledger begin anew. `false` if another epoch is open.
pub(super) async fn outdate_loads(partition: &Partition, keys: &EpochKeys) -> Result<bool, Failure> {
    let called = partition.call_in_epoch(keys, &OUTDATE, "begin loads anew", |keys, call| {
        call.key(keys.counters());
    });
    Ok(matches!(called.await?, EpochBound::Epoch(_)))
}
