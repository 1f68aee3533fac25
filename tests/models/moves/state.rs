//! The state: what the ledger holds, what each share's Redis holds, and which step each hand makes next. It consists of
//! small numbers, so that the checker copies and compares it cheaply.

use super::Moves;
use super::look::Asker;
use crate::state::Set;

pub const SHARES: usize = 2;
pub const SERIALS_MAX: u8 = 2;
/// The most requests and moves together.
pub const IDS_MAX: usize = 5;
pub const HANDS_MAX: usize = 2;

/// The id of a request or of a move; those of moves come after those of requests.
pub type Id = u8;
pub type Epoch = u8;

/// A serial, and how often it was moved: the number by which sets know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unit(pub u8);

impl Unit {
    /// A unit that was never moved.
    pub fn native(serial: u8) -> Self {
        Unit(serial - 1)
    }

    /// From 1.
    pub fn serial(self) -> u8 {
        self.0 % SERIALS_MAX + 1
    }

    pub fn hop(self) -> u8 {
        self.0 / SERIALS_MAX
    }

    /// What it is in the share that it is moved to.
    pub fn moved(self) -> Self {
        Unit(self.0 + SERIALS_MAX)
    }

    /// What it was in the share that it was moved from, if it was.
    pub fn before(self) -> Option<Self> {
        self.0.checked_sub(SERIALS_MAX).map(Unit)
    }
}

impl std::fmt::Debug for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}", self.serial(), self.hop())
    }
}

/// The share in which a serial is born.
pub fn born_in(serial: u8) -> usize {
    usize::from(serial - 1) % SHARES
}

/// The units that are born in a share.
pub fn native(share: usize, total: u8) -> Set {
    (1..=total).filter(|serial| born_in(*serial) == share).map(|serial| Unit::native(serial).0).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Issued,
    Moved,
    /// As sold out: its unit is another's.
    Rejected,
    /// By an operator: its unit comes back.
    Discarded,
}

/// What the ledger holds of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record {
    /// The share that its id names: of a move, the donor.
    pub share: u8,
    pub kind: Kind,
    pub unit: Option<Unit>,
}

impl Record {
    /// The share that a move goes to.
    pub fn receiver(&self) -> usize {
        1 - usize::from(self.share)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Ledger {
    pub total: u8,
    records: [Option<Record>; IDS_MAX],
}

impl Ledger {
    pub fn new(total: u8) -> Self {
        Ledger { total, ..Ledger::default() }
    }

    pub fn get(&self, id: Id) -> Option<Record> {
        self.records[usize::from(id)]
    }

    /// The caller has asked whether there is one, and whether the unit is taken.
    pub fn insert(&mut self, id: Id, record: Record) {
        self.records[usize::from(id)] = Some(record);
    }

    pub fn records(&self) -> impl Iterator<Item = (Id, &Record)> {
        (0..).zip(&self.records).filter_map(|(id, record)| Some((id, record.as_ref()?)))
    }

    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (Id, &Record)> {
        self.records().filter(move |(_, record)| record.kind == kind)
    }

    pub fn has(&self, kind: Kind) -> bool {
        self.of_kind(kind).next().is_some()
    }

    /// The units that are issued in a share or moved out of it: each once, by the unique index.
    pub fn occupied(&self, share: usize) -> Set {
        let occupies = |record: &&Record| {
            usize::from(record.share) == share && matches!(record.kind, Kind::Issued | Kind::Moved)
        };
        self.records
            .iter()
            .flatten()
            .filter(occupies)
            .filter_map(|record| record.unit)
            .map(|unit| unit.0)
            .collect()
    }

    /// The units that were moved to a share, as they are there.
    pub fn moved_to(&self, share: usize) -> impl Iterator<Item = (Id, Unit)> {
        self.of_kind(Kind::Moved)
            .filter(move |(_, record)| record.receiver() == share)
            .filter_map(|(id, record)| Some((id, record.unit?.moved())))
    }

    /// Whether a unit belongs to a share: it was born there, or the move that names the share is in the ledger.
    pub fn belongs(&self, share: usize, unit: Unit) -> bool {
        match unit.before() {
            None => born_in(unit.serial()) == share,
            Some(_) => self.moved_to(share).any(|(_, moved)| moved == unit),
        }
    }
}

/// A request or a move in flight: an entry of the share's stream. One that survived without its unit has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flight {
    pub unit: Option<Unit>,
}

pub type InFlight = [Option<Flight>; IDS_MAX];

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Condition {
    Open,
    /// Its data is not certified.
    #[default]
    Closed,
    /// Rebuilt in a new epoch, and not open yet.
    Built,
}

/// A share's Redis. One that is closed has only what survived in flight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Share {
    pub condition: Condition,
    pub epoch: Epoch,
    pub total: u8,
    pub free: Set,
    pub in_flight: InFlight,
    /// The moves to this share that were credited.
    pub credited: Set,
}

impl Share {
    pub fn flying(&self) -> impl Iterator<Item = (Id, Flight)> {
        (0..).zip(self.in_flight).filter_map(|(id, flight)| Some((id, flight?)))
    }

    /// How many moves are in flight here: what the donor counts as `lending`.
    pub fn lending(&self, moves: &Moves) -> usize {
        self.flying().filter(|(id, _)| moves.is_move(*id)).count()
    }
}

/// Any process that has an entry in hand, read under an epoch of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hand {
    pub share: u8,
    pub epoch: Epoch,
    pub id: Id,
    pub unit: Option<Unit>,
    pub next: Next,
}

/// What a hand does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Next {
    Decide,
    /// The ledger has this move.
    Credit(Record),
    /// The ledger has this.
    Settle(Record),
    /// Only where the donor may settle first.
    CreditAfterSettling(Record),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct State {
    pub ledger: Ledger,
    pub shares: [Share; SHARES],
    /// Sorted: it makes no difference which of two hands does something.
    pub hands: [Option<Hand>; HANDS_MAX],
    /// What was in flight when the data was saved to which a share may go back.
    pub saved: [Option<InFlight>; SHARES],
    pub requested: [u8; SHARES],
    pub moves: u8,
    pub losses: u8,
    pub discards: u8,
    pub restocks: u8,
    pub asker: Option<Asker>,
    /// Whether somebody was told "sold out", and whether that was false.
    pub told: bool,
    pub told_falsely: bool,
}
