//! The protocol as it is: every state of every setting, and no violation.

use std::time::Instant;

use stateright::{Checker, Model};

use super::properties::Witness::{self, *};
use super::settings::{AGAIN, FIRST, NOTHING, peace, three};
use super::{EventCounts, Protocol};

/// Visits every state. Asserts that each property holds in each, and that the search reaches each witness.
fn holds(mut protocol: Protocol, witnesses: &[Witness]) {
    protocol.witnesses = witnesses.to_vec();
    let started = Instant::now();
    let checker = protocol.checker().spawn_bfs().join();
    println!(
        "{} states, {} steps, {} deep, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        started.elapsed().as_secs_f64()
    );
    checker.assert_properties();
}

#[test]
fn workers_race_crash_and_get_entries_twice_while_an_operator_discards_and_restocks() {
    let bounds = EventCounts { discards: 1, restocks: 1, ..NOTHING };
    holds(Protocol { requests: three(), bounds, ..peace() }, &[SoldOut, Rejected]);
}

#[test]
fn entries_are_taken_apart_while_workers_race_and_an_operator_discards() {
    let bounds = EventCounts { splits: 2, discards: 1, ..NOTHING };
    holds(Protocol { bounds, ..peace() }, &[SoldOut, Rejected]);
}

#[test]
fn entries_are_taken_apart_while_redis_restarts_and_the_recoverer_dies() {
    let bounds = EventCounts { splits: 1, restarts: 1, recoverers_stopped: 1, ..NOTHING };
    holds(Protocol { bounds, ..peace() }, &[SoldOut, AnotherEpoch]);
}

#[test]
fn a_user_may_hold_two_and_there_is_one() {
    let bounds = EventCounts { discards: 1, restocks: 1, ..NOTHING };
    holds(Protocol { requests: three(), total: 1, per_user: 2, bounds, ..peace() }, &[SoldOut, Rejected]);
}

#[test]
fn redis_restarts_and_the_recoverer_dies() {
    let bounds = EventCounts { restarts: 1, recoverers_stopped: 1, ..NOTHING };
    holds(Protocol { requests: three(), bounds, ..peace() }, &[SoldOut, AnotherEpoch]);
}

#[test]
fn only_the_certificate_is_lost_and_the_recoverer_dies() {
    let bounds = EventCounts { certificates_lost: 1, recoverers_stopped: 1, restocks: 1, ..NOTHING };
    holds(Protocol { bounds, ..peace() }, &[SoldOut, AnotherEpoch]);
}

#[test]
fn redis_loses_everything_and_late_inserts_are_adopted() {
    let bounds = EventCounts { flushes: 1, ..NOTHING };
    let witnesses = [SoldOut, AnotherEpoch, Lost, LateInsert, RejectedAsAlreadyIssued, Reassigned];
    holds(Protocol { requests: three(), bounds, ..peace() }, &witnesses);
}

#[test]
fn redis_loses_everything_while_an_operator_discards_the_only_unit() {
    let bounds = EventCounts { flushes: 1, discards: 1, ..NOTHING };
    let witnesses = [SoldOut, Rejected, Lost, LateInsert, RejectedAsAlreadyIssued];
    holds(Protocol { requests: three(), total: 1, bounds, ..peace() }, &witnesses);
}

#[test]
fn redis_loses_everything_twice_and_a_user_may_hold_two() {
    let bounds = EventCounts { flushes: 2, ..NOTHING };
    holds(
        Protocol { requests: vec![FIRST, AGAIN], per_user: 2, bounds, ..peace() },
        &[SoldOut, Lost, LateInsert],
    );
}

#[test]
fn redis_loses_everything_and_restarts_before_or_after() {
    let bounds = EventCounts { flushes: 1, restarts: 1, ..NOTHING };
    holds(Protocol { total: 1, bounds, ..peace() }, &[SoldOut, Lost, LateInsert, WithoutUnit]);
}

#[test]
fn redis_is_rewound_and_rebuilt() {
    let bounds = EventCounts { rewinds: 1, ..NOTHING };
    holds(Protocol { bounds, ..peace() }, &[SoldOut, AnotherEpoch, Lost, LateInsert]);
}

