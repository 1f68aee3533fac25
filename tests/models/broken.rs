//! The protocol, broken in one place at a time: each variant violates the property that this place protects, and its
//! test tells the steps. The same setting without the change violates nothing.

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model};

use super::properties::*;
use super::settings::{AGAIN, FIRST, NOTHING, peace, three};
use super::state::State;
use super::{Action, EventCounts, Protocol, Variant};

/// The step that violated a property: the state before, the action, the state after.
struct Last {
    before: State,
    action: Action,
    after: State,
}

/// Breaks the setting, and returns the step after which `property` holds no longer.
fn breaks(variant: Variant, property: &'static str, sound: Protocol) -> Last {
    sound.clone().checker().spawn_bfs().join().assert_properties();
    let broken = Protocol { variant, ..sound };
    let found = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let checker = broken.clone().checker().finish_when(found).spawn_bfs().join();
    let path = checker.assert_any_discovery(property).into_vec();

    // The checker returns some violating state; the first violating state on its path is the one that matters.
    let condition = broken.property(property).condition;
    let first =
        path.iter().position(|(state, _)| !condition(&broken, state)).expect("a violation on the path");
    println!("{variant:?} violates {property:?}:");
    for (state, action) in &path[..first] {
        println!("  {}", told(state, action.expect("a step")));
    }
    let (before, action) = path[first - 1].clone();
    Last { before, action: action.expect("a step"), after: path[first].0.clone() }
}

/// A step as text.
fn told(state: &State, action: Action) -> String {
    match action {
        Action::Work { worker, .. } => {
            let (id, step) = state.workers[worker].next();
            format!("Work on {id}: {step:?}")
        }
        Action::Recover { recoverer } => {
            let (term, step) = state.recoverers[recoverer].next();
            format!("Recover in term {term}: {step:?}")
        }
        _ => format!("{action:?}"),
    }
}

#[test]
fn without_a_tombstone_one_hand_tells_rejected_what_another_issues() {
    let setting = Protocol { bounds: EventCounts { discards: 1, ..NOTHING }, ..peace() };
    let last = breaks(Variant::NoTombstone, ONE_OUTCOME, setting);
    assert!(matches!(last.action, Action::Work { .. }));
    assert!(!last.after.ledger.issued().and(last.after.history.told_rejected).is_empty());
}

#[test]
fn without_the_guard_a_unit_is_given_back_twice_and_is_free_while_another_has_it() {
    let setting = Protocol { total: 1, bounds: EventCounts { discards: 1, ..NOTHING }, ..peace() };
    let last = breaks(Variant::NoGuard, ONE_HOLDER, setting);
    assert!(matches!(last.action, Action::Work { .. }));
    // The user had been told before, and the issuance was settled again.
    assert!(!last.before.history.told_rejected.is_empty());
    assert_eq!(last.before.ledger, last.after.ledger);
}

#[test]
fn when_the_api_compensates_a_unit_is_free_that_a_worker_issues() {
    let last = breaks(Variant::ApiCompensates, ACCOUNTED_FOR, Protocol { total: 1, ..peace() });
    let issued = last.after.ledger.issued();
    assert!(
        !issued.is_empty() && last.after.open_data().is_some_and(|data| data.flying().and(issued).is_empty())
    );
    assert!(!last.after.history.told_issued.contains(issued.iter().next().unwrap()));
}

#[test]
fn a_rebuild_that_keeps_decided_entries_counts_them_twice() {
    let setting = Protocol { bounds: EventCounts { restarts: 1, ..NOTHING }, ..peace() };
    let last = breaks(Variant::RebuildKeepsDecided, SETTLED_ONCE, setting);
    assert!(matches!(last.action, Action::Recover { .. }));
    assert!(
        last.after.open_data().is_some_and(|data| !data.flying().and(last.after.ledger.issued()).is_empty())
    );
}

