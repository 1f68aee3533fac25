//! Counts reservations and outcomes, a batch at a time.

use std::time::Instant;

use super::Outcome;
use super::reserve::Reserved;
use super::settle::{Settled, Settlement};
use crate::{Failure, metrics};

/// Counts the answers of a call of `reserve.lua` for this number of `requests`, which began at `started`.
pub(super) fn reserved(started: Instant, requests: usize, answers: &Result<Vec<Reserved>, Failure>) {
    metrics::RESERVE_SECONDS.record(started.elapsed());
    metrics::RESERVE_BATCH.record(requests as f64);
    for answer in answers.iter().flatten() {
        match answer {
            Reserved::Accepted(_) => metrics::ACCEPTED.increment(1),
            Reserved::Replayed(_) | Reserved::ReplayIssued(_) | Reserved::ReplayRejected(_) => {
                metrics::REPLAYED.increment(1);
            }
            Reserved::Dry => metrics::DRY.increment(1),
            refused => {
                if let Some(code) = refused.code() {
                    metrics::REFUSED.count(code.as_str());
                }
            }
        }
    }
}

/// Counts the outcomes of a call of `settle.lua`, which began at `started`. They are counted here, and not at the
/// insert, because the guard lets each issuance through once, also where a worker adopts the decision of one that
/// died.
pub(super) fn settled(started: Instant, decided: &[Settlement], answers: &Result<Vec<Settled>, Failure>) {
    metrics::SETTLE_SECONDS.record(started.elapsed());
    let Ok(answers) = answers else { return };
    for (settlement, answer) in decided.iter().zip(answers) {
        match (answer, settlement.decision.outcome) {
            (Settled::Now, Outcome::Issued { .. }) => metrics::ISSUED.increment(1),
            (Settled::Now, Outcome::Rejected { reason, .. })
                if settlement.decision.user.share().is_none() =>
            {
                metrics::REJECTED.count(reason.as_str());
                metrics::ACCEPTED_NOT_ISSUED.increment(1);
            }
            (Settled::Now, Outcome::Moved { .. }) => metrics::MOVED.increment(1),
            // A unit was to be moved, and was not: nobody asked for it.
            (Settled::Now, Outcome::Rejected { .. })
            | (Settled::GuardedOff | Settled::AnotherEpoch | Settled::Unreadable, _) => {}
        }
    }
}
