//! Discards dead letters: inserts the rejection of each into the ledger, adopts a decision that was made before, and
//! settles.

use futures::future::join_all;

use crate::Failure;
use crate::ids::IssuanceId;
use crate::issuance::ledger::Inserted;
use crate::issuance::settle::{Settled, Settlement, settle};
use crate::issuance::{Decision, InFlight, Ledger, Outcome, Reason};
use crate::queue::repair::{RawFlight, in_stream, replace};
use crate::redis::Partition;
use crate::redis::keys::EpochKeys;

const OPERATION: &str = "discard a dead letter";
/// Stands for the stream entry of a dead letter that does not name it.
const NO_ENTRY: &str = "0-0";

/// Rejects a dead letter for good, and gives its unit back; or adopts the decision that was made before. It does the
/// same with an issuance whose in-flight value cannot be read. `None` if there is none with this id.
///
/// # Errors
///
/// If Redis or MongoDB fails; [`Failure::Damaged`] if it was decided now and could not be settled.
pub async fn discard(
    partition: &Partition,
    ledger: &Ledger,
    id: IssuanceId,
) -> Result<Option<Decision>, Failure> {
    match discard_all(partition, ledger, &[id]).await?.pop() {
        // Until MongoDB takes it, which an operator sees to.
        Some(Err(Failure::Refused { source, .. })) => Err(undecided(source.to_string())),
        answer => answer.unwrap_or(Ok(None)),
    }
}

/// The same with at most [`BATCH_MAX`](super::BATCH_MAX) dead letters, together. It answers for each, in their order.
///
/// # Errors
///
/// If Redis or MongoDB fails to do what all of them share. That leaves open which were discarded; it may be repeated.
pub async fn discard_all(
    partition: &Partition,
    ledger: &Ledger,
    ids: &[IssuanceId],
) -> Result<Vec<Result<Option<Decision>, Failure>>, Failure> {
    let keys = partition.keys();
    let rejections = join_all(ids.iter().map(|id| rejection(partition, &keys, ledger, *id))).await;
    let (mut answers, mut undecided) = (Vec::with_capacity(ids.len()), Vec::new());
    for (place, rejection) in rejections.into_iter().enumerate() {
        // What is in `undecided` gets its answer below.
        answers.push(rejection.map(|found| {
            undecided.extend(found.map(|(entry, decision)| (place, entry, decision)));
            None
        }));
    }
    if undecided.is_empty() {
        return Ok(answers);
    }
    let rejected: Vec<Decision> = undecided.iter().map(|(.., decision)| decision.clone()).collect();
    let mut settlements = Vec::with_capacity(rejected.len());
    for ((place, entry, _), decided) in undecided.into_iter().zip(decide(ledger, &rejected).await?) {
        if let Ok(decision) = &decided {
            let decision = decision.clone();
            settlements.push((place, Settlement { entry, of: 0, decision, holds: Vec::new() }));
        }
        answers[place] = decided.map(Some);
    }
    if settlements.is_empty() {
        return Ok(answers);
    }
    let (places, settlements): (Vec<usize>, Vec<Settlement>) = settlements.into_iter().unzip();
    for (place, settled) in places.into_iter().zip(settle(partition, &keys, &settlements).await?) {
        match settled {
            Settled::Now | Settled::GuardedOff => {}
            Settled::Unreadable => {
                answers[place] = Err(Failure::Damaged {
                    what: "the in-flight value of this issuance",
                    why: format!("issuance {}, decided now", ids[place]),
                });
            }
            Settled::AnotherEpoch => answers[place] = Err(Failure::Uncertified),
        }
    }
    Ok(answers)
}

/// Inserts rejections into the ledger. Returns the decision that stands about each.
async fn decide(ledger: &Ledger, rejected: &[Decision]) -> Result<Vec<Result<Decision, Failure>>, Failure> {
    let inserted = ledger.insert(rejected).await?;
    let both = || rejected.iter().zip(&inserted);
    let conflicts = both().filter(|(_, inserted)| **inserted == Inserted::Conflict);
    let conflicts: Vec<IssuanceId> = conflicts.map(|(decision, _)| decision.id).collect();
    let mut winners = ledger.decisions(&conflicts).await?;
    let decided = both().map(|(decision, inserted)| match inserted {
        Inserted::Decided => Ok(decision.clone()),
        // The first decision stands.
        Inserted::Conflict => match winners.remove(&decision.id) {
            Some(winner) => Ok(winner?),
            None => Err(undecided("its decision is not visible yet".into())),
        },
        Inserted::Refused(why) => Err(Failure::Refused { operation: OPERATION, source: why.clone().into() }),
        Inserted::Unknown(why) => Err(undecided(why.clone())),
    });
    Ok(decided.collect())
}

/// The rejection of a dead letter, and its stream entry. `None` if there is none with this id.
async fn rejection(
    partition: &Partition,
    keys: &EpochKeys,
    ledger: &Ledger,
    id: IssuanceId,
) -> Result<Option<(String, Decision)>, Failure> {
    let Some(in_flight) = repaired(partition, keys, ledger, id).await? else { return Ok(None) };
    // A unit that another record holds is lost: giving it back would hand it out twice.
    let lost = match in_flight.unit {
        Some(unit) => ledger.is_lost(&in_flight.coupon, unit, id).await?,
        None => false,
    };
    let decision = Decision {
        id,
        coupon: in_flight.coupon,
        user: in_flight.user,
        outcome: Outcome::Rejected { reason: Reason::Discarded, unit: in_flight.unit, lost },
        accepted_at: in_flight.accepted_at,
        decided_at: crate::mongo::now_in_milliseconds(),
    };
    Ok(Some((in_flight.entry, decision)))
}

/// The in-flight value of a dead letter. One that cannot be read is replaced from the stream entry, or by as much as
/// it still says. `None` if there is neither a dead letter with this id nor an in-flight value that cannot be read.
async fn repaired(
    partition: &Partition,
    keys: &EpochKeys,
    ledger: &Ledger,
    id: IssuanceId,
) -> Result<Option<InFlight>, Failure> {
    let raw = RawFlight::read(partition, keys, id).await?;
    match raw.in_flight() {
        Some(held) => return Ok(raw.dead.is_some().then_some(held)),
        None if raw.dead.is_none() && raw.value.is_none() => return Ok(None),
        None => {}
    }
    let entry = raw.entry().unwrap_or(NO_ENTRY);
    let held = match in_stream(partition, keys, id, entry).await? {
        Some(held) => held,
        None => InFlight::salvaged(entry, raw.value.as_deref().unwrap_or_default()),
    };
    replace(partition, keys, ledger, id, &raw, held).await
}

fn undecided(why: String) -> Failure {
    Failure::Contended { operation: OPERATION, why }
}
