//! Suspicions, and reading them again: what merely moved while it was read is no damage.
//!
//! Everything about one suspicion is read from Redis in one script, then from the ledger, then from
//! Redis again; it is damage only if both readings say so. Where the order matters: a decision is in the
//! ledger before its in-flight value goes, and an id is in its user's dedupe before it is decided.

use std::time::Duration;

use super::finding::{Finding, FindingKind};
use super::{AuditAbort, Auditor};
use crate::failure::Unreadable;
use crate::ids::{CouponId, IssuanceId, Unit, UserId};
use crate::issuance::settle::Settlement;
use crate::issuance::{Decision, InFlight, Outcome};
use crate::redis::keys::EpochKeys;
use crate::redis::{EpochBound, LuaScript, Reply};

static RECHECK: LuaScript = LuaScript::new(include_str!("recheck.lua"));

/// Suspicions in one script.
const BATCH: usize = 200;
/// Between two confirmations of the same suspicions.
const PAUSE: Duration = Duration::from_millis(50);
/// A worker settles what it has decided well within this.
pub(super) const SETTLING: Duration = Duration::from_secs(1);

/// Something that might be damage.
#[derive(Debug, Clone)]
pub(super) struct Suspicion {
    pub kind: FindingKind,
    pub id: IssuanceId,
    /// Empty where it does not matter.
    pub user: Option<UserId>,
    pub unit: Option<Unit>,
    pub entry: Option<String>,
    /// Of two with one unit, the other one.
    pub second: Option<IssuanceId>,
}

impl Suspicion {
    pub(super) fn of(kind: FindingKind, id: IssuanceId) -> Self {
        Suspicion { kind, id, user: None, unit: None, entry: None, second: None }
    }
}

/// What Redis has about one suspicion, read at one moment.
struct SuspicionView {
    loaded: bool,
    /// Something is in flight under its id, be it readable or not.
    present: bool,
    in_flight: Option<InFlight>,
    counted: bool,
    entry_there: bool,
    free: bool,
    second: Option<InFlight>,
}

/// A suspicion that was confirmed, and what was seen with it.
#[derive(Debug, Clone)]
pub(super) struct ConfirmedSuspicion {
    pub suspicion: Suspicion,
    /// It may be another kind than was suspected.
    pub kind: FindingKind,
    pub in_flight: Option<InFlight>,
    pub decision: Option<Result<Decision, Unreadable>>,
    /// Whether the user's dedupe has it.
    counted: bool,
}

impl ConfirmedSuspicion {
    pub(super) fn finding(&self, coupon: &CouponId) -> Finding {
        let Suspicion { id, user, unit, entry, second, .. } = self.suspicion.clone();
        let in_flight = self.in_flight.as_ref();
        let strange = self.kind == FindingKind::InFlightLost && !self.counted;
        Finding {
            detail: match &self.decision {
                Some(Err(unreadable)) => Some(unreadable.to_string()),
                _ => strange.then(|| "its user's dedupe does not have it: nothing is put back".to_owned()),
            },
            unit: unit.or_else(|| in_flight.and_then(|held| held.unit)),
            issuances: std::iter::once(id).chain(second).collect(),
            user: user
                .or_else(|| in_flight.map(|held| held.user.clone()))
                .or_else(|| Some(self.decision.as_ref()?.as_ref().ok()?.user.clone())),
            entry,
            ..Finding::new(self.kind, Some(coupon))
        }
    }

    /// The settlement of a decision that Redis does not have.
    pub(super) fn settlement(&self) -> Option<Settlement> {
        let (in_flight, decision) = (self.in_flight.as_ref()?, self.decision.clone()?.ok()?);
        Some(Settlement { entry: in_flight.entry.clone(), of: 0, decision, holds: Vec::new() })
    }
}

impl Auditor {
    /// Reads suspicions about one coupon again, twice, and keeps what is damage each time.
    pub(super) async fn confirm(
        &self,
        keys: &EpochKeys,
        coupon: &CouponId,
        suspicions: Vec<Suspicion>,
    ) -> Result<Vec<ConfirmedSuspicion>, AuditAbort> {
        let left = self.still(keys, coupon, suspicions).await?;
        if left.is_empty() {
            return Ok(left);
        }
        let decided = left.iter().any(|confirmed| confirmed.kind == FindingKind::DecidedInFlight);
        tokio::time::sleep(if decided { SETTLING } else { PAUSE }).await;
        let again = left.into_iter().map(|confirmed| confirmed.suspicion).collect();
        self.still(keys, coupon, again).await
    }

