//! A worker with one entry in hand, from reading it to settling it. Between any two steps anything may happen, for any
//! time: that is the pause. An operator who discards is modelled as a worker.

use super::ledger::{Inserted, Reason, Record};
use super::scripts::{self, Certified, Reassigned, Settlement};
use super::state::{Epoch, Id, NO_UNIT, Serial, Set, State};
use super::{Protocol, Variant};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Worker {
    step: Step,
    /// The epoch that the entry was read under.
    epoch: Epoch,
    id: Id,
    entry: u8,
    serial: Serial,
    nth: u8,
    operator: bool,
}

/// The worker's next step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    #[default]
    Idle,
    Insert,
    LookById,
    LookWhoHasTheUnit,
    LookWhatTheUserHolds {
        anothers: bool,
    },
    Reassign,
    /// An operator reads the decision before the rejection.
    LookWhetherTheUnitIsLost,
    Reject {
        reason: Reason,
        lost: bool,
    },
    /// Rejected as already issued: read what the user holds.
    LookWhatToRemember {
        decision: Record,
    },
    Settle {
        decision: Record,
        holds: Set,
    },
}

impl Worker {
    pub fn is_idle(&self) -> bool {
        self.step == Step::Idle
    }

    /// The next step, with what the worker knows.
    pub fn next(&self) -> (Id, Step) {
        (self.id, self.step)
    }

    /// Whether the worker can make its next step now: scripts wait for a certificate.
    pub fn can_go_on(&self, state: &State) -> bool {
        match self.step {
            Step::Idle => false,
            Step::Reassign | Step::Settle { .. } => scripts::certified(state, self.epoch) != Certified::No,
            _ => true,
        }
    }

    /// Gets a stream entry, and checks whether the coupon has such a unit.
    pub fn read(protocol: &Protocol, state: &State, id: Id) -> Option<Worker> {
        let epoch = state.known_epoch()?;
        let entry = state.redis.epochs.get(&epoch)?.stream[usize::from(id)]?;
        let (serial, nth) = (entry.serial, entry.nth);
        let counted = protocol.variant == Variant::CountInsteadOfSerials;
        let there_is = counted || (serial != NO_UNIT && serial <= state.ledger.total);
        let step = if there_is { Step::Insert } else { Step::Reassign };
        Some(Worker { step, epoch, id, entry: entry.entry, serial, nth, operator: false })
    }

    /// Reads what an operator wants to discard.
    pub fn discard(state: &State, id: Id) -> Option<Worker> {
        let epoch = state.known_epoch()?;
        let flight = state.redis.epochs.get(&epoch)?.in_flight[usize::from(id)]?;
        let step = Step::LookWhetherTheUnitIsLost;
        Some(Worker { step, epoch, id, entry: flight.entry, serial: flight.serial, nth: 0, operator: true })
    }

    /// Makes the next step. `pick` says which of the free units SPOP gives.
    pub fn go_on(mut self, protocol: &Protocol, state: &mut State, pick: u8) -> Worker {
        let ledger = &mut state.ledger;
        self.step = match self.step {
            Step::Idle => Step::Idle,
            Step::Insert => {
                let decision = Record::Issued { serial: self.serial, nth: self.nth };
                match ledger.insert(protocol, self.id, decision) {
                    Inserted::Decided => Step::Settle { decision, holds: Set::default() },
                    Inserted::Conflict => Step::LookById,
                }
            }
            Step::LookById => match ledger.get(self.id) {
                Some(winner) => self.adopt(winner),
                None => Step::LookWhoHasTheUnit,
            },
            Step::LookWhoHasTheUnit => {
                Step::LookWhatTheUserHolds { anothers: ledger.is_anothers(self.serial, self.id) }
            }
            Step::LookWhatTheUserHolds { anothers } => {
                let user = protocol.user(self.id);
                if ledger.held_by(protocol, user).contains(self.id) {
                    Step::Insert
                } else if let Some(nth) = ledger.nth_left(protocol, user, self.nth) {
                    self.nth = nth;
                    if anothers { Step::Reassign } else { Step::Insert }
                } else {
                    Step::Reject { reason: Reason::AlreadyIssued, lost: anothers }
                }
            }
            Step::Reassign => return self.reassign(protocol, state, pick),
            Step::LookWhetherTheUnitIsLost => {
                let lost = ledger.is_anothers(self.serial, self.id);
                Step::Reject { reason: Reason::Discarded, lost }
            }
            Step::Reject { reason, lost } => {
                let decision = Record::Rejected { reason, serial: self.serial, lost };
                if protocol.variant == Variant::NoTombstone {
                    // Reading the ledger first does not help.
                    self.adopt(ledger.get(self.id).unwrap_or(decision))
                } else {
                    match ledger.insert(protocol, self.id, decision) {
                        Inserted::Decided => self.adopt(decision),
                        Inserted::Conflict => Step::LookById,
                    }
                }
            }
            Step::LookWhatToRemember { decision } => {
                Step::Settle { decision, holds: ledger.held_by(protocol, protocol.user(self.id)) }
            }
            Step::Settle { decision, holds } => {
                if scripts::certified(state, self.epoch) == Certified::Yes {
                    let settlement = Settlement { id: self.id, entry: self.entry, decision, holds };
                    scripts::settle(protocol, state, self.epoch, settlement);
                }
                return Worker::default();
            }
        };
        // Values that no later step reads must not distinguish two states.
        if matches!(self.step, Step::Settle { .. } | Step::LookWhatToRemember { .. }) {
            (self.serial, self.nth, self.operator) = (NO_UNIT, 0, false);
        }
        self
    }

    /// Adopts a decision. The operator's path does not read what the user holds.
    fn adopt(&self, decision: Record) -> Step {
        match decision {
            Record::Rejected { reason: Reason::AlreadyIssued, .. } if !self.operator => {
                Step::LookWhatToRemember { decision }
            }
            _ => Step::Settle { decision, holds: Set::default() },
        }
    }

    fn reassign(mut self, protocol: &Protocol, state: &mut State, pick: u8) -> Worker {
        if scripts::certified(state, self.epoch) != Certified::Yes {
            return Worker::default();
        }
        let Some(data) = state.redis.epochs.get_mut(&self.epoch) else { return Worker::default() };
        match scripts::reassign(protocol, data, self.id, self.entry, self.serial, pick) {
            Reassigned::To(serial) => {
                self.serial = serial;
                self.step = Step::Insert;
            }
            Reassigned::NoneFree => self.step = Step::Reject { reason: Reason::SoldOut, lost: true },
            Reassigned::Gone => return Worker::default(),
        }
        self
    }
}
