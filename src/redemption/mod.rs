//! Using a held coupon: use, undo the use, take the coupon away. Separate from its issue: the outcome in
//! the ledger is written once and stays; what is kept of the redemption lies beside it in the same
//! document, and each change of it is one compare-and-set ([`RedemptionStore`]).
//!
//! What each change means is decided here, from what is held and from the moment alone ([`Redemption::judge`]).

mod record;
mod reference;
mod store;

pub use reference::Reference;
pub use store::{Changed, HeldPlace, Holding, NAMELESS_MAX, RedemptionStore, UNITS_PAGE, queries};

use jiff::Timestamp;

/// Uses of one coupon at most, those that were restored among them. It bounds the history.
pub const USES_MAX: usize = 50;

/// What became of a held coupon since its issue.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Redemption {
    pub state: State,
    /// Counts the changes; 0 before the first.
    pub version: i64,
    /// All changes, the oldest first.
    pub history: Vec<Event>,
}

/// Whether a held coupon is used. That it has expired is no state: the clock says so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum State {
    #[default]
    Active,
    Used {
        at: Timestamp,
        reference: Option<Reference>,
    },
    /// Taken away, for good.
    Revoked,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub what: What,
    /// By MongoDB's clock.
    pub at: Timestamp,
    /// What it was used for; `None` where it was revoked, or its user deleted since.
    pub reference: Option<Reference>,
    /// Who did it, as the service knows callers.
    pub by: String,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Used,
    Restored,
    Revoked,
}

impl What {
    /// The name on the wire and in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            What::Used => "used",
            What::Restored => "restored",
            What::Revoked => "revoked",
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Use {
        reference: Reference,
    },
    /// Undoes a use; with a reference, only the use with that one.
    Restore {
        reference: Option<Reference>,
    },
    Revoke,
}

impl Change {
    /// What is noted once it is made.
    pub fn what(&self) -> What {
        match self {
            Change::Use { .. } => What::Used,
            Change::Restore { .. } => What::Restored,
            Change::Revoke => What::Revoked,
        }
    }
}

/// What a change comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is to be made.
    Make,
    /// It was made before: the same request again.
    Made,
    Refused(Refusal),
}

/// Why a change is not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Something else used it.
    Used {
        at: Timestamp,
        reference: Option<Reference>,
    },
    /// This reference used it, and that use was restored: a late repetition must not use it again.
    Spent,
    /// It was used [`USES_MAX`] times.
    UsedUp,
    /// There is no use to undo.
    NotUsed,
    /// There is one, with another reference.
    UsedForAnother,
    /// It was valid until then.
    Expired {
        end: Timestamp,
    },
    Revoked,
}

impl Redemption {
    /// What `change` comes to at `now`, for a coupon that is valid until `end`.
    ///
    /// A use that stands is recognised by its reference before anything else is asked, so that who lost
    /// the answer gets it, whatever the time. Undoing and revoking need no validity.
    pub fn judge(&self, change: &Change, end: Option<Timestamp>, now: Timestamp) -> Verdict {
        match change {
            Change::Use { reference } => self.judge_use(reference, end, now),
            Change::Restore { reference } => self.judge_restore(reference.as_ref()),
            Change::Revoke => match self.state {
                State::Revoked => Verdict::Made,
                State::Active | State::Used { .. } => Verdict::Make,
            },
        }
    }

    fn judge_use(&self, reference: &Reference, end: Option<Timestamp>, now: Timestamp) -> Verdict {
        Verdict::Refused(match &self.state {
            State::Revoked => Refusal::Revoked,
            State::Used { reference: Some(used), .. } if used == reference => return Verdict::Made,
            _ if self.has(What::Used, reference) => Refusal::Spent,
            State::Used { at, reference } => Refusal::Used { at: *at, reference: reference.clone() },
            State::Active => match end {
                Some(end) if now >= end => Refusal::Expired { end },
                _ if self.uses() >= USES_MAX => Refusal::UsedUp,
                _ => return Verdict::Make,
            },
        })
    }

    fn judge_restore(&self, wanted: Option<&Reference>) -> Verdict {
        if let State::Revoked = self.state {
            return Verdict::Refused(Refusal::Revoked);
        }
        if wanted.is_some_and(|wanted| self.has(What::Restored, wanted)) {
            return Verdict::Made;
        }
        match &self.state {
            State::Used { reference, .. } if wanted.is_none() || wanted == reference.as_ref() => {
                Verdict::Make
            }
            State::Used { .. } => Verdict::Refused(Refusal::UsedForAnother),
            State::Active | State::Revoked => Verdict::Refused(Refusal::NotUsed),
        }
    }

    fn has(&self, what: What, reference: &Reference) -> bool {
        self.history.iter().any(|event| event.what == what && event.reference.as_ref() == Some(reference))
    }

    fn uses(&self) -> usize {
        self.history.iter().filter(|event| event.what == What::Used).count()
    }
}

#[cfg(test)]
mod tests;
