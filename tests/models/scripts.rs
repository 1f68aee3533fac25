//! The Lua scripts, each one step: certificate first, then all or nothing. Those of the recovery are
//! in [`super::recoverer`].

use super::ledger::Record;
use super::state::{Coupon, Data, Epoch, Flight, Id, NO_UNIT, Serial, Set, State};
use super::{Protocol, Variant};

/// How a script found the certificate, for a caller whose keys are of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certified {
    Yes,
    /// Another epoch is open.
    Stale,
    /// No caller may continue.
    No,
}

pub fn certified(state: &State, epoch: Epoch) -> Certified {
    match state.open_epoch() {
        None => Certified::No,
        Some(open) if open == epoch => Certified::Yes,
        Some(_) => Certified::Stale,
    }
}

/// `reserve.lua`, for one request. `pick` says which of the free units SRANDMEMBER gives.
pub fn reserve(protocol: &Protocol, state: &mut State, id: Id, pick: u8) {
    let Some(epoch) = state.open_epoch() else { return };
    let Some(data) = state.redis.epochs.get_mut(&epoch) else { return };
    let Some(coupon) = &mut data.coupon else { return };
    let at = usize::from(id);
    let user = usize::from(protocol.user(id));
    let held = data.holders[user];
    let in_flight = |id: Id| data.in_flight[usize::from(id)].is_some();

    if protocol.is_keyed(id) {
        if held.contains(id) {
            if !in_flight(id) {
                state.history.told_issued.insert(id);
            }
            return;
        }
        if data.rejected.contains(id) {
            state.history.told_rejected.insert(id);
            return;
        }
    } else {
        state.sent.insert(id);
        if held.iter().any(in_flight) {
            return;
        }
    }
    if held.len() >= protocol.per_user {
        held.iter().filter(|id| !in_flight(*id)).for_each(|id| state.history.told_issued.insert(id));
        return;
    }
    let Some(serial) = take_any(protocol, coupon, pick) else { return };
    state.appended[at] += 1;
    let flight = Flight { entry: state.appended[at], serial, nth: held.len() + 1 };
    data.holders[user].insert(id);
    data.in_flight[at] = Some(flight);
    data.stream[at] = Some(flight);
    state.history.accepted.insert(id);
}

/// Takes one of the units that were given back, or else the next.
fn take_any(protocol: &Protocol, coupon: &mut Coupon, pick: u8) -> Option<Serial> {
    let free: Vec<_> = coupon.free.iter().collect();
    if !free.is_empty() {
        let serial = free[usize::from(pick) % free.len()];
        coupon.free.remove(serial);
        return Some(serial);
    }
    if coupon.next > coupon.total {
        return None;
    }
    coupon.next += 1;
    Some(if protocol.variant == Variant::CountInsteadOfSerials { NO_UNIT } else { coupon.next - 1 })
}

/// Takes the unit that the ledger names.
fn take(coupon: &mut Coupon, serial: Serial) {
    if serial < coupon.next {
        coupon.free.remove(serial);
    } else {
        (coupon.next..serial).for_each(|unit| coupon.free.insert(unit));
        coupon.next = serial + 1;
    }
}

fn give_back(protocol: &Protocol, coupon: &mut Coupon, serial: Serial) {
    if protocol.variant == Variant::CountInsteadOfSerials {
        coupon.next -= 1;
    } else if serial != NO_UNIT {
        coupon.free.insert(serial);
    }
}

/// One outcome, as it is given to `settle.lua`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settlement {
    pub id: Id,
    pub entry: u8,
    pub decision: Record,
    /// What a user rejected as already issued holds.
    pub holds: Set,
}

/// `settle.lua`, for one outcome, under a certificate that fits.
pub fn settle(protocol: &Protocol, state: &mut State, epoch: Epoch, settlement: Settlement) {
    let Settlement { id, entry, decision, holds } = settlement;
    let (at, user) = (usize::from(id), usize::from(protocol.user(id)));
    let ledger = state.ledger;
    let Some(data) = state.redis.epochs.get_mut(&epoch) else { return };
    let flight = data.in_flight[at].filter(|flight| flight.entry == entry);
    let (Record::Issued { serial, .. } | Record::Rejected { serial, .. }) = decision;
    let held = match flight {
        Some(flight) => flight.serial,
        None if protocol.variant == Variant::NoGuard => serial,
        None => return,
    };
    data.in_flight[at] = None;
    data.stream[at] = data.stream[at].filter(|queued| queued.entry != entry);
    if matches!(decision, Record::Issued { .. }) {
        state.history.told_issued.insert(id);
    } else {
        state.history.told_rejected.insert(id);
    }
    let Some(coupon) = &mut data.coupon else {
        data.settled_unloaded += 1;
        return;
    };
    match decision {
        Record::Issued { .. } => {
            coupon.settled += 1;
            if serial != held {
                take(coupon, serial);
                give_back(protocol, coupon, held);
            }
            if protocol.variant == Variant::DedupeOnlyInFlight {
                data.holders[user].remove(id);
            }
        }
        Record::Rejected { lost, .. } => {
            if !(lost && serial == held) {
                give_back(protocol, coupon, held);
            }
            data.holders[user].remove(id);
            for other in holds.without(data.holders[user]).iter() {
                if protocol.variant != Variant::HoldsWithoutAdoption {
                    take(coupon, ledger.serial_of(other));
                    coupon.settled += 1;
                }
                data.holders[user].insert(other);
            }
            if protocol.is_keyed(id) {
                data.rejected.insert(id);
            }
        }
    }
}