#[test]
fn a_rebuild_that_asks_once_what_is_decided_counts_twice_what_is_issued_meanwhile() {
    let setting = Protocol { bounds: EventCounts { restarts: 1, ..NOTHING }, ..peace() };
    let last = breaks(Variant::RebuildAsksOnce, SETTLED_ONCE, setting);
    assert!(matches!(last.action, Action::Recover { .. }));
    assert!(
        last.after.open_data().is_some_and(|data| !data.flying().and(last.after.ledger.issued()).is_empty())
    );
}

#[test]
fn when_a_total_shrinks_a_worker_issues_a_unit_that_there_is_not() {
    let setting = Protocol { bounds: EventCounts { restocks: 1, ..NOTHING }, ..peace() };
    let last = breaks(Variant::TotalShrinks, NEVER_OVERSOLD, setting);
    assert!(matches!(last.action, Action::Work { .. }));
    let total = last.after.ledger.total;
    assert!(last.after.ledger.issued_records().any(|(_, serial, _)| serial > total));
}

#[test]
fn when_dedupe_forgets_what_is_issued_a_repeated_request_takes_a_second_unit() {
    let last = breaks(Variant::DedupeOnlyInFlight, SETTLED_ONCE, peace());
    let Action::Send { id, .. } = last.action else { panic!("{:?}", last.action) };
    assert!(last.before.history.told_issued.contains(id));
    assert!(last.after.open_data().is_some_and(|data| data.flying().contains(id)));
}

#[test]
fn with_a_count_instead_of_serials_a_late_insert_oversells() {
    let setting = Protocol { total: 1, bounds: EventCounts { flushes: 1, ..NOTHING }, ..peace() };
    let last = breaks(Variant::CountInsteadOfSerials, NEVER_OVERSOLD, setting);
    assert!(matches!(last.action, Action::Work { .. }));
    assert_eq!((last.after.ledger.issued().len(), last.after.ledger.total), (2, 1));
    assert!(last.after.history.data_lost);
}

#[test]
fn without_the_index_on_units_a_late_insert_oversells() {
    let setting = Protocol { total: 1, bounds: EventCounts { flushes: 1, ..NOTHING }, ..peace() };
    let last = breaks(Variant::NoUnitIndex, NEVER_OVERSOLD, setting);
    assert!(matches!(last.action, Action::Work { .. }));
    assert!(last.after.ledger.issued_records().all(|(_, serial, _)| serial == 1), "the same unit, twice");
}

#[test]
fn without_the_index_on_users_a_late_insert_gives_somebody_more_than_the_limit() {
    let setting = Protocol { requests: three(), bounds: EventCounts { flushes: 1, ..NOTHING }, ..peace() };
    let last = breaks(Variant::NoUserIndex, NEVER_TWICE, setting);
    assert!(matches!(last.action, Action::Work { .. }));
    assert!(last.after.history.data_lost);
    assert_eq!(last.after.ledger.issued().and([0, 2].into_iter().collect()).len(), 2);
}

#[test]
fn a_verification_that_reads_the_ledger_first_takes_a_gap_for_an_insert() {
    let setting = Protocol { verify: true, bounds: EventCounts { rewinds: 1, ..NOTHING }, ..peace() };
    let last = breaks(Variant::VerifyReadsLedgerFirst, TRULY_INTACT, setting);
    assert!(matches!(last.action, Action::Recover { .. }));
    assert_eq!(last.after.ledger.issued().len(), 2);
}

#[test]
fn a_recoverer_that_opens_without_compare_and_set_loses_what_was_accepted_meanwhile() {
    let bounds = EventCounts { restarts: 1, steals: 1, ..NOTHING };
    let setting = Protocol { workers: 1, recoverers: 2, verify: true, bounds, ..peace() };
    let last = breaks(Variant::OpenWithoutCompare, NEVER_LOST, setting);
    assert!(matches!(last.action, Action::Recover { .. }));
    assert!(!last.after.history.data_lost);
    assert!(last.before.open_data().is_some_and(|data| !data.flying().is_empty()));
}

