//! The properties that hold in every state, and the situations that a setting must reach.

use stateright::Property;

use super::Protocol;
use super::ledger::{Reason, Record};
use super::state::{Coupon, Data, IDS_MAX, Set, State};

pub const NEVER_OVERSOLD: &str = "no more is issued than there is";
pub const NEVER_TWICE: &str = "nobody holds more than the limit";
pub const NEVER_LOST: &str = "what was accepted is in flight or decided";
pub const ONE_OUTCOME: &str = "an outcome that was told stands";
pub const ONE_HOLDER: &str = "a unit in flight is nobody else's and not free";
pub const ACCOUNTED_FOR: &str = "each unit is free, reserved or issued";
pub const SETTLED_ONCE: &str = "what is settled is counted once";
pub const AT_REST: &str = "at rest the accounts agree";
pub const TRULY_INTACT: &str = "what is certified again is intact";

/// The properties of every setting.
pub fn always() -> Vec<Property<Protocol>> {
    vec![
        Property::always(NEVER_OVERSOLD, never_oversold),
        Property::always(NEVER_TWICE, never_twice),
        Property::always(NEVER_LOST, never_lost),
        Property::always(ONE_OUTCOME, one_outcome),
        Property::always(ONE_HOLDER, one_holder),
        Property::always(ACCOUNTED_FOR, accounted_for),
        Property::always(SETTLED_ONCE, settled_once),
        Property::always(AT_REST, at_rest),
        Property::always(TRULY_INTACT, |_, state: &State| !state.history.wrongly_intact),
    ]
}

fn never_oversold(_: &Protocol, state: &State) -> bool {
    let ledger = &state.ledger;
    ledger.issued().len() <= ledger.total
        && ledger.issued_records().all(|(_, serial, _)| serial <= ledger.total)
}

fn never_twice(protocol: &Protocol, state: &State) -> bool {
    state.ledger.holdings(protocol).iter().all(|held| *held <= protocol.per_user)
}

/// While nothing is certified the answer is 503, so no user is told that a request is lost.
fn never_lost(_: &Protocol, state: &State) -> bool {
    let Some(data) = state.open_data() else { return true };
    let decided = state.ledger.issued().union(state.ledger.rejected());
    state.history.accepted.without(state.history.lost).without(decided).without(data.flying()).is_empty()
}

fn one_outcome(_: &Protocol, state: &State) -> bool {
    let (history, ledger) = (&state.history, &state.ledger);
    history.told_issued.and(history.told_rejected).is_empty()
        && history.told_issued.without(ledger.issued()).is_empty()
        && history.told_rejected.and(ledger.issued()).is_empty()
}

fn one_holder(_: &Protocol, state: &State) -> bool {
    let Some(data) = state.open_data() else { return true };
    let free = data.coupon.map(|coupon| coupon.free_units()).unwrap_or_default();
    let flying: Vec<_> =
        data.in_flight.iter().flatten().map(|flight| flight.serial).filter(|s| *s > 0).collect();
    let units: Set = flying.iter().copied().collect();
    usize::from(units.len()) == flying.len() && units.and(free).is_empty()
}

/// As long as Redis never lost data, every unit is in exactly one place: free, or in flight, or issued
/// (one that is decided and not settled is in flight for the very id that it is issued to).
///
/// After a loss, no unit is nowhere. One may be in two places, if a late insert has it, which Redis
/// could not know: then it may be free, or in flight for another, until the audit has taken it out of the
/// free ones, and the other has met the ledger and got a fresh one. [`AT_REST`] says that this ends.
fn accounted_for(_: &Protocol, state: &State) -> bool {
    let Some((data, coupon)) = loaded(state) else { return true };
    let free = coupon.free_units();
    (1..=coupon.total).all(|unit| {
        let owner = state.ledger.issued_records().find(|(_, serial, _)| *serial == unit).map(|(id, ..)| id);
        let flying =
            (0..).zip(&data.in_flight).find(|(_, held)| held.is_some_and(|held| held.serial == unit));
        let flying = flying.map(|(id, _)| id);
        if !state.history.data_lost {
            return match (free.contains(unit), flying, owner) {
                (true, None, None) => true,
                (false, None, Some(_)) | (false, Some(_), None) => true,
                (false, Some(flying), Some(owner)) => flying == owner,
                (false, None, None) | (true, ..) => false,
            };
        }
        free.contains(unit) || flying.is_some() || owner.is_some()
    })
}

