//! The protocol, and each way in which a test breaks it.

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    Sound,
    /// A rejection is settled without a record.
    NoTombstone,
    /// Settling does not ask what is in flight.
    NoGuard,
    /// The API, in doubt, takes a reservation back.
    ApiCompensates,
    /// A rebuild queues again what the ledger has decided.
    RebuildKeepsDecided,
    /// A rebuild reads once what is decided, and not again when it reads the accounts.
    RebuildAsksOnce,
    /// An operator may lower a total.
    TotalShrinks,
    /// Dedupe forgets an id that is issued.
    DedupeOnlyInFlight,
    /// Stock is a counter, and the ledger has no unit to hold only once.
    CountInsteadOfSerials,
    /// The ledger lacks the index that holds a unit once.
    NoUnitIndex,
    /// The ledger lacks the index that holds a user's nth unit once.
    NoUserIndex,
    /// A verification reads the ledger before what is in flight, and that only once.
    VerifyReadsLedgerFirst,
    /// A recoverer opens what it built without asking whether it is still its turn.
    OpenWithoutCompare,
    /// While the queue is moved, the certificate goes on naming the epoch that was open last.
    MoveKeepsEpoch,
    /// A load on demand does not read what is in flight.
    LoadForgetsInFlight,
    /// A load on demand does not notice that something was settled since it read what is in flight.
    LoadIgnoresSettling,
    /// A load replaces a coupon that is there.
    LoadOverPresent,
    /// What a rejected user holds comes into dedupe, but not into the accounts.
    HoldsWithoutAdoption,
    /// A stream entry of many goes with the first of its issuances that is settled.
    EntryGoesWithItsFirst,
    /// When a stream entry is taken apart, all that it held is queued again, settled or not.
    SplitIgnoresFlight,
    /// The audit does nothing for an id that Redis knows, even if its unit is free.
    AdoptsByIdOnly,
}