    async fn still(
        &self,
        keys: &EpochKeys,
        coupon: &CouponId,
        suspicions: Vec<Suspicion>,
    ) -> Result<Vec<ConfirmedSuspicion>, AuditAbort> {
        let mut left = Vec::new();
        for batch in suspicions.chunks(BATCH) {
            let before = self.read_views(keys, coupon, batch).await?;
            let ids: Vec<_> = batch.iter().map(|suspicion| suspicion.id).collect();
            let mut decisions = self.ledger.decisions(&ids).await?;
            let after = self.read_views(keys, coupon, batch).await?;
            for ((suspicion, before), after) in batch.iter().zip(before).zip(after) {
                let decision = decisions.remove(&suspicion.id);
                let kind = judge(suspicion, &after, decision.as_ref());
                if let Some(kind) = kind
                    && judge(suspicion, &before, decision.as_ref()) == Some(kind)
                {
                    let suspicion = suspicion.clone();
                    let SuspicionView { in_flight, counted, .. } = after;
                    left.push(ConfirmedSuspicion { suspicion, kind, in_flight, decision, counted });
                }
            }
        }
        Ok(left)
    }

    async fn read_views(
        &self,
        keys: &EpochKeys,
        coupon: &CouponId,
        suspicions: &[Suspicion],
    ) -> Result<Vec<SuspicionView>, AuditAbort> {
        let called = self.partition.call_in_epoch(keys, &RECHECK, "read suspicions again", |keys, call| {
            call.key(keys.stream()).key(keys.in_flight()).key(keys.coupon(coupon));
            call.key(keys.holders(coupon)).key(keys.free(coupon));
            for suspicion in suspicions {
                call.arg(suspicion.id.as_bytes().as_slice())
                    .arg(suspicion.user.as_ref().map_or("", UserId::as_str))
                    .arg(suspicion.entry.as_deref().unwrap_or_default())
                    .arg(suspicion.unit.map_or(0, Unit::number))
                    .arg(suspicion.second.map(|id| id.as_bytes().to_vec()).unwrap_or_default());
            }
        });
        let EpochBound::Epoch(mut reply) = called.await? else { return Err(AuditAbort::AnotherEpoch) };
        // A coupon that was retired meanwhile has nothing in Redis that could be wrong.
        let loaded = reply.number()? == 1;
        suspicions.iter().map(|_| Ok(SuspicionView { loaded, ..view_of(reply.list()?)? })).collect()
    }
}

fn view_of(mut reply: Reply) -> Result<SuspicionView, AuditAbort> {
    let in_flight = |value: Vec<u8>| String::from_utf8(value).ok()?.parse().ok();
    let value = reply.bytes()?;
    Ok(SuspicionView {
        loaded: true,
        present: !value.is_empty(),
        in_flight: in_flight(value),
        counted: reply.number()? == 1,
        entry_there: reply.number()? == 1,
        free: reply.number()? == 1,
        second: in_flight(reply.bytes()?),
    })
}

/// Whether a record, readable or not, says that a unit was issued by it.
pub(super) fn is_issued(decision: &Result<Decision, Unreadable>) -> bool {
    match decision {
        Ok(decision) => matches!(decision.outcome, Outcome::Issued { .. }),
        Err(unreadable) => unreadable.unit.is_some(),
    }
}

