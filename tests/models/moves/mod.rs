//! One coupon over two shares, as a model of its own whose every state is visited: how a unit moves from one share to
//! the other, and when a process may say "sold out". The programs do it in `src/issuance/shares`.
//!
//! # What is modelled
//!
//! - A **share** is a partition that has a part of a coupon's units: those that are born in it (serial s in share
//!   (s − 1) mod 2), and those that were moved to it. A unit is a serial and a hop; each move adds a hop, so that a unit
//!   lies in one share, ever ([`state`]).
//! - A **move** is an issuance whose user is a share. The donor lends (a unit leaves its free ones, and is in flight);
//!   a document of the ledger commits the move, under the very index that an issuance of the unit would need; the
//!   receiver is credited, once an id; the donor settles ([`steps`]). A request is reserved, decided and settled
//!   likewise. Any process may do each step, and may stop after each: it is a [`Hand`](state::Hand). The asker who does a
//!   move at once is one too, for which step comes next stands in the stream entry and the ledger.
//! - A share restarts, loses all of its data, or goes back to an earlier state, and is rebuilt from the ledger and from
//!   what survived in flight, in two steps: it reads, and opens. Hands of an earlier epoch sleep through that, and
//!   still write to the ledger.
//! - The audit adopts (what the ledger has of a share is not free there) and pulls (what the ledger moved to a share is
//!   credited there).
//! - A process **asks** whether the coupon is sold out: it looks at each share twice, each look a step of its own, in
//!   any order within a pass ([`look`]). Operators discard requests, whose units come back, and restock: MongoDB first,
//!   then each share by a script of its own.
//!
//! # What is left out
//!
//! A decision is one step here: reading the ledger, inserting, and taking another unit are steps of their own in the
//! model of one partition, as are dedupe, limits, certificates and leases. Batches of units: they are lent together,
//! and each is decided for itself. The marker that lets one asker at a time move units to a share, and how long a
//! request is held: they bound work. The counter of gains is a flag here: whether the share gained since the
//! asker's first look at it.
//!
//! # What "sold out" promises
//!
//! The asker's answer is exact ([`look::TRULY_SOLD_OUT`]): at one instant between the question and the answer every share
//! was empty and nothing was in transit. It does not say that nothing is free when the answer arrives.
//!
//! What the asker writes to the shares, `drained_until`, is a promise of another kind, a bounded lie that this model,
//! which has no clock, cannot search: until then an empty share says "sold out" by somebody else's looks. It is true of
//! an instant at most that long ago **only if** the deadline is counted from the second pass and written as
//! a point of time. A script that adds half a second to its own clock stretches the lie by however long the asker slept
//! between its looks and the write. A share that has units sells them, whatever is written there.
//!
//! The two looks alone are exact as long as Redis loses nothing, and through restarts if a rebuild queues the committed
//! moves out of its share again. After a loss they say less: a hand that commits a move late, after its donor was
//! rebuilt, leaves a unit in transit that no share shows, until somebody credits it (the receiver's audit at the latest).
//! An asker who counts, between its passes, the moves that the ledger has against those that were credited is exact then
//! too, and needs no move to be queued again ([`look`]).
//!
//! # Sizes
//!
//! Two serials, at most one request a share, two or three moves, one or two hands, and one loss. Every setting is
//! searched to its end; [`tests`] has the states of each. The largest ones are run on demand.

mod look;
mod state;
mod steps;
mod tests;

use stateright::{Model, Property};

use super::state::Set;
use state::{Condition, Id, Kind, Ledger, Record, SHARES, Share, State, Unit, born_in};

pub const NEVER_TWICE: &str = "no serial is issued twice";
pub const ONE_PLACE: &str = "before a loss each serial is in one place";
pub const NOBODY_REJECTED: &str = "before a loss nobody who was accepted is told sold out";
pub const AT_REST: &str = "at rest each serial is free in one share or issued";

