//! What the scripts promise, written plainly: sets and lists, one request after another.
//!
//! Two things are not the model's to choose: which free unit a script takes, and the stream's entry
//! ids. The model asks for them ([`ChosenUnit`]) and insists that the unit was free.

use crate::helpers::native;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use coupon_system::coupon::{Coupon, Stock};
use coupon_system::ids::{CouponId, IssuanceId, Unit, UserId};
use coupon_system::issuance::reassign::Reassigned;
use coupon_system::issuance::reserve::{QueueEntries, QueueProgress, QueuedIssuance, Request, Reserved};
use coupon_system::issuance::settle::{Settled, Settlement};
use coupon_system::issuance::{Decision, InFlight, KeyTag, Outcome, Reason};
use coupon_system::queue::Entry;
use coupon_system::recovery::LoadOutcome;
use jiff::Timestamp;

/// An entry that no stream has.
const NO_ENTRY: &str = "0-1";

/// Everything that Redis is to know, and what the ledger has decided.
#[derive(Debug, Clone, Default)]
pub struct ScriptModel {
    pub coupons: BTreeMap<CouponId, Offer>,
    pub in_flight: BTreeMap<IssuanceId, ModelFlight>,
    /// Set aside; still in flight.
    pub dead: BTreeSet<IssuanceId>,
    /// The sequence number given last.
    pub accepted: u64,
    pub settled: u64,
    /// Every request that was ever accepted, with all the entries it has had.
    pub known: BTreeMap<IssuanceId, (Request, Vec<String>)>,
    /// What each key was accepted for.
    used_keys: HashMap<KeyTag, IssuanceId>,
    /// What the ledger says. Written once.
    decided: BTreeMap<IssuanceId, Outcome>,
    /// While it lasts.
    pub damage: Option<ModelDamage>,
}

/// A coupon.
#[derive(Debug, Clone)]
pub struct Offer {
    pub id: CouponId,
    pub total: u32,
    pub per_user: u8,
    pub window: SaleWindow,
    pub paused: bool,
    pub archived: bool,
    pub loaded: bool,
    pub free: BTreeSet<Unit>,
    /// Settled as issued.
    issued: BTreeSet<Unit>,
    /// Issued in the ledger, to a user whom Redis may not know.
    claimed: BTreeSet<Unit>,
    /// Held or in flight, the oldest first.
    holders: BTreeMap<UserId, Vec<IssuanceId>>,
    /// Rejected ids that came from a key.
    rejected: BTreeSet<IssuanceId>,
}

/// Where the present lies in a coupon's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaleWindow {
    Open,
    NotStarted,
    Ended,
}

/// An issuance in flight.
#[derive(Debug, Clone)]
pub struct ModelFlight {
    pub value: InFlight,
    /// The unit that its stream entry names; the in-flight one may be another by now.
    reserved: Option<Unit>,
    pub delivered: bool,
    /// How many issuances its stream entry holds.
    of: usize,
    /// Its place in that entry.
    place: usize,
}

impl ModelFlight {
    /// Its place in the stream.
    fn order(&self) -> ((u64, u64), usize) {
        let (ms, sequence) = self.value.entry.split_once('-').expect("a stream entry");
        let number = |text: &str| text.parse().expect("a number");
        ((number(ms), number(sequence)), self.place)
    }
}

/// What a script chose for an issuance.
pub struct ChosenUnit {
    pub entry: String,
    pub unit: Unit,
}

/// What the ledger says about an issuance in flight, and the entry that it is settled with.
#[derive(Debug, Clone)]
pub struct UnitClaim {
    pub request: Request,
    pub verdict: ExpectedAnswer,
    /// With the entry that it is in flight with, or was last.
    pub right_entry: bool,
}

