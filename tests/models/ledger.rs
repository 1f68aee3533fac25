//! The ledger: one record an id, written once, under the two unique indexes.

use super::state::{IDS_MAX, Id, NO_UNIT, Serial, Set, USERS_MAX};
use super::{Protocol, Variant};

/// An outcome as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Record {
    Issued {
        serial: Serial,
        nth: u8,
    },
    /// `lost`: its unit is another record's, and is not given back.
    Rejected {
        reason: Reason,
        serial: Serial,
        lost: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    AlreadyIssued,
    SoldOut,
    Discarded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    Decided,
    Conflict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ledger {
    pub total: u8,
    records: [Option<Record>; IDS_MAX],
}

impl Ledger {
    pub fn new(total: u8) -> Self {
        Ledger { total, records: [None; IDS_MAX] }
    }

    pub fn get(&self, id: Id) -> Option<Record> {
        self.records[usize::from(id)]
    }

    pub fn insert(&mut self, protocol: &Protocol, id: Id, record: Record) -> Inserted {
        let user = protocol.user(id);
        let no_unit_index = matches!(protocol.variant, Variant::CountInsteadOfSerials | Variant::NoUnitIndex);
        let no_user_index = protocol.variant == Variant::NoUserIndex;
        let taken = self.issued_records().any(|(other, serial, nth)| match record {
            Record::Issued { serial: mine, nth: my_nth } => {
                (serial == mine && !no_unit_index)
                    || (protocol.user(other) == user && nth == my_nth && !no_user_index)
            }
            Record::Rejected { .. } => false,
        });
        if taken || self.get(id).is_some() {
            return Inserted::Conflict;
        }
        self.records[usize::from(id)] = Some(record);
        Inserted::Decided
    }

    /// Id, unit and nth of each issued record.
    pub fn issued_records(&self) -> impl Iterator<Item = (Id, Serial, u8)> {
        (0..).zip(&self.records).filter_map(|(id, record)| match record {
            Some(Record::Issued { serial, nth }) => Some((id, *serial, *nth)),
            _ => None,
        })
    }

    pub fn issued(&self) -> Set {
        self.issued_records().map(|(id, ..)| id).collect()
    }

    pub fn rejected(&self) -> Set {
        let rejected = |record: &Option<Record>| matches!(record, Some(Record::Rejected { .. }));
        (0..).zip(&self.records).filter(|(_, record)| rejected(record)).map(|(id, _)| id).collect()
    }

    pub fn serial_of(&self, id: Id) -> Serial {
        match self.get(id) {
            Some(Record::Issued { serial, .. }) => serial,
            _ => NO_UNIT,
        }
    }

    /// Whether another issuance than `id` holds a unit.
    pub fn is_anothers(&self, serial: Serial, id: Id) -> bool {
        serial != NO_UNIT && self.issued_records().any(|(other, held, _)| held == serial && other != id)
    }

    /// The ids of the units that a user holds.
    pub fn held_by(&self, protocol: &Protocol, user: u8) -> Set {
        self.issued_records().map(|(id, ..)| id).filter(|id| protocol.user(*id) == user).collect()
    }

    /// The smallest nth that a user may still have.
    pub fn nth_left(&self, protocol: &Protocol, user: u8, wanted: u8) -> Option<u8> {
        let held: Set = self
            .issued_records()
            .filter(|(id, ..)| protocol.user(*id) == user)
            .map(|(_, _, nth)| nth)
            .collect();
        let smallest = (1..=protocol.per_user).find(|nth| !held.contains(*nth))?;
        Some(if held.contains(wanted) { smallest } else { wanted })
    }

    /// How many units each user holds.
    pub fn holdings(&self, protocol: &Protocol) -> [u8; USERS_MAX] {
        let mut holdings = [0; USERS_MAX];
        for (id, ..) in self.issued_records() {
            holdings[usize::from(protocol.user(id))] += 1;
        }
        holdings
    }
}
