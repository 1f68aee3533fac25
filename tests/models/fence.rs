//! The fence between two Redis of one ledger, as a model of its own whose every state is visited. In one setting an
//! empty second Redis stands beside the first while the address changes step by step; in the other a replica takes the
//! first one's place and dies, and the old primary returns.
//!
//! Each Redis has a certificate; MongoDB remembers the latest opening; a process trusts an opening and has
//! connections to one Redis; a recoverer takes the steps of `supervisor.rs` and `recover.rs`, and may stop at each.
//! The model has no clock: a Redis is silent when no process trusts its latest opening, and a wait is over when the
//! awaited event has happened. The data of a Redis is a set of ids; the other model covers decisions and units.

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model, Property};

const ONE_SERVES: &str = "nothing is accepted beside a Redis that was opened later";
const TRUE_MISS: &str = "what the Redis that was opened last holds is not told lost";
const IDS: u8 = 2;
const TERMS: u8 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Sound,
    /// Processes trust a fitting certificate, whatever was opened since.
    TrustsTheCertificate,
    /// A recoverer does not ask whether another Redis serves.
    OpensBesideAnother,
    /// A recoverer opens a promoted replica at once.
    OpensUnnoticed,
    /// A recoverer that finds the data out of date, and stops, does not record it.
    ForgetsItIsBehind,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Redis {
    up: bool,
    /// The term of its certificate; 0 if it has none.
    term: u8,
    open: bool,
    /// The certificate names this very instance.
    own: bool,
    was_replica: bool,
    /// A recoverer found the data out of date when it closed it.
    behind: bool,
    ids: u8,
}