/// Where the ledger is free to say something, it says this.
#[derive(Debug, Clone, Copy)]
pub enum ExpectedAnswer {
    /// Issued, with the unit in flight.
    Issued,
    /// Issued by an insert of an earlier epoch, with a unit that is free now.
    IssuedWithFree,
    /// The same, with a unit that is in flight for another user now.
    IssuedWithAnothers,
    /// Rejected; the unit is given back.
    GivenBack,
    /// Rejected; another record holds the unit.
    Lost,
    /// Rejected before it was reserved again: the tombstone names an older unit, or none.
    Older { unit: Option<Unit>, lost: bool },
}

/// One thing in Redis that cannot be read while a script runs.
#[derive(Debug, Clone)]
pub enum ModelDamage {
    /// A field of its state.
    Coupon(CouponId),
    /// What the user holds of it.
    Holder(CouponId, UserId),
    /// Its in-flight value.
    Flight(IssuanceId),
}

/// An operator's change.
#[derive(Debug, Clone, Copy)]
pub enum ModelChange {
    Pause(bool),
    Archive(bool),
    Window(SaleWindow),
    Grow(u32),
}

impl SaleWindow {
    /// A window from long ago to the far future, so that no test reaches its end.
    pub fn bounds(self) -> (Timestamp, Timestamp) {
        let second = |second| Timestamp::from_second(second).expect("a moment");
        let (past, later, future, end) =
            (second(1_000_000_000), second(1_000_000_001), second(4_000_000_000), second(4_000_000_001));
        match self {
            SaleWindow::Open => (past, future),
            SaleWindow::NotStarted => (future, end),
            SaleWindow::Ended => (past, later),
        }
    }
}

impl Offer {
    /// A coupon of which nothing was ever issued.
    pub fn new(id: CouponId, total: u32, per_user: u8) -> Self {
        Offer {
            id,
            total,
            per_user,
            window: SaleWindow::Open,
            paused: false,
            archived: false,
            loaded: false,
            free: (1..=total).map(native).collect(),
            issued: BTreeSet::new(),
            claimed: BTreeSet::new(),
            holders: BTreeMap::new(),
            rejected: BTreeSet::new(),
        }
    }

    /// The record that it is loaded from.
    pub fn record(&self) -> Coupon {
        let (starts_at, ends_at) = self.window.bounds();
        Coupon {
            per_user: self.per_user,
            paused: self.paused,
            archived: self.archived,
            ..Coupon::new(self.id.clone(), self.total, starts_at, ends_at)
        }
    }

    /// `None` if it is not loaded. Reserved is what is neither free nor issued: in flight, or lost.
    pub fn stock(&self) -> Option<Stock> {
        let reserved = (1..=self.total)
            .map(native)
            .filter(|unit| !self.free.contains(unit) && !self.issued.contains(unit));
        let count = |count| u32::try_from(count).expect("a few");
        self.loaded.then(|| Stock {
            total: self.total,
            remaining: count(self.free.len()),
            reserved: count(reserved.count()),
            issued: count(self.issued.len()),
        })
    }

    fn held(&self, user: &UserId) -> &[IssuanceId] {
        self.holders.get(user).map(Vec::as_slice).unwrap_or_default()
    }

    /// Takes the unit that was chosen.
    fn take(&mut self, serial: Unit) {
        assert!(self.free.remove(&serial), "unit {serial} of {} was taken, and not free", self.id);
    }
}

impl ScriptModel {
    /// Nothing has happened yet.
    pub fn new(offers: impl IntoIterator<Item = Offer>) -> Self {
        let coupons = offers.into_iter().map(|offer| (offer.id.clone(), offer)).collect();
        ScriptModel { coupons, ..ScriptModel::default() }
    }

