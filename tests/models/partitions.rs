//! Two partitions of one deployment, as a model of its own whose every state is visited: each has the stream, the
//! certificate, the epochs and the recovery of the model of one partition, and goes its own way; the ledger is one, and
//! its unique indexes hold within a partition and a coupon.
//!
//! # What is modelled
//!
//! In one setting each partition has a coupon of its own: whatever happens to one of them, the other keeps all that
//! one partition alone promises ([`EACH_ALONE`]), and goes on. In the other there is one coupon, whole in the first
//! partition, and a process **misroutes**: it takes the second for the coupon's, has the coupon loaded there with every
//! unit free, and reserves for the very users that the first partition serves. The id that it makes names the second
//! partition, and so would the record: no unique index has both records. What keeps a user from a second unit, and a
//! unit from a second user, is the worker: it refuses an entry whose coupon's route is another partition. The
//! route is written once, when the coupon is made ([`Variant::RouteFollowsPartitions`] is what comes of computing it).
//! A refused entry stays until an operator discards it.
//!
//! # What is left out
//!
//! That an entry of the right id lies in the wrong stream: its record names the partition of its id, so that all hands
//! meet in one record, as two workers of one partition do. More than one coupon a partition: coupons share no units.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::properties::{self, NEVER_OVERSOLD, NEVER_TWICE};
use super::settings::{AGAIN, FIRST, NOTHING, SECOND, peace};
use super::state::{self, Id, Set};
use super::{EventCounts, Protocol};

const PARTITIONS: usize = 2;
const EACH_ALONE: &str = "each of two partitions keeps what one alone promises";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Sound,
    /// A worker decides whatever lies in its stream.
    TakesStrays,
    /// The route is computed from how many partitions there are, and changes when one is added.
    RouteFollowsPartitions,
}

struct Partitions {
    variant: Variant,
    each: [Protocol; PARTITIONS],
    /// One coupon, whole in the first partition; or else one in each.
    one_coupon: bool,
    /// How often a process may take the other partition for the coupon's.
    misroutes: u8,
    /// How often a partition may be added, by which the second comes into use.
    additions: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    each: [state::State; PARTITIONS],
    misroutes: u8,
    additions: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    In(usize, super::Action),
    AddPartition,
}

impl Partitions {
    /// The partition that a request is sent to, and whose entries of the coupon a worker takes.
    fn routes_to(&self, state: &State, partition: usize, id: Id) -> bool {
        if !self.one_coupon {
            return usize::from(id) == partition;
        }
        let follows = self.variant == Variant::RouteFollowsPartitions && state.additions > 0;
        partition == usize::from(follows)
    }

    fn may(&self, state: &State, partition: usize, action: super::Action) -> bool {
        match action {
            super::Action::Send { id, .. } => {
                self.routes_to(state, partition, id) || (self.one_coupon && state.misroutes < self.misroutes)
            }
            // Of an entry that it refuses, a worker adopts what is decided.
            super::Action::Read { id, .. } => {
                self.routes_to(state, partition, id) || self.variant == Variant::TakesStrays || {
                    let ledger = &state.each[partition].ledger;
                    ledger.issued().union(ledger.rejected()).contains(id)
                }
            }
            _ => true,
        }
    }
}