/// What a suspicion is, by one reading of Redis and the ledger's decision.
fn judge(
    suspicion: &Suspicion,
    view: &SuspicionView,
    decision: Option<&Result<Decision, Unreadable>>,
) -> Option<FindingKind> {
    if !view.loaded {
        return None;
    }
    let in_flight = view.in_flight.as_ref();
    let holds = |held: Option<&InFlight>| {
        suspicion.unit.is_some() && held.is_some_and(|held| held.unit == suspicion.unit)
    };
    let issued = decision.is_some_and(is_issued);
    let moved = matches!(decision, Some(Ok(Decision { outcome: Outcome::Moved { .. }, .. })));
    let found = match suspicion.kind {
        FindingKind::RecordMissing | FindingKind::RejectionCounted if view.counted && !view.present => {
            return match decision {
                None => Some(FindingKind::RecordMissing),
                Some(Ok(Decision { outcome: Outcome::Rejected { .. }, .. })) => {
                    Some(FindingKind::RejectionCounted)
                }
                Some(_) => None,
            };
        }
        FindingKind::InFlightLost | FindingKind::EntryOrphaned if view.entry_there && !view.present => {
            return Some(if decision.is_some() {
                FindingKind::EntryOrphaned
            } else {
                FindingKind::InFlightLost
            });
        }
        // Of a user who is being deleted it may have got another name since it was read.
        FindingKind::RecordNotCounted => {
            let same =
                decision.and_then(|decision| Some(&decision.as_ref().ok()?.user)) == suspicion.user.as_ref();
            issued && same && !view.counted && !view.present
        }
        FindingKind::DecidedInFlight if decision.is_some_and(Result::is_err) && in_flight.is_some() => {
            return Some(FindingKind::RecordUnreadable);
        }
        FindingKind::DecidedInFlight => decision.is_some() && in_flight.is_some(),
        // Until it is settled, its unit may be free: settling takes it.
        FindingKind::SerialFreeAndIssued => (moved || issued && view.counted) && view.free && !view.present,
        FindingKind::SerialFreeAndInFlight => decision.is_none() && view.free && holds(in_flight),
        FindingKind::LendingCounted => decision.is_some() && view.counted && !view.present,
        FindingKind::SerialInFlightAndIssued => decision.is_none() && holds(in_flight),
        FindingKind::SerialInFlightTwice => {
            decision.is_none() && holds(in_flight) && holds(view.second.as_ref())
        }
        _ => false,
    };
    found.then_some(suspicion.kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PartitionId;
    use crate::issuance::Reason;
    use jiff::Timestamp;

    fn suspicion(kind: FindingKind) -> Suspicion {
        let id = IssuanceId::generate(PartitionId::ONE);
        let user = Some("u".parse().unwrap());
        Suspicion { unit: Unit::native(3), user, ..Suspicion::of(kind, id) }
    }

    /// What Redis has of a unit that is settled and counted.
    fn settled() -> SuspicionView {
        SuspicionView {
            loaded: true,
            present: false,
            in_flight: None,
            counted: true,
            entry_there: false,
            free: false,
            second: None,
        }
    }

    fn in_flight(serial: u32) -> SuspicionView {
        let held: InFlight = format!("1-1 {serial} 1 1000 1 c u").parse().unwrap();
        SuspicionView { present: true, in_flight: Some(held.clone()), second: Some(held), ..settled() }
    }

    fn decided(outcome: Outcome) -> Result<Decision, Unreadable> {
        let (coupon, user) = ("c".parse().unwrap(), "u".parse().unwrap());
        let id = IssuanceId::generate(PartitionId::ONE);
        let at = Timestamp::UNIX_EPOCH;
        Ok(Decision { id, coupon, user, outcome, accepted_at: at, decided_at: at })
    }

    #[test]
    fn a_suspicion_is_damage_only_as_redis_and_the_ledger_have_it_together() {
        use FindingKind::*;
        let issued = decided(Outcome::Issued { unit: Unit::native(3).unwrap(), nth: 1 });
        let rejected = decided(Outcome::Rejected { reason: Reason::SoldOut, unit: None, lost: false });
        let uncounted = || SuspicionView { counted: false, ..settled() };
        let free = |view| SuspicionView { free: true, ..view };
        let queued = || SuspicionView { entry_there: true, ..settled() };
        for (suspected, view, decision, kind) in [
            (RecordMissing, settled(), None, Some(RecordMissing)),
            (RecordMissing, settled(), Some(&issued), None),
            (RecordMissing, settled(), Some(&rejected), Some(RejectionCounted)),
            (RecordMissing, in_flight(3), None, None),
            (RecordMissing, uncounted(), None, None),
            (EntryOrphaned, queued(), None, Some(InFlightLost)),
            (EntryOrphaned, queued(), Some(&rejected), Some(EntryOrphaned)),
            (EntryOrphaned, settled(), None, None),
            (RecordNotCounted, uncounted(), Some(&issued), Some(RecordNotCounted)),
            (RecordNotCounted, settled(), Some(&issued), None),
            (RecordNotCounted, uncounted(), Some(&rejected), None),
            (DecidedInFlight, in_flight(3), Some(&issued), Some(DecidedInFlight)),
            (DecidedInFlight, in_flight(3), None, None),
            (DecidedInFlight, settled(), Some(&issued), None),
            (SerialFreeAndIssued, free(settled()), Some(&issued), Some(SerialFreeAndIssued)),
            (SerialFreeAndIssued, free(in_flight(3)), Some(&issued), None),
            (SerialFreeAndInFlight, free(in_flight(3)), None, Some(SerialFreeAndInFlight)),
            (SerialFreeAndInFlight, free(in_flight(4)), None, None),
            (SerialInFlightAndIssued, in_flight(3), None, Some(SerialInFlightAndIssued)),
            (SerialInFlightTwice, in_flight(3), None, Some(SerialInFlightTwice)),
            (SerialInFlightTwice, in_flight(4), None, None),
        ] {
            let suspicion = suspicion(suspected);
            assert_eq!(judge(&suspicion, &view, decision), kind, "{suspected:?} with {decision:?}");
            let retired = SuspicionView { loaded: false, ..view };
            assert_eq!(judge(&suspicion, &retired, decision), None, "{suspected:?} of a retired coupon");
        }
    }
}
