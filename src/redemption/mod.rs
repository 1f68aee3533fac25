//! Using a held coupon: use, undo the use, take the coupon away. Separate from its issue: the outcome in
//! the ledger is written once and stays; what is kept of the redemption lies beside it in the same
//! document, and each change of it is one compare-and-set ([`RedemptionStore`]).
//!
//! What each change means is decided here, from what is held and from the moment alone ([`Redemption::judge`]).

mod record;
mod reference;
mod store;

pub use reference::Reference;
pub use store::{HeldCoupon, RedemptionChangeOutcome, RedemptionStore, queries};
pub(crate) use store::{HeldCursor, NAMELESS_MAX, UNITS_PAGE};

use jiff::Timestamp;

/// Uses of one coupon at most, those that were restored among them. It bounds the history.
pub(crate) const USES_MAX: usize = 50;

/// The changes of a held coupon since its issue.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Redemption {
    pub state: RedemptionState,
    /// Counts the changes; 0 before the first.
    pub version: i64,
    /// All changes, the oldest first.
    pub history: Vec<RedemptionEvent>,
}

/// Whether a held coupon is used. That it has expired is no state: the clock says so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RedemptionState {
    #[default]
    Active,
    Used {
        at: Timestamp,
        reference: Option<Reference>,
    },
    /// Taken away, for good.
    Revoked,
}

/// One change of a redemption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedemptionEvent {
    pub what: RedemptionEventKind,
    /// By MongoDB's clock.
    pub at: Timestamp,
    /// What it was used for; `None` where it was revoked, or its user deleted since.
    pub reference: Option<Reference>,
    /// Who did it, as the service knows callers.
    pub by: String,
}

/// The kind of a change that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedemptionEventKind {
    Used,
    Restored,
    Revoked,
}

impl RedemptionEventKind {
    /// The name on the wire and in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            RedemptionEventKind::Used => "used",
            RedemptionEventKind::Restored => "restored",
            RedemptionEventKind::Revoked => "revoked",
        }
    }
}

/// A change that a caller asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedemptionChange {
    Use {
        reference: Reference,
    },
    /// Undoes a use; with a reference, only the use with that one.
    Restore {
        reference: Option<Reference>,
    },
    Revoke,
}

impl RedemptionChange {
    /// The kind of the event that is recorded once the change is made.
    pub(crate) fn event_kind(&self) -> RedemptionEventKind {
        match self {
            RedemptionChange::Use { .. } => RedemptionEventKind::Used,
            RedemptionChange::Restore { .. } => RedemptionEventKind::Restored,
            RedemptionChange::Revoke => RedemptionEventKind::Revoked,
        }
    }
}

/// Whether a change is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedemptionVerdict {
    /// The change is to be made.
    Make,
    /// The change was made before: the same request again.
    Made,
    Refused(RedemptionRefusal),
}

/// Why a change is not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedemptionRefusal {
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
    pub fn judge(
        &self,
        change: &RedemptionChange,
        end: Option<Timestamp>,
        now: Timestamp,
    ) -> RedemptionVerdict {
        match change {
            RedemptionChange::Use { reference } => self.judge_use(reference, end, now),
            RedemptionChange::Restore { reference } => self.judge_restore(reference.as_ref()),
            RedemptionChange::Revoke => match self.state {
                RedemptionState::Revoked => RedemptionVerdict::Made,
                RedemptionState::Active | RedemptionState::Used { .. } => RedemptionVerdict::Make,
            },
        }
    }

    fn judge_use(&self, reference: &Reference, end: Option<Timestamp>, now: Timestamp) -> RedemptionVerdict {
        RedemptionVerdict::Refused(match &self.state {
            RedemptionState::Revoked => RedemptionRefusal::Revoked,
            RedemptionState::Used { reference: Some(used), .. } if used == reference => {
                return RedemptionVerdict::Made;
            }
            _ if self.has(RedemptionEventKind::Used, reference) => RedemptionRefusal::Spent,
            RedemptionState::Used { at, reference } => {
                RedemptionRefusal::Used { at: *at, reference: reference.clone() }
            }
            RedemptionState::Active => match end {
                Some(end) if now >= end => RedemptionRefusal::Expired { end },
                _ if self.uses() >= USES_MAX => RedemptionRefusal::UsedUp,
                _ => return RedemptionVerdict::Make,
            },
        })
    }

    fn judge_restore(&self, wanted: Option<&Reference>) -> RedemptionVerdict {
        if let RedemptionState::Revoked = self.state {
            return RedemptionVerdict::Refused(RedemptionRefusal::Revoked);
        }
        if wanted.is_some_and(|wanted| self.has(RedemptionEventKind::Restored, wanted)) {
            return RedemptionVerdict::Made;
        }
        match &self.state {
            RedemptionState::Used { reference, .. } if wanted.is_none() || wanted == reference.as_ref() => {
                RedemptionVerdict::Make
            }
            RedemptionState::Used { .. } => RedemptionVerdict::Refused(RedemptionRefusal::UsedForAnother),
            RedemptionState::Active | RedemptionState::Revoked => {
                RedemptionVerdict::Refused(RedemptionRefusal::NotUsed)
            }
        }
    }

    fn has(&self, what: RedemptionEventKind, reference: &Reference) -> bool {
        self.history.iter().any(|event| event.what == what && event.reference.as_ref() == Some(reference))
    }

    fn uses(&self) -> usize {
        self.history.iter().filter(|event| event.what == RedemptionEventKind::Used).count()
    }
}

#[cfg(test)]
mod tests;