    /// Answers a batch: one request after the other, coupon by coupon in the order in which they first
    /// appear.
    pub fn reserve(
        &mut self,
        requests: &[Request],
        backlog_max: u64,
        queue_entries: QueueEntries,
        now: Timestamp,
        mut choose: impl FnMut(&Self, &Request) -> ChosenUnit,
    ) -> Vec<Reserved> {
        let first =
            |place: &usize| requests.iter().position(|request| request.coupon == requests[*place].coupon);
        // What a user did not hold before cannot have been damaged.
        if let Some(ModelDamage::Holder(coupon, user)) = &self.damage
            && self.coupons[coupon].held(user).is_empty()
        {
            self.damage = None;
        }
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_key(first);
        let mut answers = vec![None; requests.len()];
        for place in order {
            answers[place] = Some(self.reserve_one(&requests[place], backlog_max, now, &mut choose));
        }
        let answers: Vec<_> = answers.into_iter().flatten().collect();
        if queue_entries == QueueEntries::OfMany {
            self.queue_as_one(&answers);
        }
        answers
    }

    /// All that was accepted is one stream entry.
    fn queue_as_one(&mut self, answers: &[Reserved]) {
        let accepted = answers.iter().filter_map(|answer| match answer {
            Reserved::Accepted(QueuedIssuance { id, .. }) => Some(*id),
            _ => None,
        });
        let mut accepted: Vec<_> = accepted.collect();
        accepted.sort_by_key(|id| self.in_flight[id].value.sequence);
        let Some(first) = accepted.first().map(|id| self.in_flight[id].clone()) else { return };
        for (place, id) in accepted.iter().enumerate() {
            let flight = self.in_flight.get_mut(id).expect("it was accepted");
            flight.value.entry.clone_from(&first.value.entry);
            flight.of = accepted.len();
            flight.place = place;
            let entries = &mut self.known.get_mut(id).expect("it is known").1;
            *entries.last_mut().expect("an entry") = first.value.entry.clone();
        }
    }

    fn reserve_one(
        &mut self,
        request: &Request,
        backlog_max: u64,
        now: Timestamp,
        choose: &mut impl FnMut(&Self, &Request) -> ChosenUnit,
    ) -> Reserved {
        let offer = &self.coupons[&request.coupon];
        if !offer.loaded {
            return Reserved::NotLoaded { now };
        }
        if self.is_damaged(offer, request) {
            return Reserved::Damaged(String::new());
        }
        if let Some(known) = self.deduplicated(offer, request, now) {
            return match (known, &self.damage) {
                (Reserved::Replayed(queued), Some(ModelDamage::Flight(id))) if queued.id == *id => {
                    Reserved::Damaged(String::new())
                }
                (known, _) => known,
            };
        }
        match (offer.archived, offer.window, offer.paused) {
            (true, ..) => return Reserved::Archived,
            (_, SaleWindow::Ended, _) => return Reserved::Ended,
            (.., true) => return Reserved::Paused,
            (_, SaleWindow::NotStarted, _) => {
                return Reserved::NotStarted { now, starts_at: offer.window.bounds().0 };
            }
            (_, SaleWindow::Open, _) => {}
        }
        if self.backlog() >= backlog_max {
            return Reserved::BacklogFull;
        }
        if offer.free.is_empty() {
            return Reserved::SoldOut;
        }
        let chosen = choose(self, request);
        self.accept(request, now, chosen)
    }

    fn is_damaged(&self, offer: &Offer, request: &Request) -> bool {
        match &self.damage {
            Some(ModelDamage::Coupon(coupon)) => *coupon == request.coupon,
            Some(ModelDamage::Holder(coupon, user)) => {
                *coupon == request.coupon && *user == request.user && !offer.held(user).is_empty()
            }
            Some(ModelDamage::Flight(_)) | None => false,
        }
    }