/// The protocol, and each way in which a test breaks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    Sound,
    /// The receiver is credited when the donor lends, before the ledger has the move.
    CreditsBeforeLedger,
    /// The same, and workers do not ask whether a unit was moved to their share.
    CreditsBeforeLedgerUnchecked,
    /// Workers do not ask whether a unit was moved to their share.
    NoCheck,
    /// The ledger's index has the serial without the hop.
    NoHop,
    /// The audit does not credit what was moved to its share.
    NoPull,
    /// A rebuild knows the units that are born in its share, and not those that were moved to it.
    RebuildForgetsMovedIn,
    /// A credit does not ask whether it was made before.
    NoGuard,
    /// The donor may settle before the receiver is credited.
    SettlesFirst,
    /// The same, without the audit's pull.
    SettlesFirstWithoutPull,
    /// An asker looks once.
    OneLook,
    /// At the second look the asker compares what is free and lent, and not whether the share gained.
    NoGains,
    /// The asker does not look at what is lent.
    NoLending,
    /// The asker takes a share that does not answer for an empty one.
    UnreachableIsEmpty,
    /// A gain counts from 0 in each epoch, and the asker does not compare epochs.
    NoEpoch,
    /// A share that gets units by a restock does not count that as a gain.
    RestockWithoutGain,
}

/// What may happen to a share's Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Loss {
    /// A new process with the same data.
    Restart,
    /// All data gone.
    Wipe,
    /// Earlier data.
    Rewind,
}

pub const ANY_LOSS: &[Loss] = &[Loss::Restart, Loss::Wipe, Loss::Rewind];

/// A setting: how many there are of everything, what may happen, and how the protocol is broken.
#[derive(Debug, Clone, Copy)]
pub struct Moves {
    pub variant: Variant,
    /// Units from the beginning, at most [`state::SERIALS_MAX`] with those of restocks.
    pub total: u8,
    /// Requests of users, for each share.
    pub requests: u8,
    /// Moves in all, in either direction. Ids of requests and moves: at most [`state::IDS_MAX`].
    pub moves: u8,
    /// At most [`state::HANDS_MAX`].
    pub hands: usize,
    pub losses: u8,
    pub kinds: &'static [Loss],
    pub discards: u8,
    pub restocks: u8,
    /// Whether a rebuild queues the committed moves out of its share again.
    pub queues_moves_again: bool,
    /// Whether an asker compares, between its passes, the ledger's moves with those that were credited.
    pub counts_moves: bool,
    /// Whether a process asks if the coupon is sold out.
    pub asks: bool,
    pub witnesses: &'static [Witness],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Reserve {
        share: usize,
        unit: Unit,
    },
    Lend {
        share: usize,
        unit: Unit,
    },
    Read {
        share: usize,
        id: Id,
    },
    /// `pick`: the unit that a request gets in place of its own.
    Decide {
        hand: usize,
        pick: Option<Unit>,
    },
    Credit {
        hand: usize,
    },
    Settle {
        hand: usize,
    },
    Stop {
        hand: usize,
    },
    Save {
        share: usize,
    },
    Lose {
        share: usize,
        loss: Loss,
    },
    ReadToRebuild {
        share: usize,
    },
    Open {
        share: usize,
    },
    Adopt {
        share: usize,
    },
    Pull {
        share: usize,
        id: Id,
    },
    Discard {
        share: usize,
        id: Id,
    },
    Restock,
    BringTotal {
        share: usize,
    },
    Ask,
    Look {
        share: usize,
    },
    CountMoves,
}

/// A situation that a setting must reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Witness {
    AllIssued,
    /// A unit went to the other share and back.
    MovedBack,
    /// A move is committed, and its receiver has not got the unit while nothing is in flight for it.
    LateMove,
    Rejected,
    ToldSoldOut,
}

impl Moves {
    pub fn is_move(&self, id: Id) -> bool {
        id >= self.requests * SHARES as u8
    }

    fn pulls(&self) -> bool {
        !matches!(self.variant, Variant::NoPull | Variant::SettlesFirstWithoutPull)
    }

    fn credits_before_ledger(&self) -> bool {
        matches!(self.variant, Variant::CreditsBeforeLedger | Variant::CreditsBeforeLedgerUnchecked)
    }

    fn settles_first(&self) -> bool {
        matches!(self.variant, Variant::SettlesFirst | Variant::SettlesFirstWithoutPull)
    }

    /// Whether Redis may have lost what it acknowledged.
    fn may_have_lost(&self, state: &State) -> bool {
        state.losses > 0 && self.kinds.iter().any(|loss| *loss != Loss::Restart)
    }
}