#[test]
fn redis_is_rewound_and_verified_while_an_operator_discards() {
    let bounds = EventCounts { rewinds: 1, discards: 1, ..NOTHING };
    let witnesses = [SoldOut, AnotherEpoch, SameEpochAgain, Lost, LateInsert, Rejected];
    holds(Protocol { total: 1, verify: true, bounds, ..peace() }, &witnesses);
}

#[test]
fn redis_is_rewound_and_verified_while_the_coupon_is_restocked() {
    let bounds = EventCounts { rewinds: 1, restocks: 1, ..NOTHING };
    let witnesses = [SoldOut, AnotherEpoch, SameEpochAgain, Lost, LateInsert];
    holds(Protocol { total: 1, verify: true, bounds, ..peace() }, &witnesses);
}

#[test]
fn redis_restarts_and_is_rewound_to_an_earlier_epoch() {
    let bounds = EventCounts { rewinds: 1, restarts: 1, ..NOTHING };
    let witnesses = [SoldOut, AnotherEpoch, SameEpochAgain, Lost, LateInsert];
    holds(Protocol { total: 1, verify: true, bounds, ..peace() }, &witnesses);
}

#[test]
fn a_recoverer_sleeps_while_another_recovers_what_was_lost() {
    let bounds = EventCounts { flushes: 1, steals: 1, recoverers_stopped: 1, ..NOTHING };
    holds(Protocol { workers: 1, recoverers: 2, bounds, ..peace() }, &[SoldOut, AnotherEpoch, Lost]);
}

#[test]
fn a_recoverer_sleeps_through_two_restarts() {
    let bounds = EventCounts { restarts: 2, steals: 2, ..NOTHING };
    holds(Protocol { requests: vec![FIRST], workers: 1, recoverers: 2, bounds, ..peace() }, &[AnotherEpoch]);
}

#[test]
fn a_recoverer_sleeps_while_another_verifies() {
    let bounds = EventCounts { restarts: 1, steals: 1, recoverers_stopped: 1, ..NOTHING };
    let protocol = Protocol { workers: 1, recoverers: 2, verify: true, bounds, ..peace() };
    holds(protocol, &[SoldOut, AnotherEpoch, SameEpochAgain]);
}

#[test]
fn two_processes_load_the_coupon_while_it_is_restocked() {
    let bounds = EventCounts { restocks: 1, discards: 1, ..NOTHING };
    holds(Protocol { total: 1, loaders: 2, bounds, ..peace() }, &[SoldOut, Rejected]);
}

#[test]
fn a_loader_sleeps_while_redis_loses_everything() {
    let bounds = EventCounts { flushes: 1, ..NOTHING };
    holds(Protocol { total: 1, loaders: 1, bounds, ..peace() }, &[SoldOut, Lost, LateInsert]);
}

#[test]
fn a_rebuild_leaves_the_coupon_out_and_it_is_loaded_with_what_is_in_flight() {
    let bounds = EventCounts { restarts: 1, left_out: 1, discards: 1, ..NOTHING };
    let protocol = Protocol { loaders: 1, bounds, ..peace() };
    holds(protocol, &[SoldOut, AnotherEpoch, Rejected]);
}

#[test]
fn a_rebuild_leaves_the_coupon_out_after_a_loss_and_late_inserts_come() {
    let bounds = EventCounts { flushes: 1, left_out: 1, ..NOTHING };
    holds(Protocol { total: 1, loaders: 1, bounds, ..peace() }, &[SoldOut, Lost, LateInsert]);
}

#[test]
fn a_recoverer_dies_in_mid_move_and_the_next_one_leaves_the_coupon_out() {
    let bounds = EventCounts { restarts: 1, left_out: 1, recoverers_stopped: 1, ..NOTHING };
    let protocol = Protocol { workers: 1, loaders: 1, verify: true, bounds, ..peace() };
    holds(protocol, &[SoldOut, AnotherEpoch, SameEpochAgain]);
}