impl Redis {
    fn is_certified(&self) -> bool {
        self.up && self.open && self.own
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Process {
    on: usize,
    /// The term of the opening that the process trusts; 0 if none.
    trusts: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Close,
    Remember,
    Notice,
    Open,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Recoverer {
    on: usize,
    term: u8,
    step: Step,
    out_of_date: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    redis: [Redis; 2],
    processes: [Process; 2],
    /// Where the address leads.
    address: usize,
    /// Term and place of the latest opening.
    latest: (u8, usize),
    terms: u8,
    recoverer: Option<Recoverer>,
    /// How many ids were accepted.
    accepted: u8,
    accepted_beside: bool,
    wrongly_missed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Accept {
        process: usize,
    },
    Ask {
        process: usize,
        id: u8,
    },
    /// The process adopts the opening that Redis names.
    Admit {
        process: usize,
    },
    /// The process learns that another Redis was opened, or that it cannot use its own.
    Notice {
        process: usize,
    },
    /// The process connects again.
    Connect {
        process: usize,
    },
    Lead {
        to: usize,
    },
    /// The second Redis, a replica, takes the first one's place, with all of its data or without the latest.
    Promote {
        lags: bool,
    },
    Die {
        redis: usize,
    },
    Recover {
        redis: usize,
    },
    GoOn,
    StopRecoverer,
}

struct Fence {
    variant: Variant,
    /// Whether the second Redis is a replica of the first until it is promoted; otherwise it is up and empty.
    replica: bool,
}

impl State {
    /// Whether no process trusts the latest opening.
    fn is_silent(&self) -> bool {
        let (term, place) = self.latest;
        !self.redis[place].up || !self.processes.iter().any(|process| process.trusts == term)
    }

    /// Whether Redis accepts scripts of this process.
    fn serves(&self, process: usize) -> bool {
        let Process { on, trusts } = self.processes[process];
        self.redis[on].is_certified() && self.redis[on].term == trusts
    }

    fn may_open(&self, place: usize) -> bool {
        let Redis { term, behind, .. } = self.redis[place];
        self.latest.1 == place || (term >= self.latest.0 && !behind) || self.is_silent()
    }
}

impl Fence {
    fn admits(&self, state: &State, place: usize) -> bool {
        let (term, latest) = (state.redis[place].term, state.latest);
        self.variant == Variant::TrustsTheCertificate || latest == (term, place) || latest.0 < term
    }

    fn go_on(&self, state: &mut State, mut recoverer: Recoverer) -> Option<()> {
        let place = recoverer.on;
        if !state.redis[place].up {
            return None;
        }
        let others_know = state.processes.iter().all(|p| p.trusts == 0 || p.trusts >= recoverer.term);
        let redis = &mut state.redis[place];
        recoverer.step = match recoverer.step {
            Step::Close if redis.term > recoverer.term => return None,
            Step::Close => {
                recoverer.out_of_date = redis.term < state.latest.0 || redis.behind;
                redis.behind = recoverer.out_of_date && self.variant != Variant::ForgetsItIsBehind;
                (redis.term, redis.open) = (recoverer.term, false);
                Step::Remember
            }
            Step::Remember => {
                let unasked = self.variant == Variant::OpensBesideAnother;
                if recoverer.out_of_date && state.latest.1 != place && !state.is_silent() && !unasked {
                    return None;
                }
                state.latest = (recoverer.term, place);
                let waits = state.redis[place].was_replica && self.variant != Variant::OpensUnnoticed;
                if waits { Step::Notice } else { Step::Open }
            }
            Step::Notice if !others_know => return Some(()),
            Step::Notice => Step::Open,
            Step::Open => {
                (redis.open, redis.own, redis.behind) = (true, true, false);
                return None;
            }
        };
        state.recoverer = Some(recoverer);
        Some(())
    }
}

impl Model for Fence {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let first = Redis { up: true, term: 1, open: true, own: true, ..Redis::default() };
        vec![State {
            redis: [first, Redis { up: !self.replica, ..Redis::default() }],
            processes: [Process { on: 0, trusts: 1 }; 2],
            address: 0,
            latest: (1, 0),
            terms: 1,
            recoverer: None,
            accepted: 0,
            accepted_beside: false,
            wrongly_missed: false,
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        for process in 0..2 {
            actions.extend([Action::Accept { process }, Action::Admit { process }]);
            actions.extend([Action::Notice { process }, Action::Connect { process }]);
            actions.extend((0..IDS).map(|id| Action::Ask { process, id }));
        }
        for place in 0..2 {
            actions.extend([Action::Lead { to: place }, Action::Die { redis: place }]);
            actions.push(Action::Recover { redis: place });
        }
        actions.extend([Action::Promote { lags: true }, Action::Promote { lags: false }]);
        actions.extend([Action::GoOn, Action::StopRecoverer]);
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Accept { process } => {
                let place = state.processes[process].on;
                if !state.serves(process) || state.accepted == IDS {
                    return None;
                }
                let other = state.redis[1 - place];
                state.accepted_beside |= other.is_certified() && other.term > state.redis[place].term;
                state.redis[place].ids |= 1 << state.accepted;
                state.accepted += 1;
            }
            Action::Ask { process, id } => {
                let Process { on, trusts } = state.processes[process];
                let holds = |redis: &Redis| redis.ids & (1 << id) != 0;
                if id >= state.accepted || !state.serves(process) || holds(&state.redis[on]) {
                    return None;
                }
                if state.latest.0 > trusts {
                    return None;
                }
                let latest = &state.redis[state.latest.1];
                state.wrongly_missed |=
                    latest.is_certified() && latest.term == state.latest.0 && holds(latest);
            }
            Action::Admit { process } => {
                let Process { on, trusts } = state.processes[process];
                let is_later = state.redis[on].term > trusts || self.variant == Variant::TrustsTheCertificate;
                if !state.redis[on].is_certified() || !is_later || !self.admits(&state, on) {
                    return None;
                }
                state.processes[process].trusts = state.redis[on].term;
            }
            Action::Notice { process } => {
                if state.processes[process].trusts >= state.latest.0 && state.serves(process) {
                    return None;
                }
                state.processes[process].trusts = 0;
            }
            Action::Connect { process } => state.processes[process].on = state.address,
            Action::Lead { to } => state.address = to,
            Action::Promote { lags } => {
                if !self.replica || state.redis[1].up || state.redis[1].term > 0 {
                    return None;
                }
                let ids = if lags { 0 } else { state.redis[0].ids };
                state.redis[1] = Redis { own: false, was_replica: true, ids, ..state.redis[0] };
            }
            Action::Die { redis } => state.redis[redis].up = false,
            Action::Recover { redis } => {
                let trusted = state.redis[redis].is_certified() && self.admits(&state, redis);
                let may = state.may_open(redis) || self.variant == Variant::OpensBesideAnother;
                let is_used = state.processes.iter().any(|process| process.on == redis);
                if state.recoverer.is_some() || state.terms == TERMS || trusted || !may || !is_used {
                    return None;
                }
                state.terms += 1;
                let term = state.terms;
                state.recoverer = Some(Recoverer { on: redis, term, step: Step::Close, out_of_date: false });
            }
            Action::GoOn => {
                let recoverer = state.recoverer.take()?;
                let _: Option<()> = self.go_on(&mut state, recoverer);
                if state.recoverer.is_none() && recoverer.step == Step::Notice && state.redis[recoverer.on].up
                {
                    state.recoverer = Some(recoverer);
                }
            }
            Action::StopRecoverer => state.recoverer = None,
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(ONE_SERVES, |_, state: &State| !state.accepted_beside),
            Property::always(TRUE_MISS, |_, state: &State| !state.wrongly_missed),
        ];
        if self.variant == Variant::Sound {
            properties.push(Property::sometimes("the second serves", |_, state: &State| {
                state.latest.1 == 1 && (0..2).any(|process| state.serves(process))
            }));
            properties.push(Property::sometimes("the first serves again", |_, state: &State| {
                state.latest.0 > 2 && state.latest.1 == 0 && (0..2).any(|process| state.serves(process))
            }));
        }
        properties
    }
}

/// Asserts that the fence holds, and that this variant breaks it.
fn holds_but_for(replica: bool, breaches: &[(Variant, &'static str)]) {
    let checker = Fence { variant: Variant::Sound, replica }.checker().spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
    for (variant, property) in breaches {
        let found = HasDiscoveries::AnyOf(BTreeSet::from([*property]));
        let broken = Fence { variant: *variant, replica }.checker().finish_when(found).spawn_bfs().join();
        println!(
            "{variant:?} violates {property:?}: {:?}",
            broken.assert_any_discovery(property).into_actions()
        );
    }
}

#[test]
fn an_empty_second_redis_is_not_opened_beside_the_first() {
    holds_but_for(
        false,
        &[
            (Variant::OpensBesideAnother, ONE_SERVES),
            (Variant::TrustsTheCertificate, ONE_SERVES),
            (Variant::ForgetsItIsBehind, ONE_SERVES),
        ],
    );
}

#[test]
fn a_replica_takes_the_place_of_its_primary_and_the_primary_that_comes_back_does_not_serve_as_it_was() {
    holds_but_for(
        true,
        &[(Variant::OpensUnnoticed, ONE_SERVES), (Variant::TrustsTheCertificate, ONE_SERVES)],
    );
}