    /// The answer to a request that does not depend on the coupon's state, if there is one.
    fn deduplicated(&self, offer: &Offer, request: &Request, now: Timestamp) -> Option<Reserved> {
        let (id, held) = (request.id, offer.held(&request.user));
        if held.contains(&id) {
            let replay = self.queued(id, now).map_or(Reserved::ReplayIssued(id), Reserved::Replayed);
            return Some(replay);
        }
        if id.is_keyed() {
            if offer.rejected.contains(&id) {
                return Some(Reserved::ReplayRejected(id));
            }
            let used = request.key.and_then(|key| self.used_keys.get(&key));
            if used.is_some_and(|other| *other != id) {
                return Some(Reserved::KeyReused);
            }
        } else if let Some(latest) = held.iter().rev().find_map(|other| self.queued(*other, now)) {
            return Some(Reserved::Replayed(latest));
        }
        (held.len() >= usize::from(offer.per_user)).then(|| {
            let (in_flight, issued) = held.iter().partition(|other| self.in_flight.contains_key(other));
            Reserved::AtLimit { issued, in_flight }
        })
    }

    fn accept(
        &mut self,
        request: &Request,
        now: Timestamp,
        ChosenUnit { entry, unit: serial }: ChosenUnit,
    ) -> Reserved {
        self.accepted += 1;
        if let Some(key) = request.key {
            self.used_keys.insert(key, request.id);
        }
        let offer = self.coupons.get_mut(&request.coupon).expect("a coupon");
        offer.take(serial);
        let held = offer.holders.entry(request.user.clone()).or_default();
        held.push(request.id);
        let value = InFlight {
            entry: entry.clone(),
            unit: Some(serial),
            sequence: self.accepted,
            accepted_at: now,
            nth: u8::try_from(held.len()).expect("a few"),
            coupon: request.coupon.clone(),
            user: request.user.clone(),
        };
        let flight = ModelFlight { value, reserved: Some(serial), delivered: false, of: 1, place: 0 };
        self.in_flight.insert(request.id, flight);
        self.known.entry(request.id).or_insert_with(|| (request.clone(), Vec::new())).1.push(entry);
        Reserved::Accepted(self.queued(request.id, now).expect("it is in flight"))
    }

    fn queued(&self, id: IssuanceId, now: Timestamp) -> Option<QueuedIssuance> {
        let flight = self.in_flight.get(&id)?;
        Some(QueuedIssuance {
            id,
            accepted_at: flight.value.accepted_at,
            progress: self.progress(flight, now),
        })
    }

    /// Ahead are those accepted before it, less those that are done or set aside.
    fn progress(&self, flight: &ModelFlight, now: Timestamp) -> QueueProgress {
        let gone = self.settled + self.dead.len() as u64;
        QueueProgress { now, settled: self.settled, ahead: (flight.value.sequence - 1).saturating_sub(gone) }
    }

    /// What is queued: set aside is not queued.
    pub fn backlog(&self) -> u64 {
        (self.in_flight.len() - self.dead.len()) as u64
    }

    /// What a look-up finds.
    pub fn look_up(&self, id: IssuanceId, now: Timestamp) -> Option<(InFlight, QueueProgress)> {
        let flight = self.in_flight.get(&id)?;
        Some((flight.value.clone(), self.progress(flight, now)))
    }

    /// Writes what is claimed into the ledger, as far as it may say that and has not spoken yet, and
    /// returns what is to be settled.
    pub fn decide(&mut self, claim: &UnitClaim) -> Settlement {
        let Request { id, coupon, user, .. } = claim.request.clone();
        let outcome = match self.decided.get(&id) {
            Some(outcome) => *outcome,
            None => self.outcome(id, &coupon, claim.verdict),
        };
        // Two faults at once: an older insert decided it, and another's has the unit that it holds now.
        // That unit would go back, be found taken, and be reassigned: here it waits for ever.
        let entry = if self.releases_claimed(id, outcome) {
            NO_ENTRY.into()
        } else {
            self.entry(id, claim.right_entry)
        };
        // Who settles it may not know how many its entry holds.
        let knows = id.as_bytes()[15].is_multiple_of(2);
        let flight = self.in_flight.get(&id).filter(|flight| knows && flight.value.entry == entry);
        let of = flight.map_or(0, |flight| flight.of);
        let moment = Timestamp::UNIX_EPOCH;
        let decision = Decision { id, coupon, user, outcome, accepted_at: moment, decided_at: moment };
        Settlement { entry, of, decision, holds: Vec::new() }
    }

