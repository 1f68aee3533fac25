//! The protocol between Redis, the ledger, workers and recoverers, as a model whose every state is
//! visited. [`sound`] holds the protocol against what the system promises ([`properties`]); [`broken`]
//! breaks it in one place at a time, and each breach must violate what that place is there for. That one ledger is
//! served by one Redis is held by a model of its own ([`fence`]), and so are two partitions of one deployment
//! ([`partitions`]) and one coupon over two shares ([`moves`]).
//!
//! # What is modelled
//!
//! - Each Lua script is one step: certificate, reserve (dedupe, limit, unit, in flight, XADD), settle
//!   (guard, release, dedupe), split, reassign (compare-and-set), load, close, open, forget ([`scripts`],
//!   [`recoverer`], [`loader`]).
//! - The ledger is written once an id, under its two unique indexes ([`ledger`]).
//! - A worker has one entry in hand, and each of its calls to MongoDB and Redis is a step of its own, in
//!   the order of `worker/decide.rs` ([`worker`]). Between two steps anything may happen: that is the
//!   pause. It may stop for good at each. Any entry of the stream may be given to any worker at any time,
//!   as often as one likes: that covers reading, claiming, sweeping and redriving, in every order. It reads
//!   the stream even while nothing is certified, as XREADGROUP does. An operator may discard any issuance
//!   in flight.
//! - A recoverer takes the lease, which may expire at any moment; closes, verifies (it reads the ledger between two
//!   reads of what is in flight) or rebuilds, and opens. It moves issuances in flight one by one. It may sleep or
//!   die between any two steps. It may leave the coupon out (its record is damaged, or nothing is in flight).
//! - Redis restarts, loses everything, loses its certificate alone, or goes back to any earlier state
//!   ([`failure`]). MongoDB loses nothing: that is what `w: majority, j: true` is for.
//! - A client repeats a request with a key for ever; one without a key is a new issuance each time.
//! - The audit adopts what was inserted late: it takes the unit of an issued record out of the free ones
//!   whenever it is there, and counts an id that Redis does not know. An API process loads a coupon: it reads
//!   what is in flight, then the ledger, then puts the coupon in place; a restock reaches MongoDB first.
//!
//! # What is left out
//!
//! Batches: entries of one meet only in unordered inserts, which are independent, and in a stream entry of many:
//! settling a part of it takes it apart, and gives each of the others a fresh entry. The model does so to any
//! issuance in flight at any time, whatever it shared its entry with. Windows, pausing and the
//! backlog bound: they refuse before anything is written. The outcome cache and its feed: they hold
//! decided outcomes only. Dead letters: setting aside and redriving change which worker gets an entry, and
//! here any worker may. Paging of reads: of a survivor that is decided while pages are read the model sees both
//! cases, before and after. A lost write-concern: unknown is a step that was not made, or one whose maker
//! stopped right after it. Retiring a coupon: nothing is in flight for it.
//!
//! The model does not prove that work ends, but that no state is stuck: whenever no process has anything to do,
//! everything is done ([`properties::AT_REST`]); a worker's step that changes nothing is no step.
//!
//! # Sizes
//!
//! At most 3 requests of 2 users for 2 units (3 after a restock), 2 workers, 2 recoverers, and 1 or 2 of each
//! thing that goes wrong, a few at a time. One coupon: coupons share no units. Every setting is searched
//! to its end. States of each, measured:
//!
//! | setting | states |
//! |---|---|
//! | workers race, stop, get entries twice; discard; restock | 18,135 |
//! | two units a user, one unit there | 11,299 |
//! | entries taken apart twice; discard | 21,341 |
//! | an entry taken apart; restart; the recoverer dies | 246,474 |
//! | restart; the recoverer dies | 150,040 |
//! | certificate lost; restock; the recoverer dies | 154,158 |
//! | flush, three requests | 74,821 |
//! | flush, discard, one unit | 59,068 |
//! | flush twice, two units a user | 77,556 |
//! | flush and restart | 36,395 |
//! | rewind, rebuild | 38,469 |
//! | rewind, verify, discard, one unit | 22,601 |
//! | rewind, verify, restock | 75,575 |
//! | restart, rewind, verify | 33,973 |
//! | a recoverer sleeps: flush | 171,444 |
//! | a recoverer sleeps: two restarts | 79,259 |
//! | a recoverer sleeps: verify | 139,852 |
//! | two loaders, restock, discard | 14,157 |
//! | a loader and a flush | 2,784 |
//! | the coupon is left out: restart, discard | 213,323 |
//! | the coupon is left out: flush | 5,171 |
//! | the coupon is left out: restart, verify; the recoverer dies | 13,994 |
//!
//! All of it, the broken ones too, takes a minute or two of processor time in an unoptimised build. With `--nocapture`
//! the tests tell how many states there were, and the story of each breach.

