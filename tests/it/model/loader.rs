//! How a coupon gets into Redis: computed from one look at the ledger, and from survivors. A recoverer
//! does it, or an API process for the open epoch: it reads the ledger, sleeps as long as it likes, and
//! puts the coupon in place.

use super::scripts::{Certified, certified};
use super::state::{Coupon, Data, Epoch, Flight, IDS_MAX, NO_UNIT, Serial, Set, State};
use super::{Protocol, Variant};

/// What the ledger said at one look.
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
/// taken is left without one.
pub fn loaded(
    protocol: &Protocol,
    state: &State,
    picture: Picture,
    survivors: &mut [Option<Flight>; IDS_MAX],
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
    let mut flying = 0;
    for (id, survivor) in (0..).zip(survivors) {
        let Some(flight) = survivor else { continue };
        flying += 1;
        data.holders[usize::from(protocol.user(id))].insert(id);
        if !take(flight.serial) {
            flight.serial = NO_UNIT;
        }
    }
    let settled = picture.issued.len();
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

/// What it read, and under which epoch; `None` while it does nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Loader(Option<(Epoch, Picture)>);

impl Loader {
    pub fn is_idle(&self) -> bool {
        self.0.is_none()
    }

    /// Reads the ledger, for a coupon that somebody asked for and Redis does not have.
    pub fn read(state: &State) -> Option<Loader> {
        let epoch = state.open_epoch()?;
        state.redis.epochs.get(&epoch)?.coupon.is_none().then(|| Loader(Some((epoch, Picture::of(state)))))
    }

    /// `load.lua`: refuses if the coupon is there already.
    pub fn put(self, protocol: &Protocol, state: &mut State) {
        let Some((epoch, picture)) = self.0 else { return };
        if certified(state, epoch) != Certified::Yes {
            return;
        }
        let loaded = loaded(protocol, state, picture, &mut [None; IDS_MAX]);
        let Some(data) = state.redis.epochs.get_mut(&epoch) else { return };
        if data.coupon.is_none() || protocol.variant == Variant::LoadOverPresent {
            (data.coupon, data.holders, data.rejected) = (loaded.coupon, loaded.holders, loaded.rejected);
        }
    }
}