    fn releases_claimed(&self, id: IssuanceId, outcome: Outcome) -> bool {
        let Some(flight) = self.in_flight.get(&id) else { return false };
        let Some(held) = flight.value.unit else { return false };
        let released = match outcome {
            Outcome::Issued { unit, .. } => unit != held,
            Outcome::Rejected { unit, lost, .. } => !(lost && unit == Some(held)),
            Outcome::Moved { .. } => panic!("the model has one share"),
        };
        released && self.coupons[&flight.value.coupon].claimed.contains(&held)
    }

    fn outcome(&mut self, id: IssuanceId, coupon: &CouponId, verdict: ExpectedAnswer) -> Outcome {
        let reason = Reason::Discarded;
        let Some(flight) = self.in_flight.get(&id) else {
            return Outcome::Rejected { reason, unit: None, lost: false };
        };
        let (unit, nth) = (flight.value.unit, flight.value.nth);
        let verdict = self.allowed(id, coupon, unit, verdict);
        let issued = match verdict {
            ExpectedAnswer::Issued => unit,
            ExpectedAnswer::IssuedWithFree => self.unclaimed_free(coupon),
            ExpectedAnswer::IssuedWithAnothers => self.undecided_of_another(id, coupon),
            ExpectedAnswer::GivenBack | ExpectedAnswer::Lost | ExpectedAnswer::Older { .. } => None,
        };
        let claimed = &mut self.coupons.get_mut(coupon).expect("a coupon").claimed;
        let outcome = match (issued, verdict) {
            (Some(unit), _) => {
                claimed.insert(unit);
                Outcome::Issued { unit, nth }
            }
            (None, ExpectedAnswer::Older { unit, lost }) => Outcome::Rejected { reason, unit, lost },
            (None, ExpectedAnswer::Lost) => {
                claimed.extend(unit);
                Outcome::Rejected { reason, unit, lost: true }
            }
            (None, _) => Outcome::Rejected { reason, unit, lost: false },
        };
        self.decided.insert(id, outcome);
        outcome
    }

    /// The ledger never gives one unit to two, and never gives back what another record holds.
    fn allowed(
        &self,
        id: IssuanceId,
        coupon: &CouponId,
        serial: Option<Unit>,
        verdict: ExpectedAnswer,
    ) -> ExpectedAnswer {
        let Some(serial) = serial else { return verdict };
        if self.coupons[coupon].claimed.contains(&serial) {
            return ExpectedAnswer::Lost;
        }
        match verdict {
            // It names another unit than the one in flight, or it is no older one.
            ExpectedAnswer::Older { unit: Some(older), .. } if older == serial => ExpectedAnswer::GivenBack,
            ExpectedAnswer::IssuedWithFree if self.unclaimed_free(coupon).is_none() => ExpectedAnswer::Issued,
            ExpectedAnswer::IssuedWithAnothers if self.undecided_of_another(id, coupon).is_none() => {
                ExpectedAnswer::Issued
            }
            verdict => verdict,
        }
    }

    /// A free unit that no record of the ledger holds.
    fn unclaimed_free(&self, coupon: &CouponId) -> Option<Unit> {
        let offer = &self.coupons[coupon];
        offer.free.difference(&offer.claimed).copied().next()
    }

    fn undecided_of_another(&self, id: IssuanceId, coupon: &CouponId) -> Option<Unit> {
        let others = self.in_flight.iter().filter(|(other, flight)| {
            **other != id && flight.value.coupon == *coupon && !self.decided.contains_key(other)
        });
        let claimed = &self.coupons[coupon].claimed;
        others.filter_map(|(_, flight)| flight.value.unit).find(|serial| !claimed.contains(serial))
    }

