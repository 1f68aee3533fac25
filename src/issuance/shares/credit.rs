//! Giving units to the share that they were moved to.

use std::collections::HashMap;

use crate::Failure;
use crate::ids::{CouponId, IssuanceId, PartitionId, Unit};
use crate::issuance::{Decision, Outcome};
use crate::redis::{LuaScript, Partition, Partitions};

static CREDIT: LuaScript = LuaScript::new(include_str!("credit.lua"));

/// Units in one call: a script must stay short.
const BATCH: usize = 500;

/// What became of moves whose units a share was to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Credited {
    /// It has them; this many got there now, and the others before.
    Here(u64),
    /// The coupon is not loaded there: a load finds the moves in the ledger.
    NotLoaded,
}

/// Gives units to the share of a partition. `moves`: the id of each move, which the ledger has, and the unit as this
/// share knows it. It may be repeated.
///
/// # Errors
///
/// If Redis fails, its data is not certified, or what it holds of the coupon is damaged.
pub(crate) async fn credit(
    partition: &Partition,
    coupon: &CouponId,
    moves: &[(IssuanceId, Unit)],
) -> Result<Credited, Failure> {
    let mut credited = 0;
    for batch in moves.chunks(BATCH) {
        let call = partition.call(&CREDIT, "credit moved units", |keys, call| {
            call.key(keys.coupon(coupon)).key(keys.holders(coupon)).key(keys.free(coupon));
            for (id, unit) in batch {
                call.arg(id.as_bytes().as_slice()).arg(unit.number());
            }
        });
        let mut reply = call.await?;
        if reply.text()? != "1" {
            return Ok(Credited::NotLoaded);
        }
        credited += reply.number()?;
    }
    Ok(Credited::Here(credited))
}

/// Gives the units that were moved by some decisions to their shares, as far as these answer: what they do not get
/// now, their audits bring them, and whoever asks for units there.
pub async fn credit_moved<'a>(partitions: &Partitions, decisions: impl IntoIterator<Item = &'a Decision>) {
    let mut moves: HashMap<(PartitionId, &CouponId), Vec<(IssuanceId, Unit)>> = HashMap::new();
    for decision in decisions {
        if let Outcome::Moved { unit, to } = decision.outcome
            && let Some(unit) = unit.moved()
        {
            moves.entry((to, &decision.coupon)).or_default().push((decision.id, unit));
        }
    }
    for ((to, coupon), moves) in moves {
        let credited = match partitions.get(to) {
            Ok(receiver) => credit(receiver, coupon, &moves).await,
            Err(unknown) => Err(unknown),
        };
        if let Err(failure) = credited {
            tracing::debug!(
                %coupon, partition = %to, units = moves.len(), error = failure.chain(),
                "units were moved and cannot be credited now; an audit does it"
            );
        }
    }
}