impl Model for Partitions {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let each = [0, 1].map(|partition: usize| self.each[partition].init_states().remove(0));
        vec![State { each, misroutes: 0, additions: 0 }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for partition in 0..PARTITIONS {
            let mut its = Vec::new();
            self.each[partition].actions(&state.each[partition], &mut its);
            let allowed = its.into_iter().filter(|action| self.may(state, partition, *action));
            actions.extend(allowed.map(|action| Action::In(partition, action)));
        }
        if state.additions < self.additions {
            actions.push(Action::AddPartition);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::In(partition, action) => {
                next.each[partition] = self.each[partition].next_state(&state.each[partition], action)?;
                if let super::Action::Send { id, .. } = action
                    && !self.routes_to(state, partition, id)
                {
                    next.misroutes += 1;
                }
            }
            Action::AddPartition => next.additions += 1,
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![Property::always(EACH_ALONE, each_alone)];
        if self.one_coupon {
            properties.push(Property::always(NEVER_OVERSOLD, never_oversold));
            properties.push(Property::always(NEVER_TWICE, never_twice));
        }
        if self.variant == Variant::Sound && self.one_coupon {
            properties.push(Property::sometimes(
                "an entry is refused",
                |model: &Partitions, state: &State| {
                    let stray = |id: &Id| !model.routes_to(state, 1, *id);
                    state.each[1].open_data().is_some_and(|data| data.flying().iter().any(|id| stray(&id)))
                },
            ));
        }
        if self.variant == Variant::Sound && !self.one_coupon {
            properties.push(Property::sometimes(
                "one serves while the other is recovered",
                |_, state: &State| {
                    let serves = |at: usize| {
                        state.each[at].open_epoch().is_some()
                            && !state.each[at].history.told_issued.is_empty()
                    };
                    let recovers = |at: usize| state.each[at].recoverers.iter().any(|it| !it.is_idle());
                    (0..PARTITIONS).any(|at| serves(at) && recovers(1 - at))
                },
            ));
            properties.push(Property::sometimes("both are recovered at once", |_, state: &State| {
                state.each.iter().all(|it| it.recoverers.iter().any(|recoverer| !recoverer.is_idle()))
            }));
            properties.push(Property::sometimes("both have issued all", |_, state: &State| {
                state.each.iter().all(|it| it.ledger.issued().len() == it.ledger.total)
            }));
        }
        properties
    }
}

fn each_alone(model: &Partitions, state: &State) -> bool {
    static ALWAYS: OnceLock<Vec<Property<Protocol>>> = OnceLock::new();
    let always = ALWAYS.get_or_init(properties::always);
    (0..PARTITIONS)
        .all(|at| always.iter().all(|property| (property.condition)(&model.each[at], &state.each[at])))
}

/// Over both partitions, for one coupon: no unit index reaches across.
fn never_oversold(_: &Partitions, state: &State) -> bool {
    let issued = || state.each.iter().flat_map(|it| it.ledger.issued_records());
    let units: Set = issued().map(|(_, serial, _)| serial).collect();
    usize::from(units.len()) == issued().count() && units.len() <= state.each[0].ledger.total
}

/// Over both partitions: no index of a user's units reaches across.
fn never_twice(model: &Partitions, state: &State) -> bool {
    let held = [0, 1].map(|at: usize| state.each[at].ledger.holdings(&model.each[at]));
    held[0].iter().zip(held[1]).all(|(one, other)| one + other <= model.each[0].per_user)
}

/// Visits every state, and asserts that each property holds.
fn holds(model: Partitions) {
    let checker = model.checker().spawn_bfs().join();
    println!("{} states, {} deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

fn breaks(model: Partitions, property: &'static str) -> State {
    let found = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let variant = model.variant;
    let path = model.checker().finish_when(found).spawn_bfs().join().assert_any_discovery(property);
    let last = path.last_state().clone();
    println!("{variant:?} violates {property:?}: {:?}", path.into_actions());
    last
}

/// A coupon in each partition, with one unit and one request; `bounds` are what happens to each.
fn two_coupons(bounds: [EventCounts; PARTITIONS]) -> Partitions {
    let each = bounds.map(|bounds| Protocol {
        requests: vec![FIRST, SECOND],
        total: 1,
        workers: 1,
        bounds,
        ..peace()
    });
    Partitions { variant: Variant::Sound, each, one_coupon: false, misroutes: 0, additions: 0 }
}

/// One coupon of two units, whole in the first partition, and two requests of one user.
fn one_coupon(variant: Variant, misroutes: u8, additions: u8) -> Partitions {
    let discards = EventCounts { discards: 1, ..NOTHING };
    let each = [NOTHING, discards].map(|bounds| Protocol {
        requests: vec![FIRST, AGAIN],
        workers: 1,
        bounds,
        ..peace()
    });
    Partitions { variant, each, one_coupon: true, misroutes, additions }
}

#[test]
fn two_partitions_are_recovered_each_for_itself_and_one_serves_while_the_other_is_away() {
    let flush = EventCounts { flushes: 1, ..NOTHING };
    holds(two_coupons([flush, EventCounts { restarts: 1, ..NOTHING }]));
}

#[test]
fn what_a_process_misroutes_is_refused_and_an_added_partition_takes_no_coupon_from_another() {
    holds(one_coupon(Variant::Sound, 1, 1));
}

#[test]
fn a_worker_that_takes_strays_gives_a_user_a_second_unit_that_no_index_sees() {
    for property in [NEVER_OVERSOLD, NEVER_TWICE] {
        let last = breaks(one_coupon(Variant::TakesStrays, 1, 0), property);
        assert!(last.each.iter().all(|it| !it.ledger.issued().is_empty()));
        assert_eq!(last.misroutes, 1);
    }
}

#[test]
fn a_route_that_follows_the_number_of_partitions_gives_a_user_a_second_unit() {
    for property in [NEVER_OVERSOLD, NEVER_TWICE] {
        let last = breaks(one_coupon(Variant::RouteFollowsPartitions, 0, 1), property);
        assert!(last.each.iter().all(|it| !it.ledger.issued().is_empty()));
        assert_eq!(last.misroutes, 0, "each process went by the route of the time");
    }
}