mod broken;
mod failure;
mod fence;
mod ledger;
mod loader;
mod moves;
mod partitions;
mod properties;
mod recoverer;
mod scripts;
mod settings;
mod sound;
mod state;
mod steps;
mod variant;
mod worker;

use std::collections::BTreeMap;

use stateright::{Model, Property};

use failure::Failure;
use ledger::Ledger;
use loader::Loader;
use properties::Witness;
use recoverer::Recoverer;
use state::{Certificate, Data, EventCounts, Id, Redis, Set, State};
use variant::Variant;
use worker::Worker;

/// One request: whose, and whether its id is made from a key, so that it may be sent again.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    pub user: u8,
    pub keyed: bool,
}

/// A setting: how many there are of everything, what may happen, and how the protocol is broken.
#[derive(Debug, Clone)]
pub struct Protocol {
    pub variant: Variant,
    /// At most [`state::IDS_MAX`], of at most [`state::USERS_MAX`] users.
    pub requests: Vec<Request>,
    pub total: u8,
    pub per_user: u8,
    pub workers: usize,
    pub recoverers: usize,
    /// None: the coupon is in Redis from the beginning.
    pub loaders: usize,
    /// Recoverers verify before they rebuild.
    pub verify: bool,
    /// How often each event may happen at most.
    pub bounds: EventCounts,
    pub witnesses: Vec<Witness>,
}

/// Anything that happens. Numbers of processes, and `pick`: which of the free units it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Send { id: Id, pick: u8 },
    Read { worker: usize, id: Id },
    Work { worker: usize, pick: u8 },
    StopWorker { worker: usize },
    Discard { worker: usize, id: Id },
    TakeLease { recoverer: usize },
    Recover { recoverer: usize },
    StopRecoverer { recoverer: usize },
    LeaveOut { recoverer: usize },
    Split { id: Id },
    ReadToLoad { loader: usize },
    Load { loader: usize },
    Adopt { id: Id },
    Restock,
    BringTotal,
    Shrink,
    Compensate { id: Id },
    Save,
    Fail(Failure),
}

impl Protocol {
    pub fn user(&self, id: Id) -> u8 {
        self.requests[usize::from(id)].user
    }

    pub fn is_keyed(&self, id: Id) -> bool {
        self.requests[usize::from(id)].keyed
    }

    fn ids(&self) -> impl Iterator<Item = Id> + use<> {
        0..self.requests.len() as Id
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    /// The first epoch is open, with the coupon loaded unless there are loaders.
    fn init_states(&self) -> Vec<State> {
        let ledger = Ledger::new(self.total);
        let certificate =
            Certificate { open: true, epoch: Some(1), instance: 1, term: 1, building: None, building_on: 0 };
        let mut state = State {
            redis: Redis { certificate: Some(certificate), epochs: BTreeMap::from([(1, Data::default())]) },
            instance: 1,
            snapshot: None,
            appended: Default::default(),
            ledger,
            workers: vec![Worker::default(); self.workers],
            recoverers: vec![Recoverer::default(); self.recoverers],
            loaders: vec![Loader::default(); self.loaders],
            terms: 1,
            lease: 0,
            sent: Set::default(),
            history: Default::default(),
            spent: settings::NOTHING,
        };
        if self.loaders == 0 {
            let data =
                loader::loaded(self, &state, loader::Picture::of(&state), &mut Default::default(), true);
            state.redis.epochs.insert(1, data);
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.work(state, actions);
        self.interfere(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut state = state.clone();
        self.act(&mut state, action)?;
        state.workers.sort();
        state.recoverers.sort();
        state.loaders.sort();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = properties::always();
        properties.extend(self.witnesses.iter().map(|witness| witness.property()));
        properties
    }
}
