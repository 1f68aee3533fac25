//! Loading a coupon into Redis, computed from one read of the ledger and from survivors. A recoverer does it, or an API
//! process for the open epoch: it reads the ledger, sleeps for any time, and writes the coupon.

use super::scripts::{Certified, certified};
use super::state::{Coupon, Data, Epoch, Flight, IDS_MAX, NO_UNIT, Serial, Set, State};
use super::{Protocol, Variant};

/// The ledger at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Picture {
    pub total: u8,
    pub issued: Set,
    pub rejected: Set,
}

impl Picture {
    pub fn of(state: &State) -> Self {
        let ledger = &state.ledger;
        Picture { total: ledger.total, issued: ledger.issued(), rejected: ledger.rejected() }
    }
}

/// What a load puts into Redis, computed from the ledger and the survivors. A survivor whose unit is
/// taken is left without one; in an open epoch, one that is issued will be settled, and is counted then.
pub fn loaded(
    protocol: &Protocol,
    state: &State,
    picture: Picture,
    survivors: &mut [Option<Flight>; IDS_MAX],
    open: bool,
) -> Data {
    let mut data = Data { rejected: picture.rejected, ..Data::default() };
    let mut taken = Set::default();
    let mut take = |serial: Serial| {
        let free = serial != NO_UNIT && serial <= picture.total && !taken.contains(serial);
        if free {
            taken.insert(serial);
        }
        free
    };
    for id in picture.issued.iter() {
        take(state.ledger.serial_of(id));
        if protocol.variant != Variant::DedupeOnlyInFlight {
            data.holders[usize::from(protocol.user(id))].insert(id);
        }
    }
    let (mut flying, mut unsettled) = (0, 0);
    for (id, survivor) in (0..).zip(survivors) {
        let Some(flight) = survivor else { continue };
        flying += 1;
        data.holders[usize::from(protocol.user(id))].insert(id);
        let issued = open && picture.issued.contains(id);
        unsettled += u8::from(issued);
        let is_its_own = issued && flight.serial == state.ledger.serial_of(id);
        let has_unit = is_its_own || take(flight.serial);
        if !has_unit {
            flight.serial = NO_UNIT;
        }
    }
    let settled = picture.issued.len() - unsettled;
    let next = match protocol.variant {
        Variant::CountInsteadOfSerials => settled + flying,
        _ => taken.iter().max().unwrap_or(0),
    } + 1;
    let free = match protocol.variant {
        Variant::CountInsteadOfSerials => Set::default(),
        _ => (1..next).collect::<Set>().without(taken),
    };
    data.coupon = Some(Coupon { total: picture.total, next, settled, free });
    data
}

/// The progress of a loader. Each part is a step of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Loader {
    #[default]
    Idle,
    HasReadInFlight(Before),
    HasReadLedger(Before, Picture),
}

/// What the loader read first, and under which epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Before {
    epoch: Epoch,
    survivors: [Option<Flight>; IDS_MAX],
    settled_unloaded: u8,
}

impl Loader {
    pub fn is_idle(&self) -> bool {
        *self == Loader::Idle
    }

    /// Reads what is in flight, for a requested coupon that Redis does not have.
    pub fn read(protocol: &Protocol, state: &State) -> Option<Loader> {
        let epoch = state.open_epoch()?;
        let data = state.redis.epochs.get(&epoch).filter(|data| data.coupon.is_none())?;
        let survivors = match protocol.variant {
            Variant::LoadForgetsInFlight => [None; IDS_MAX],
            _ => data.in_flight,
        };
        let settled_unloaded = data.settled_unloaded;
        Some(Loader::HasReadInFlight(Before { epoch, survivors, settled_unloaded }))
    }

    /// Makes the next step.
    pub fn go_on(self, protocol: &Protocol, state: &mut State) -> Loader {
        match self {
            Loader::Idle => {}
            Loader::HasReadInFlight(before) => return Loader::HasReadLedger(before, Picture::of(state)),
            Loader::HasReadLedger(before, picture) => put(protocol, state, before, picture),
        }
        Loader::Idle
    }
}

/// `load.lua`: refuses if the coupon is loaded, or if an issuance in flight may have been settled since the read.
fn put(protocol: &Protocol, state: &mut State, before: Before, picture: Picture) {
    let Before { epoch, mut survivors, settled_unloaded } = before;
    if certified(state, epoch) != Certified::Yes {
        return;
    }
    let loaded = loaded(protocol, state, picture, &mut survivors, true);
    let Some(data) = state.redis.epochs.get_mut(&epoch) else { return };
    let any = survivors.iter().any(Option::is_some);
    if any && data.settled_unloaded != settled_unloaded && protocol.variant != Variant::LoadIgnoresSettling {
        return;
    }
    if data.coupon.is_some() && protocol.variant != Variant::LoadOverPresent {
        return;
    }
    (data.coupon, data.holders, data.rejected) = (loaded.coupon, loaded.holders, loaded.rejected);
    for (flight, survivor) in data.in_flight.iter_mut().zip(survivors) {
        if let (Some(flight), Some(survivor)) = (flight, survivor)
            && survivor.serial == NO_UNIT
        {
            flight.serial = NO_UNIT;
        }
    }
}
