//! What an audit can find: every kind of damage, what it means and what to do about it.

use std::fmt;
use std::sync::LazyLock;

use crate::ids::{CouponId, IssuanceId, Unit, UserId};
use crate::metrics::{Family, names};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// No damage: it is being dealt with.
    Passing,
    /// The accounts are wrong. A repair puts them right.
    Drift,
    /// A promise is broken. A person must decide what to do.
    Broken,
}

impl Severity {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Passing => "passing",
            Severity::Drift => "drift",
            Severity::Broken => "broken",
        }
    }
}

/// Counts what audits found, by its code.
pub(crate) static FINDINGS: LazyLock<Family> = LazyLock::new(|| {
    let codes: Vec<_> = FindingKind::ALL.iter().map(|kind| kind.code()).collect();
    Family::new(names::AUDIT_FINDINGS, "finding", &codes)
});

macro_rules! kinds {
    ($($kind:ident $code:literal $severity:ident $means:literal $advice:literal;)*) => {
        /// A kind of damage. Codes are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum FindingKind {
            $(#[doc = $means] $kind,)*
        }

        impl FindingKind {
            /// All there are.
            pub const ALL: &[FindingKind] = &[$(FindingKind::$kind),*];

            /// The name on the wire, in kebab case.
            pub fn code(self) -> &'static str {
                match self { $(FindingKind::$kind => $code),* }
            }

            /// How bad it is.
            pub fn severity(self) -> Severity {
                match self { $(FindingKind::$kind => Severity::$severity),* }
            }

            /// What it means, in a sentence.
            pub fn means(self) -> &'static str {
                match self { $(FindingKind::$kind => $means),* }
            }

            /// What to do about it, in a sentence.
            pub fn advice(self) -> &'static str {
                match self { $(FindingKind::$kind => $advice),* }
            }
        }
    };
}