/// Whether the stream entry of an issuance can be taken apart: it is there, as far as the script can tell.
pub fn may_split(protocol: &Protocol, state: &State, id: Id) -> bool {
    let Some(data) = state.open_data() else { return false };
    let is_queued = data.stream[usize::from(id)].is_some();
    is_queued || (protocol.variant == Variant::SplitIgnoresFlight && state.history.told_issued.contains(id))
}

/// `split.lua`, for one issuance, under a certificate that fits: another of its stream entry was settled.
pub fn split(protocol: &Protocol, state: &mut State, id: Id) {
    let Some(epoch) = state.open_epoch() else { return };
    let at = usize::from(id);
    let settled = Flight { entry: 0, serial: state.ledger.serial_of(id), nth: 1 };
    let Some(data) = state.redis.epochs.get_mut(&epoch) else { return };
    let entry = data.stream[at].take();
    let flight = match data.in_flight[at] {
        Some(flight) => entry.filter(|entry| entry.entry == flight.entry).map(|_| flight),
        None => (protocol.variant == Variant::SplitIgnoresFlight).then_some(settled),
    };
    if let Some(flight) = flight
        && protocol.variant != Variant::EntryGoesWithItsFirst
    {
        state.appended[at] += 1;
        let fresh = Flight { entry: state.appended[at], ..flight };
        (data.in_flight[at], data.stream[at]) = (Some(fresh), Some(fresh));
    }
}

/// What `reassign.lua` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reassigned {
    To(Serial),
    NoneFree,
    Gone,
}

/// `reassign.lua`, under a certificate that fits.
pub fn reassign(
    protocol: &Protocol,
    data: &mut Data,
    id: Id,
    entry: u8,
    old: Serial,
    pick: u8,
) -> Reassigned {
    let Some(flight) = &mut data.in_flight[usize::from(id)] else { return Reassigned::Gone };
    if flight.entry != entry {
        return Reassigned::Gone;
    }
    if flight.serial != old {
        return Reassigned::To(flight.serial);
    }
    let Some(coupon) = &mut data.coupon else { return Reassigned::Gone };
    let Some(fresh) = take_any(protocol, coupon, pick) else { return Reassigned::NoneFree };
    flight.serial = fresh;
    Reassigned::To(fresh)
}

/// What the audit finds wrong with an issued id, in the open epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amiss {
    Nothing,
    /// Redis does not know it.
    Unknown,
    /// Its unit is free: it came back from another's flight, after the id was adopted.
    UnitFree,
}

pub fn amiss(protocol: &Protocol, data: &Data, id: Id, serial: Serial) -> Amiss {
    let Some(coupon) = data.coupon else { return Amiss::Nothing };
    if data.in_flight[usize::from(id)].is_some() || serial > coupon.total {
        // It will be settled; or the new total comes first.
        Amiss::Nothing
    } else if !data.known().contains(id) {
        Amiss::Unknown
    } else if coupon.free_units().contains(serial) && protocol.variant != Variant::AdoptsByIdOnly {
        Amiss::UnitFree
    } else {
        Amiss::Nothing
    }
}

/// The audit takes an issued id into the accounts: its unit is taken whatever else is known, for what
/// is issued stays so; it is counted, and comes into dedupe, once.
pub fn adopt(protocol: &Protocol, state: &mut State, id: Id) {
    let Some(epoch) = state.open_epoch() else { return };
    let serial = state.ledger.serial_of(id);
    let Some(data) = state.redis.epochs.get_mut(&epoch) else { return };
    let found = amiss(protocol, data, id, serial);
    let Some(coupon) = &mut data.coupon else { return };
    if found != Amiss::Nothing {
        take(coupon, serial);
    }
    if found == Amiss::Unknown {
        coupon.settled += 1;
        data.holders[usize::from(protocol.user(id))].insert(id);
    }
}

/// The API does not know whether its reservation was made, and takes all of it back.
pub fn compensate(protocol: &Protocol, state: &mut State, id: Id) {
    let Some(epoch) = state.open_epoch() else { return };
    let Some(data) = state.redis.epochs.get_mut(&epoch) else { return };
    let at = usize::from(id);
    if let (Some(flight), Some(coupon)) = (data.in_flight[at].take(), &mut data.coupon) {
        give_back(protocol, coupon, flight.serial);
        data.stream[at] = None;
        data.holders[usize::from(protocol.user(id))].remove(id);
        state.history.accepted.remove(id);
    }
}