    /// The right entry of an issuance, or a wrong one: an older one of its own, another's, or none's.
    pub fn entry(&self, id: IssuanceId, right: bool) -> String {
        let entries = self.known.get(&id).map(|(_, entries)| entries.as_slice()).unwrap_or_default();
        let mut own = entries.iter().rev();
        let last = own.next();
        if right {
            return last.cloned().unwrap_or_else(|| NO_ENTRY.into());
        }
        let anothers =
            || self.in_flight.values().map(|flight| &flight.value.entry).find(|entry| Some(*entry) != last);
        own.next().or_else(anothers).cloned().unwrap_or_else(|| NO_ENTRY.into())
    }

    /// The unit in flight for an issuance, or a wrong one.
    pub fn old(&self, id: IssuanceId, right: bool) -> Option<Unit> {
        let serial = self.in_flight.get(&id)?.value.unit;
        if right { serial } else { serial.map(|serial| native(serial.serial() % 2 + 1)) }
    }

    /// Settles a batch: one outcome after the other. Of a stream entry that is settled in part the others get
    /// entries of their own, which `entry_of` names.
    pub fn settle(
        &mut self,
        decided: &[Settlement],
        entry_of: impl Fn(&Self, IssuanceId) -> String,
    ) -> Vec<Settled> {
        let answers: Vec<_> =
            decided.iter().map(|settled| self.settle_one(&settled.entry, &settled.decision)).collect();
        let settled = decided.iter().zip(&answers).filter(|(_, answer)| **answer == Settled::Now);
        let touched: BTreeSet<_> = settled.map(|(settlement, _)| settlement.entry.clone()).collect();
        let left = self.in_flight.iter().filter(|(_, flight)| touched.contains(&flight.value.entry));
        let left: Vec<_> = left.map(|(id, _)| *id).collect();
        for id in left {
            let entry = entry_of(self, id);
            let is_damaged = matches!(self.damage, Some(ModelDamage::Flight(damaged)) if damaged == id);
            let flight = self.in_flight.get_mut(&id).expect("it is in flight");
            self.known.get_mut(&id).expect("it is known").1.push(entry.clone());
            flight.value.entry = entry;
            if !is_damaged {
                flight.reserved = flight.value.unit;
            }
            (flight.delivered, flight.of, flight.place) = (false, 1, 0);
        }
        answers
    }

    fn settle_one(&mut self, entry: &str, decision: &Decision) -> Settled {
        let id = decision.id;
        let Some(flight) = self.in_flight.get(&id) else { return Settled::GuardedOff };
        if matches!(self.damage, Some(ModelDamage::Flight(damaged)) if damaged == id) {
            return Settled::Unreadable;
        }
        if flight.value.entry != entry {
            return Settled::GuardedOff;
        }
        let flight = self.in_flight.remove(&id).expect("it is in flight").value;
        self.dead.remove(&id);
        self.settled += 1;
        let offer = self.coupons.get_mut(&flight.coupon).expect("a coupon");
        match decision.outcome {
            Outcome::Issued { unit, .. } => {
                offer.free.remove(&unit);
                assert!(offer.issued.insert(unit), "the ledger gave unit {unit} to two");
                offer.free.extend(flight.unit.filter(|held| *held != unit));
            }
            Outcome::Moved { .. } => panic!("the model has one share"),
            Outcome::Rejected { unit, lost, .. } => {
                offer.free.extend(flight.unit.filter(|held| !(lost && unit == Some(*held))));
                offer.holders.entry(flight.user).or_default().retain(|held| *held != id);
                if id.is_keyed() {
                    offer.rejected.insert(id);
                }
            }
        }
        Settled::Now
    }