kinds! {
    AnotherRedis "another-redis" Broken
        "Another Redis serves this ledger, and this one must not: what it holds proves nothing, and nothing was audited."
        "Point --redis-url of every process, and of this command, at the Redis that serves.";
    RecordMissing "record-missing" Broken
        "Redis counts an issuance for this user that the ledger has no record of, and nothing waits to be decided: its record was deleted."
        "Restore the record from a backup of MongoDB; its unit is kept out of stock until then.";
    UnitIssuedTwice "unit-issued-twice" Broken
        "Two issued records hold the same unit: the unique index was missing when the second was written."
        "Revoke one of them, or restock and give it another unit; make the index again (couponctl check says how).";
    LimitExceeded "limit-exceeded" Broken
        "A user holds more of this coupon than the limit allows, or two records claim the same place within it."
        "Revoke what is too much; make the index again if it is missing (couponctl check says how).";
    UnitElsewhere "unit-elsewhere" Broken
        "An issued record holds a unit that this share of the coupon does not have: it was not born here, and no move brought it. The share that has it may issue it too."
        "Compare it with the records of the same serial in the coupon's other shares, and revoke one of them.";
    SerialBeyondTotal "serial-beyond-total" Broken
        "An issued record holds a unit beyond the coupon's total: more was issued than there is."
        "Restock the coupon so that the unit exists, or revoke the record.";
    CouponAhead "coupon-ahead" Broken
        "Redis knows a larger total, or a later change, than the coupon's record: MongoDB lost a change, perhaps by restoring a backup."
        "Make the operator's change again (couponctl coupon restock, edit), until the record is not behind.";
    InFlightUnreadable "in-flight-unreadable" Broken
        "The in-flight value of an accepted issuance cannot be read."
        "A worker replaces it from the stream when it decides the issuance. If it is a dead letter, redrive it, or discard it (couponctl dead-letter).";
    InFlightSetAside "in-flight-set-aside" Broken
        "A rebuild met in-flight values that it could not read, of no issuance or in an earlier version, and set them aside."
        "Run couponctl recover --rebuild: those of issuances become dead letters, to be discarded. Read the others (HGETALL of the key coupon:{n}:damaged), and delete them.";
    InFlightNotLoaded "in-flight-not-loaded" Broken
        "Issuances of this coupon are in flight, but the coupon is not loaded: its units are not counted."
        "Read in the log why it could not be loaded, and correct that (its record, say): the next request for it has it loaded with what is in flight.";
    RecordUnreadable "record-unreadable" Broken
        "This version cannot read a record of the ledger. What it decided stands; if it is issued, a unit is kept out of stock for it."
        "Run the version that wrote it, or correct the record by hand, after the pattern in src/issuance/ledger/record.rs.";
    Misrouted "misrouted" Broken
        "An accepted issuance or an issued record of this coupon lies in another partition than its id and the coupon say: no unique index compares its unit, and its user's limit, with the others."
        "Discard the request (couponctl dead-letter discard). Of a record: run couponctl ledger migrate if it names no partition (p); else compare it with the others of its coupon, and correct its p by hand.";
    EntryUnreadable "entry-unreadable" Broken
        "A stream entry cannot be read, so its issuance waits for ever, unless it is in flight and gets a fresh entry."
        "Read it with XRANGE; run the version that wrote it, or delete it if its issuance is decided.";
    DeadLetterUnreadable "dead-letter-unreadable" Broken
        "Something among the dead letters is kept under an id that is none: no list shows it, and nothing waits for it."
        "Read it (HGETALL of the key coupon:{n}:E:dead), then delete its field (HDEL).";
    CouponRecordMissing "coupon-record-missing" Broken
        "Redis has this coupon, or something of it in flight, and MongoDB has no record of it: nothing of it can be decided."
        "Restore its record (coupons in MongoDB) from a backup; then redrive its dead letters.";
    CouponRecordUnreadable "coupon-record-unreadable" Broken
        "The coupon's record in MongoDB cannot be read, so nothing of it can be decided, changed or loaded."
        "Correct the record (coupons in MongoDB), or run the version that wrote it.";
    CouponUnreadable "coupon-unreadable" Broken
        "What Redis holds of this coupon cannot be read: requests for it are answered 503."
        "Delete the key coupon:{n}:certificate: everything is refused for a moment and rebuilt from the ledger.";
    HoldersUnreadable "holders-unreadable" Broken
        "What Redis counts for this user is no list of ids."
        "Delete the key coupon:{n}:certificate: everything is refused for a moment and rebuilt from the ledger.";
    CouponBehind "coupon-behind" Drift
        "Redis missed an operator's change of this coupon."
        "The API brings it there by itself; or run with --repair.";
    ServiceBehind "service-behind" Drift
        "What Redis holds of the service's state is not that of the record: it missed a pause, say."
        "The API brings it there by itself; or run with --repair.";
    ServiceUnreadable "service-unreadable" Broken
        "The record of the service's state cannot be read: what of it cannot be read counts as paused, once Redis is rebuilt."
        "Pause or resume the service (couponctl service): that writes the record anew.";
    CountersUnreadable "counters-unreadable" Drift
        "A count of the queue in Redis cannot be read: estimates of how long requests wait rest on it."
        "The API sets it anew by itself; or run with --repair.";
    SerialFreeAndIssued "serial-free-and-issued" Drift
        "Redis would hand out a unit that the ledger says is issued, or was moved to another share; its next request would be given another."
        "Run with --repair: the unit is taken out of the free ones.";
    SerialFreeAndInFlight "serial-free-and-in-flight" Drift
        "Redis would hand out a unit that is reserved for another request."
        "Run with --repair: the unit is taken out of the free ones.";
    SerialInFlightTwice "serial-in-flight-twice" Drift
        "Two requests have the same unit reserved; the ledger will give it to one of them."
        "Run with --repair: the later one gets a unit of its own.";
    SerialInFlightAndIssued "serial-in-flight-and-issued" Drift
        "A request has a unit reserved that another record holds in the ledger."
        "A worker gives it another unit; or run with --repair.";
    FreeUnknown "free-unknown" Drift
        "The free set holds something that is no unit, or a unit that the counter will hand out as well."
        "Run with --repair: it is taken out of the set.";
    SerialLeaked "serial-leaked" Drift
        "A unit is neither free, nor reserved, nor issued: it can never be issued."
        "Run with --repair: the unit is given back.";
    RecordNotCounted "record-not-counted" Drift
        "The ledger has an issued record that Redis does not count: it was written after a recovery had read the ledger."
        "The API adopts it by itself; or run with --repair.";
    MoveNotCredited "move-not-credited" Drift
        "A unit was moved to this share of the coupon, and Redis does not have it there: whoever moved it stopped on the way."
        "The API credits it by itself; or run with --repair.";
    MoveNotCounted "move-not-counted" Drift
        "A unit was moved away from this share of the coupon, and Redis does not count that: it was written after a recovery had read the ledger."
        "The API adopts it by itself; or run with --repair.";
    LendingCounted "lending-counted" Drift
        "Redis counts a unit as on its way to another share of the coupon, and it has left: while it is counted, nobody is told that the coupon is sold out."
        "Run with --repair: it is not counted any more.";
    RejectionCounted "rejection-counted" Drift
        "Redis counts a rejected issuance as one that the user holds, so the user is turned away."
        "Run with --repair: it is not counted any more.";
    InFlightLost "in-flight-lost" Drift
        "A stream entry is undecided, and its in-flight value is gone: what a worker decides about it would not be settled."
        "Run with --repair: the in-flight value is put back from the entry.";
    EntryOrphaned "entry-orphaned" Drift
        "A stream entry is decided and not in flight any more: it waits for nothing."
        "Run with --repair: the entry is deleted.";
    CountDrifted "count-drifted" Drift
        "Redis counts another number of issued units than the ledger has, though every unit is where it should be."
        "Run with --repair: the count is set right when nothing of the coupon is in flight.";
    FinalCountStale "final-count-stale" Drift
        "The number of issued units that is kept with this coupon, which is over and not in Redis any more, is not the ledger's: a record was written late."
        "The API counts it anew by itself if the coupon ended within a day; or run with --repair.";
    FiguresDisagree "figures-disagree" Drift
        "Settled, issued and out of stock do not stand in order."
        "Run with --full: it names the units.";
    DecidedInFlight "decided-in-flight" Passing
        "The ledger has decided this issuance, and Redis does not have the decision."
        "Nothing: a full audit settles it.";
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// One piece of damage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub kind: FindingKind,
    /// `None` where it belongs to no coupon, or that cannot be determined.
    pub coupon: Option<CouponId>,
    pub unit: Option<Unit>,
    /// The issuances that are concerned; of two with one unit, both.
    pub issuances: Vec<IssuanceId>,
    pub user: Option<UserId>,
    /// The stream entry, if it is about one.
    pub entry: Option<String>,
    /// What was seen, where the kind alone does not say it.
    pub detail: Option<String>,
}