/// As long as Redis never lost data, what is issued and not in flight any more. After a loss, those of
/// them that Redis knows: the audit will count the others.
fn settled_once(_: &Protocol, state: &State) -> bool {
    let Some((data, coupon)) = loaded(state) else { return true };
    let settled = state.ledger.issued().without(data.flying());
    coupon.settled == if state.history.data_lost { settled.and(data.known()).len() } else { settled.len() }
}

/// The open data, if the coupon is in it.
fn loaded(state: &State) -> Option<(&Data, Coupon)> {
    state.open_data().and_then(|data| Some((data, data.coupon?)))
}

/// When no process has anything to do any more, everything is done.
fn at_rest(protocol: &Protocol, state: &State) -> bool {
    if protocol.has_work(state) {
        return true;
    }
    let idle = state.workers.iter().all(|worker| worker.is_idle())
        && state.recoverers.iter().all(|recoverer| recoverer.is_idle())
        && state.loaders.iter().all(|loader| loader.is_idle());
    let Some(data) = state.open_data() else { return false };
    if !idle || data.stream.iter().any(Option::is_some) || !data.flying().is_empty() {
        return false;
    }
    let Some(coupon) = data.coupon else { return data.known().is_empty() };
    let issued = state.ledger.issued();
    let units: Set = state.ledger.issued_records().map(|(_, serial, _)| serial).collect();
    let free = coupon.free_units();
    data.known() == issued
        && coupon.settled == issued.len()
        && coupon.total == state.ledger.total
        && free.and(units).is_empty()
        && free.union(units) == (1..=coupon.total).collect()
}

/// A situation that a setting must reach. Without these, a setting in which nothing happens would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Witness {
    SoldOut,
    Rejected,
    RejectedAsAlreadyIssued,
    AnotherEpoch,
    SameEpochAgain,
    LateInsert,
    Lost,
    WithoutUnit,
    Reassigned,
}

impl Witness {
    pub fn property(self) -> Property<Protocol> {
        match self {
            Witness::SoldOut => Property::sometimes("all is issued", |_, state: &State| {
                state.ledger.issued().len() == state.ledger.total
            }),
            Witness::Rejected => Property::sometimes("a rejection is settled", |_, state: &State| {
                !state.history.told_rejected.is_empty()
            }),
            Witness::RejectedAsAlreadyIssued => {
                Property::sometimes("somebody is rejected as already issued", |_, state: &State| {
                    let already = |record| {
                        matches!(record, Some(Record::Rejected { reason: Reason::AlreadyIssued, .. }))
                    };
                    (0..IDS_MAX as u8).any(|id| already(state.ledger.get(id)))
                })
            }
            Witness::AnotherEpoch => Property::sometimes("another epoch is open", |_, state: &State| {
                state.open_epoch().is_some_and(|epoch| epoch > 1)
            }),
            Witness::SameEpochAgain => {
                Property::sometimes("the same epoch is certified again", |_, state: &State| {
                    state.open_epoch() == Some(1) && state.instance > 1
                })
            }
            Witness::LateInsert => {
                Property::sometimes("the ledger has what Redis does not know", |_, state: &State| {
                    state
                        .open_data()
                        .is_some_and(|data| !state.ledger.issued().without(data.known()).is_empty())
                })
            }
            Witness::Lost => {
                Property::sometimes("accepted requests are lost with Redis's data", |_, state: &State| {
                    !state.history.lost.is_empty()
                })
            }
            Witness::WithoutUnit => {
                Property::sometimes("one is in flight without a unit", |_, state: &State| {
                    state
                        .open_data()
                        .is_some_and(|data| data.in_flight.iter().flatten().any(|held| held.serial == 0))
                })
            }
            Witness::Reassigned => {
                Property::sometimes("one in flight has another unit than its entry", |_, state: &State| {
                    state.open_data().is_some_and(|data| {
                        data.in_flight.iter().zip(&data.stream).any(|(held, queued)| {
                        matches!((held, queued), (Some(held), Some(queued)) if held.serial != queued.serial)
                    })
                    })
                })
            }
        }
    }
}