impl Model for Moves {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let ledger = Ledger::new(self.total);
        let share = |share| Share {
            condition: Condition::Open,
            total: self.total,
            free: state::native(share, self.total),
            ..Share::default()
        };
        vec![State { ledger, shares: [share(0), share(1)], ..State::default() }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.work(state, actions);
        self.interfere(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut state = *state;
        self.act(&mut state, action)?;
        self.watch(&mut state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(NEVER_TWICE, never_twice),
            Property::always(ONE_PLACE, one_place),
            Property::always(NOBODY_REJECTED, |moves: &Moves, state: &State| {
                moves.may_have_lost(state) || !state.ledger.has(Kind::Rejected)
            }),
            Property::always(AT_REST, at_rest),
            Property::always(look::TRULY_SOLD_OUT, |_, state: &State| !state.told_falsely),
        ];
        properties.extend(self.witnesses.iter().map(|witness| witness.property()));
        properties
    }
}

fn never_twice(_: &Moves, state: &State) -> bool {
    let issued = || state.ledger.of_kind(Kind::Issued).filter_map(|(_, record)| record.unit);
    let serials: Set = issued().map(Unit::serial).collect();
    usize::from(serials.len()) == issued().count()
}

/// As long as Redis lost nothing: free in one share, reserved, issued, or in transit, and only one of these. A share that
/// is not open has no accounts.
fn one_place(moves: &Moves, state: &State) -> bool {
    if moves.may_have_lost(state) || state.shares.iter().any(|share| share.condition != Condition::Open) {
        return true;
    }
    (1..=state.ledger.total).filter(|serial| *serial <= state.shares[born_in(*serial)].total).all(|serial| {
        let is_it = |unit: Option<Unit>| unit.is_some_and(|unit| unit.serial() == serial);
        let free =
            state.shares.iter().flat_map(|share| share.free.iter()).filter(|unit| is_it(Some(Unit(*unit))));
        let undecided = state
            .shares
            .iter()
            .flat_map(Share::flying)
            .filter(|(id, flight)| state.ledger.get(*id).is_none() && is_it(flight.unit));
        let issued = state.ledger.of_kind(Kind::Issued).filter(|(_, record)| is_it(record.unit));
        let in_transit = state.ledger.of_kind(Kind::Moved).filter(|(id, record)| {
            is_it(record.unit) && !state.shares[record.receiver()].credited.contains(*id)
        });
        free.count() + undecided.count() + issued.count() + in_transit.count() == 1
    })
}

/// When no process has anything to do any more, everything is done.
fn at_rest(moves: &Moves, state: &State) -> bool {
    if moves.has_work(state) {
        return true;
    }
    let is_done = |share: &Share| share.condition == Condition::Open && share.flying().next().is_none();
    if state.hands.iter().any(Option::is_some) || !state.shares.iter().all(is_done) {
        return false;
    }
    let free = state.shares.iter().flat_map(|share| share.free.iter()).map(|unit| Unit(unit).serial());
    let issued = state.ledger.of_kind(Kind::Issued).filter_map(|(_, record)| record.unit).map(Unit::serial);
    let mut serials: Vec<_> = free.chain(issued).collect();
    serials.sort_unstable();
    serials.into_iter().eq(1..=state.ledger.total)
}

impl Witness {
    fn property(self) -> Property<Moves> {
        match self {
            Witness::AllIssued => Property::sometimes("all is issued", |_, state: &State| {
                state.ledger.of_kind(Kind::Issued).count() == usize::from(state.ledger.total)
            }),
            Witness::MovedBack => Property::sometimes("a unit came back", |_, state: &State| {
                (0..SHARES).any(|share| {
                    let free = || state.shares[share].free.iter().map(Unit);
                    free().any(|unit| unit.hop() == 2 && born_in(unit.serial()) == share)
                })
            }),
            Witness::LateMove => Property::sometimes("a move waits for the audit", |_, state: &State| {
                let is_late = |(id, record): (Id, &Record)| {
                    let receiver = &state.shares[record.receiver()];
                    let credited = receiver.credited.contains(id) || receiver.condition != Condition::Open;
                    let known = state.shares.iter().any(|share| share.in_flight[usize::from(id)].is_some())
                        || state.hands.iter().flatten().any(|hand| hand.id == id);
                    !credited && !known
                };
                state.ledger.of_kind(Kind::Moved).any(is_late)
            }),
            Witness::Rejected => Property::sometimes("somebody is rejected", |_, state: &State| {
                state.ledger.has(Kind::Rejected)
            }),
            Witness::ToldSoldOut => {
                Property::sometimes("somebody is told sold out", |_, state: &State| state.told)
            }
        }
    }
}
