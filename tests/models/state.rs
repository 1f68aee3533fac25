//! The state: Redis's data, the ledger, and the progress of each process. It consists of small numbers, so that the
//! checker copies and compares it cheaply.

use std::collections::BTreeMap;
use std::fmt;

use super::ledger::Ledger;
use super::loader::Loader;
use super::recoverer::Recoverer;
use super::worker::Worker;

/// The most requests (issuance ids) that a setting may have.
pub const IDS_MAX: usize = 4;
/// The most users that a setting may have.
pub const USERS_MAX: usize = 3;

/// An issuance id: the number of its request.
pub type Id = u8;
/// The number of a unit, from 1; [`NO_UNIT`] for none.
pub type Serial = u8;
/// The generation of Redis's data: the term of the lease that it was built under.
pub type Epoch = u8;

pub const NO_UNIT: Serial = 0;

/// A set of numbers below 8.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set(u8);

impl Set {
    pub fn contains(self, number: u8) -> bool {
        self.0 & (1 << number) != 0
    }

    pub fn insert(&mut self, number: u8) {
        self.0 |= 1 << number;
    }

    pub fn remove(&mut self, number: u8) {
        self.0 &= !(1 << number);
    }

    pub fn union(self, other: Set) -> Set {
        Set(self.0 | other.0)
    }

    pub fn without(self, other: Set) -> Set {
        Set(self.0 & !other.0)
    }

    pub fn and(self, other: Set) -> Set {
        Set(self.0 & other.0)
    }

    pub fn len(self) -> u8 {
        self.0.count_ones() as u8
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..8).filter(move |number| self.contains(*number))
    }
}

impl FromIterator<u8> for Set {
    fn from_iter<I: IntoIterator<Item = u8>>(numbers: I) -> Self {
        let mut set = Set::default();
        numbers.into_iter().for_each(|number| set.insert(number));
        set
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// An in-flight value, or a stream entry: both say which entry, which unit, and which of its user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flight {
    /// Counts the entries that were ever appended for this id: like Redis's own, never used again.
    pub entry: u8,
    pub serial: Serial,
    pub nth: u8,
}

/// The coupon's own hash, and its free units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Coupon {
    pub total: u8,
    pub next: Serial,
    pub settled: u8,
    pub free: Set,
}

impl Coupon {
    /// The free units: given back, or never reserved.
    pub fn free_units(&self) -> Set {
        self.free.union((self.next..=self.total).collect())
    }
}

/// The keys of one epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Data {
    pub coupon: Option<Coupon>,
    /// For each user the ids held or in flight.
    pub holders: [Set; USERS_MAX],
    /// The ids made from a key whose outcome is "rejected".
    pub rejected: Set,
    pub in_flight: [Option<Flight>; IDS_MAX],
    /// What XADD appended and XDEL did not delete. Any of it may be given to any worker at any time:
    /// that covers every order of reading, claiming, sweeping and redriving.
    pub stream: [Option<Flight>; IDS_MAX],
    pub built: bool,
    /// How many were settled of the coupon while it was not loaded.
    pub settled_unloaded: u8,
}

impl Data {
    pub fn flying(&self) -> Set {
        (0..).zip(&self.in_flight).filter(|(_, flight)| flight.is_some()).map(|(id, _)| id).collect()
    }

    /// The ids that Redis knows as held or in flight.
    pub fn known(&self) -> Set {
        self.holders.iter().fold(Set::default(), |known, held| known.union(*held))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Certificate {
    pub open: bool,
    /// The epoch that is open, or was last.
    pub epoch: Option<Epoch>,
    /// The instance that was certified.
    pub instance: u8,
    pub term: u8,
    pub building: Option<Epoch>,
    pub building_on: u8,
}

/// Everything that a rewind brings back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Redis {
    pub certificate: Option<Certificate>,
    pub epochs: BTreeMap<Epoch, Data>,
}

/// What no process knows, and the properties need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct History {
    /// Answered 202.
    pub accepted: Set,
    /// Accepted, undecided, and gone from Redis by a real loss of its data.
    pub lost: Set,
    pub told_issued: Set,
    pub told_rejected: Set,
    /// Whether Redis has ever lost data.
    pub data_lost: bool,
    /// Whether a verification has found damaged data intact.
    pub wrongly_intact: bool,
}

/// How often each event that a setting bounds has happened, or may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventCounts {
    pub restocks: u8,
    pub restarts: u8,
    pub flushes: u8,
    pub rewinds: u8,
    pub certificates_lost: u8,
    /// Leases taken from a recoverer that is not done.
    pub steals: u8,
    pub recoverers_stopped: u8,
    pub discards: u8,
    /// Rebuilds that left the coupon out.
    pub left_out: u8,
    /// Issuances whose stream entry was taken apart because of another in it.
    pub splits: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub redis: Redis,
    /// The run_id of the server: not data, so no rewind brings an old one back.
    pub instance: u8,
    /// The data to which Redis may be rewound.
    pub snapshot: Option<Redis>,
    /// The entries ever appended for each id.
    pub appended: [u8; IDS_MAX],
    pub ledger: Ledger,
    /// Sorted: it makes no difference which of two workers does something.
    pub workers: Vec<Worker>,
    pub recoverers: Vec<Recoverer>,
    pub loaders: Vec<Loader>,
    /// The terms of the lease that were ever given.
    pub terms: u8,
    /// The term that holds the lease, or 0.
    pub lease: u8,
    /// The requests without a key that were sent: their ids are new with each sending.
    pub sent: Set,
    pub history: History,
    pub spent: EventCounts,
}

impl State {
    /// The epoch that every script may use: `None` while the certificate does not fit.
    pub fn open_epoch(&self) -> Option<Epoch> {
        let certificate = self.redis.certificate.as_ref()?;
        (certificate.open && certificate.instance == self.instance).then_some(certificate.epoch)?
    }

    /// The data of the open epoch.
    pub fn open_data(&self) -> Option<&Data> {
        self.redis.epochs.get(&self.open_epoch()?)
    }

    /// The epoch that processes know of, whether it may be used or not.
    pub fn known_epoch(&self) -> Option<Epoch> {
        self.redis.certificate.as_ref()?.epoch
    }
}
