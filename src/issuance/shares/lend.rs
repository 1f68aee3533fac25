//! Taking free units of one share for another.

use crate::Failure;
use crate::ids::{CouponId, IssuanceId, PartitionId, Unit, UserId};
use crate::issuance::reserve::{QueueEntries, time};
use crate::issuance::settle::Settlement;
use crate::issuance::{Decision, Outcome};
use crate::redis::{LuaScript, Partition};

static LEND: LuaScript = LuaScript::promised(include_str!("lend.lua"));

/// Units in one call: a script must stay short.
const UNITS_MAX: usize = 256;

/// A unit that is lent: the move to commit, and the stream entry that a worker finds it by.
#[derive(Debug, Clone)]
pub struct Lent {
    pub entry: String,
    /// How many issuances the entry holds.
    pub of: usize,
    pub decision: Decision,
}

impl Lent {
    /// The unit, as the donor knows it.
    pub(super) fn unit(&self) -> Option<Unit> {
        match self.decision.outcome {
            Outcome::Moved { unit, .. } => Some(unit),
            Outcome::Issued { .. } | Outcome::Rejected { .. } => None,
        }
    }
}

impl From<Lent> for Settlement {
    fn from(lent: Lent) -> Self {
        let Lent { entry, of, decision } = lent;
        Settlement { entry, of, decision, holds: Vec::new() }
    }
}

/// Lends units of the share of `donor` to the share of another partition: half of what is free, at most 256.
///
/// # Errors
///
/// If Redis fails, or its data is not certified. That leaves open what is lent; workers go on with it.
pub async fn lend(
    donor: &Partition,
    coupon: &CouponId,
    to: PartitionId,
    queue_entries: QueueEntries,
) -> Result<Vec<Lent>, Failure> {
    let receiver = UserId::of_share(to);
    let ids: Vec<IssuanceId> = (0..UNITS_MAX).map(|_| IssuanceId::generate(donor.id())).collect();
    let call = donor.call(&LEND, "lend units", |keys, call| {
        call.key(keys.stream()).key(keys.in_flight()).key(keys.counters());
        call.key(keys.coupon(coupon)).key(keys.holders(coupon)).key(keys.free(coupon));
        call.arg(u8::from(queue_entries == QueueEntries::OfMany)).arg(receiver.as_str());
        for id in &ids {
            call.arg(id.as_bytes().as_slice());
        }
    });
    let mut reply = call.await?;
    let now = time(&mut reply)?;
    if reply.text()? != "1" {
        return Ok(Vec::new());
    }
    let mut lent = Vec::new();
    for id in ids {
        if reply.len() == 0 {
            break;
        }
        let (entry, unit) = (reply.text()?, reply.text()?.parse::<Unit>().map_err(|_| reply.wrong())?);
        let decision = Decision {
            id,
            coupon: coupon.clone(),
            user: receiver.clone(),
            outcome: Outcome::Moved { unit, to },
            accepted_at: now,
            decided_at: crate::mongo::now_in_milliseconds(),
        };
        lent.push(Lent { entry, of: 1, decision });
    }
    if queue_entries == QueueEntries::OfMany {
        let of = lent.len();
        lent.iter_mut().for_each(|lent| lent.of = of);
    }
    Ok(lent)
}