    /// Gives an issuance another unit, if this entry and this unit are in flight for it.
    pub fn reassign(
        &mut self,
        request: &Request,
        entry: &str,
        old: Option<Unit>,
        choose: impl FnOnce(&Self, &Request) -> ChosenUnit,
    ) -> Reassigned {
        let Some(flight) = self.in_flight.get(&request.id).filter(|flight| flight.value.entry == entry)
        else {
            return Reassigned::Gone;
        };
        if let Some(serial) = flight.value.unit
            && old != Some(serial)
        {
            return Reassigned::To(serial);
        }
        if self.coupons[&request.coupon].free.is_empty() {
            return Reassigned::NoneFree;
        }
        let ChosenUnit { unit: serial, .. } = choose(self, request);
        let offer = self.coupons.get_mut(&request.coupon).expect("a coupon");
        offer.take(serial);
        offer.claimed.extend(old);
        self.in_flight.get_mut(&request.id).expect("it is in flight").value.unit = Some(serial);
        Reassigned::To(serial)
    }

    /// Loads a coupon, unless it is there.
    pub fn load(&mut self, coupon: &CouponId) -> LoadOutcome {
        let offer = self.coupons.get_mut(coupon).expect("a coupon");
        if std::mem::replace(&mut offer.loaded, true) { LoadOutcome::Before } else { LoadOutcome::Now }
    }

    pub fn change(&mut self, coupon: &CouponId, change: ModelChange) {
        let offer = self.coupons.get_mut(coupon).expect("a coupon");
        match change {
            ModelChange::Pause(paused) => offer.paused = paused,
            ModelChange::Archive(archived) => offer.archived = archived,
            ModelChange::Window(window) => offer.window = window,
            ModelChange::Grow(by) => {
                offer.free.extend((offer.total + 1..=offer.total + by).map(native));
                offer.total += by;
            }
        }
    }

    /// Delivers the oldest undelivered entries, and returns them.
    pub fn deliver(&mut self, count: usize) -> Vec<Entry> {
        let mut waiting: Vec<_> = self.in_flight.iter_mut().filter(|(_, flight)| !flight.delivered).collect();
        waiting.sort_by_key(|(_, flight)| flight.order());
        let mut entries = BTreeSet::new();
        waiting.retain(|(_, flight)| {
            entries.insert(flight.value.entry.clone());
            entries.len() <= count
        });
        let deliver = |(id, flight): (&IssuanceId, &mut ModelFlight)| {
            flight.delivered = true;
            let value = flight.value.clone();
            Entry {
                entry: value.entry,
                of: flight.of,
                id: *id,
                coupon: value.coupon,
                user: value.user,
                unit: flight.reserved,
                nth: value.nth,
                accepted_at: value.accepted_at,
            }
        };
        waiting.into_iter().map(deliver).collect()
    }

    /// Sets an issuance in flight aside. Returns whether there is one.
    pub fn set_aside(&mut self, id: IssuanceId) -> bool {
        self.in_flight.contains_key(&id) && self.dead.insert(id)
    }

    /// A rebuild found the unit of an issuance in flight taken. `None` if it cannot have happened.
    pub fn lose_unit(&mut self, id: IssuanceId) -> Option<&InFlight> {
        if self.decided.contains_key(&id) {
            return None;
        }
        let value = &mut self.in_flight.get_mut(&id)?.value;
        let offer = self.coupons.get_mut(&value.coupon).expect("a coupon");
        offer.claimed.extend(value.unit.take());
        Some(value)
    }

    /// Asserts the model's own invariants: otherwise it proves nothing.
    pub fn assert_sound(&self) {
        for offer in self.coupons.values() {
            assert!(offer.free.is_disjoint(&offer.issued), "free and issued: {offer:?}");
            assert!(offer.issued.is_subset(&offer.claimed), "issued, and not in the ledger: {offer:?}");
            for held in offer.holders.values() {
                assert!(held.len() <= usize::from(offer.per_user), "more than the limit: {offer:?}");
            }
        }
        for flight in self.in_flight.values() {
            let free = &self.coupons[&flight.value.coupon].free;
            assert!(flight.value.unit.is_none_or(|serial| !free.contains(&serial)), "free: {flight:?}");
        }
    }
}
