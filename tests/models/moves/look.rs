//! The double look: a process that was asked whether the coupon is sold out looks at every share, twice.
//!
//! First pass: a share that has free units, or lends some, ends it, for then there is something to wait for; one that
//! cannot be looked at ends it too, with 503. Second pass: a share that gained since its first look, or whose epoch
//! changed, ends it. If nothing ended it, no share gained between its two looks, so each was empty from the first to the
//! second, and so were all at the instant between the passes; nothing was lent by any share at its first look, and an
//! empty share lends nothing.
//!
//! That covers moves that the donor counts as lent. It does not cover one that its donor forgot with its data, and that a
//! hand of an earlier epoch commits afterwards. Between the passes the asker may therefore count the moves that the ledger
//! has, and compare with those that were credited ([`Moves::counts_moves`]): then the answer is exact after losses too.

use super::state::{Condition, SHARES, State};
use super::{Action, Moves, Variant};
use crate::state::Set;

pub const TRULY_SOLD_OUT: &str = "whoever is told sold out, it was so at an instant since the question";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Pass {
    #[default]
    First,
    /// Between the passes: are all moves that the ledger has credited?
    Ledger,
    Second,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Asker {
    pass: Pass,
    /// The shares that were looked at in this pass.
    looked: Set,
    /// The shares that gained, or were opened in a new epoch, since the first look at them.
    gained: Set,
    /// Whether every share was empty, and nothing in transit, at an instant since the question. No process knows it.
    was_sold_out: bool,
}

impl Asker {
    /// A share's counter of gains is raised.
    pub fn gains(&mut self, share: usize) {
        if self.has_seen(share) {
            self.gained.insert(share as u8);
        }
    }

    fn has_seen(&self, share: usize) -> bool {
        self.pass != Pass::First || self.looked.contains(share as u8)
    }
}

impl Moves {
    pub fn asking(&self, state: &State, actions: &mut Vec<Action>) {
        match &state.asker {
            Some(Asker { pass: Pass::Ledger, .. }) => actions.push(Action::CountMoves),
            Some(asker) => {
                let left = (0..SHARES).filter(|share| !asker.looked.contains(*share as u8));
                actions.extend(left.map(|share| Action::Look { share }));
            }
            None if self.asks && !state.told => actions.push(Action::Ask),
            None => {}
        }
    }

    pub fn ask(&self, state: &mut State) {
        state.asker = Some(Asker::default());
    }

    pub fn look(&self, state: &mut State, share: usize) {
        let Some(mut asker) = state.asker.take() else { return };
        let it = &state.shares[share];
        let is_open = it.condition == Condition::Open;
        let has_units =
            is_open && (!it.free.is_empty() || (it.lending(self) > 0 && self.variant != Variant::NoLending));
        let goes_on = match (asker.pass, self.variant) {
            (_, Variant::UnreachableIsEmpty) if !is_open => true,
            _ if !is_open => false,
            (Pass::First, _) | (_, Variant::NoGains) => !has_units,
            _ => !asker.gained.contains(share as u8),
        };
        if !goes_on {
            return;
        }
        asker.looked.insert(share as u8);
        if usize::from(asker.looked.len()) == SHARES {
            if asker.pass == Pass::Second || self.variant == Variant::OneLook {
                state.told = true;
                state.told_falsely = !asker.was_sold_out;
                return;
            }
            asker.pass = if self.counts_moves { Pass::Ledger } else { Pass::Second };
            asker.looked = Set::default();
        }
        state.asker = Some(asker);
    }

    /// One read of the ledger. A credit since the first look is a gain, and ends the second pass.
    pub fn count_moves(&self, state: &mut State) {
        let late = (0..SHARES).any(|share| {
            let credited = state.shares[share].credited;
            state.ledger.moved_to(share).any(|(id, _)| !credited.contains(id))
        });
        match &mut state.asker {
            Some(asker) if !late => asker.pass = Pass::Second,
            _ => state.asker = None,
        }
    }

    /// A share is open in a new epoch, and counts its gains from 0.
    pub fn opened(&self, state: &mut State, share: usize) {
        let Some(asker) = &mut state.asker else { return };
        if self.variant == Variant::NoEpoch {
            asker.gained.remove(share as u8);
        } else {
            asker.gains(share);
        }
    }

    /// After each step: records for the properties what no process sees.
    pub fn watch(&self, state: &mut State) {
        if state.asker.is_some() && self.is_sold_out(state) {
            let asker = state.asker.as_mut();
            asker.into_iter().for_each(|asker| asker.was_sold_out = true);
        }
    }

    /// Whether every share is empty and nothing is in transit. A share that is closed has what a rebuild would give it.
    fn is_sold_out(&self, state: &State) -> bool {
        (0..SHARES).all(|number| {
            let share = &state.shares[number];
            let (free, in_flight, credited) = match share.condition {
                Condition::Closed => {
                    let rebuilt = self.rebuilt(state, number);
                    (rebuilt.free, rebuilt.in_flight, rebuilt.credited)
                }
                _ => (share.free, share.in_flight, share.credited),
            };
            let late = state.ledger.moved_to(number).any(|(id, _)| !credited.contains(id));
            let lends = (0..).zip(in_flight).any(|(id, flight)| {
                flight.is_some_and(|flight| flight.unit.is_some())
                    && self.is_move(id)
                    && state.ledger.get(id).is_none()
            });
            free.is_empty() && !late && !lends
        })
    }
}