impl Finding {
    pub(crate) fn new(kind: FindingKind, coupon: Option<&CouponId>) -> Self {
        Finding {
            kind,
            coupon: coupon.cloned(),
            unit: None,
            issuances: Vec::new(),
            user: None,
            entry: None,
            detail: None,
        }
    }

    /// Whether it is about a record that does not say which unit it holds.
    pub(super) fn may_hold_any_unit(&self) -> bool {
        self.kind == FindingKind::RecordUnreadable && self.unit.is_none()
    }

    /// Whether a repair would try it. Not where its unit may belong to a missing record.
    pub(crate) fn is_repairable(&self) -> bool {
        let kept_back = self.kind == FindingKind::SerialLeaked && self.detail.is_some();
        self.kind.severity() != Severity::Broken && !kept_back
    }

    /// Whether it is damage, and not something that passes by itself.
    pub fn is_damage(&self) -> bool {
        self.kind.severity() > Severity::Passing
    }
}

/// One line: the code, and what it is about.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.code())?;
        if let Some(coupon) = &self.coupon {
            write!(f, " coupon={coupon}")?;
        }
        if let Some(unit) = self.unit {
            write!(f, " serial={}", unit.serial())?;
            if unit.hop() > 0 {
                write!(f, " hop={}", unit.hop())?;
            }
        }
        for id in &self.issuances {
            write!(f, " issuance={id}")?;
        }
        if let Some(user) = &self.user {
            write!(f, " user={user}")?;
        }
        if let Some(entry) = &self.entry {
            write!(f, " entry={entry}")?;
        }
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_kebab_case_and_every_kind_says_what_it_means_and_what_to_do() {
        let mut codes: Vec<_> = FindingKind::ALL.iter().map(|kind| kind.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), FindingKind::ALL.len());
        for kind in FindingKind::ALL {
            assert!(kind.code().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{kind}");
            assert!(kind.means().ends_with('.') && kind.advice().ends_with('.'), "{kind}");
        }
    }
}