#[test]
fn a_load_over_a_coupon_that_is_present_frees_what_is_in_flight() {
    let last = breaks(Variant::LoadOverPresent, ONE_HOLDER, Protocol { total: 1, loaders: 2, ..peace() });
    assert!(matches!(last.action, Action::Load { .. }));
    assert!(last.before.open_data().is_some_and(|data| data.coupon.is_some() && !data.flying().is_empty()));
}

#[test]
fn what_comes_into_dedupe_without_the_accounts_is_never_counted() {
    let bounds = EventCounts { flushes: 1, ..NOTHING };
    let setting = Protocol { requests: vec![FIRST, AGAIN], bounds, ..peace() };
    let last = breaks(Variant::HoldsWithoutAdoption, AT_REST, setting);
    let data = last.after.open_data().unwrap();
    assert_eq!(data.known(), last.after.ledger.issued());
    assert!(data.coupon.unwrap().settled < last.after.ledger.issued().len());
}

#[test]
fn an_audit_that_stops_at_a_known_id_leaves_its_unit_free() {
    let bounds = EventCounts { rewinds: 1, ..NOTHING };
    let last = breaks(Variant::AdoptsByIdOnly, AT_REST, Protocol { bounds, ..peace() });
    let data = last.after.open_data().unwrap();
    assert_eq!(data.known(), last.after.ledger.issued());
    let free = data.coupon.unwrap().free_units();
    assert!(last.after.ledger.issued_records().any(|(_, serial, _)| free.contains(serial)));
}

#[test]
fn a_certificate_that_names_one_epoch_in_mid_move_loses_what_was_moved() {
    let bounds = EventCounts { restarts: 1, recoverers_stopped: 1, ..NOTHING };
    let last = breaks(Variant::MoveKeepsEpoch, NEVER_LOST, Protocol { workers: 1, bounds, ..peace() });
    assert!(matches!(last.action, Action::Recover { .. }));
    assert!(!last.after.history.data_lost);
}

#[test]
fn a_load_that_forgets_what_is_in_flight_frees_its_unit() {
    let bounds = EventCounts { restarts: 1, left_out: 1, ..NOTHING };
    let setting = Protocol { workers: 1, loaders: 1, bounds, ..peace() };
    let last = breaks(Variant::LoadForgetsInFlight, ONE_HOLDER, setting);
    assert!(matches!(last.action, Action::Load { .. }));
    assert!(last.before.open_data().is_some_and(|data| !data.flying().is_empty()));
}

#[test]
fn a_load_that_ignores_what_is_settled_meanwhile_never_counts_it() {
    let bounds = EventCounts { restarts: 1, left_out: 1, ..NOTHING };
    let setting = Protocol { workers: 1, loaders: 1, bounds, ..peace() };
    let last = breaks(Variant::LoadIgnoresSettling, SETTLED_ONCE, setting);
    assert!(matches!(last.action, Action::Load { .. }));
    assert!(last.after.open_data().is_some_and(|data| data.settled_unloaded > 0));
}

#[test]
fn an_entry_that_goes_with_its_first_issuance_leaves_the_others_to_nobody() {
    let bounds = EventCounts { splits: 1, ..NOTHING };
    let last = breaks(Variant::EntryGoesWithItsFirst, AT_REST, Protocol { workers: 1, bounds, ..peace() });
    assert!(last.after.open_data().is_some_and(|data| {
        let queued = |id: u8| data.stream[usize::from(id)].is_some();
        data.flying().iter().any(|id| !queued(id))
    }));
}

#[test]
fn an_entry_that_is_taken_apart_with_what_was_settled_counts_it_twice() {
    let bounds = EventCounts { splits: 1, ..NOTHING };
    let last = breaks(Variant::SplitIgnoresFlight, SETTLED_ONCE, Protocol { bounds, ..peace() });
    let Action::Split { id } = last.action else { panic!("{:?}", last.action) };
    assert!(last.before.history.told_issued.contains(id));
}
