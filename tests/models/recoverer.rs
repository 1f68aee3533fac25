//! A recoverer: lease, close, verify or rebuild, open. Between any two steps it may sleep for any time, while another
//! takes the lease, or stop for good.

use super::loader::{Picture, loaded};
use super::state::{Certificate, Data, Epoch, Flight, IDS_MAX, Set, State};
use super::{Protocol, Variant};

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Recoverer {
    step: Step,
    /// Its term, which is also the epoch that it builds.
    term: u8,
    /// The epochs that it takes survivors from.
    old: Set,
    survivors: [Option<Flight>; IDS_MAX],
    /// J: in flight and issued, at the first read.
    decided: Set,
    picture: Picture,
}

/// The recoverer's next step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    #[default]
    Idle,
    Close,
    /// The three reads of a verification: in flight (J), ledger (L), in flight (J).
    VerifyInFlight,
    VerifyLedger,
    VerifyInFlightAgain,
    Certify,
    ForgetHalfBuilt,
    ReadSurvivors,
    ReadLedger,
    Load,
    /// Moves survivors one by one.
    MoveQueue,
    Renew,
    Open,
    /// The epoch that is open now stays.
    ForgetOld(Epoch),
}

impl Recoverer {
    pub fn is_idle(&self) -> bool {
        self.step == Step::Idle
    }

    /// The term, and the next step.
    pub fn next(&self) -> (u8, Step) {
        (self.term, self.step)
    }

    /// Takes the lease: a new term.
    pub fn lease(state: &mut State) -> Recoverer {
        state.terms += 1;
        state.lease = state.terms;
        Recoverer { step: Step::Close, term: state.terms, ..Recoverer::default() }
    }

    /// Makes the next step.
    pub fn go_on(mut self, protocol: &Protocol, state: &mut State) -> Recoverer {
        let next = match self.step {
            Step::Idle => None,
            Step::Close => self.close(protocol, state),
            Step::VerifyInFlight => {
                self.decided = self.in_flight_and_issued(state);
                Some(Step::VerifyLedger)
            }
            Step::VerifyLedger => {
                self.picture = Picture::of(state);
                Some(Step::VerifyInFlightAgain)
            }
            Step::VerifyInFlightAgain => {
                let again = self.in_flight_and_issued(state);
                let steady = again == self.decided || protocol.variant == Variant::VerifyReadsLedgerFirst;
                let intact = steady && self.is_intact(state, again);
                state.history.wrongly_intact |= intact && self.misses_issued(state);
                Some(if intact { Step::Certify } else { Step::ForgetHalfBuilt })
            }
            Step::Certify => self.certify(state),
            Step::ForgetHalfBuilt => {
                let mut kept = self.old;
                kept.insert(self.term);
                self.forget_all_but(state, self.term, kept).then_some(Step::ReadSurvivors)
            }
            Step::ReadSurvivors => {
                self.read_survivors(protocol, state);
                Some(Step::ReadLedger)
            }
            Step::ReadLedger => {
                self.picture = Picture::of(state);
                Some(Step::Load)
            }
            Step::Load => self.load(protocol, state).then_some(Step::MoveQueue),
            Step::MoveQueue => self.move_one(protocol, state),
            Step::Renew => (state.lease == self.term).then_some(Step::Open),
            Step::Open => self.open(protocol, state).then_some(Step::ForgetOld(self.term)),
            Step::ForgetOld(open) => {
                self.forget_all_but(state, open, [open].into_iter().collect());
                None
            }
        };
        match next {
            Some(step) => {
                self.step = step;
                self.forget_what_was_used();
                self
            }
            None => {
                if state.lease == self.term {
                    state.lease = 0;
                }
                Recoverer::default()
            }
        }
    }

    /// Forgets values that no later step reads: they must not distinguish two states.
    fn forget_what_was_used(&mut self) {
        match self.step {
            Step::Certify => (self.decided, self.picture) = Default::default(),
            Step::ForgetHalfBuilt => (self.decided, self.picture) = Default::default(),
            Step::ReadLedger => self.old = Set::default(),
            Step::MoveQueue => self.picture = Picture::default(),
            Step::ForgetOld(_) => (self.old, self.survivors) = Default::default(),
            _ => {}
        }
    }

    /// `close.lua`, and where the survivors are.
    fn close(&mut self, protocol: &Protocol, state: &mut State) -> Option<Step> {
        let held = state.redis.certificate.clone();
        if held.as_ref().is_some_and(|held| held.term > self.term) {
            return None;
        }
        let epoch = held.and_then(|held| held.epoch);
        state.redis.certificate = Some(Certificate {
            open: false,
            epoch,
            // The earlier certificate has no effect until the data is opened again.
            instance: 0,
            term: self.term,
            building: Some(self.term),
            building_on: state.instance,
        });
        let in_flight = |data: &Data| !data.flying().is_empty();
        self.old = match epoch {
            Some(epoch) => [epoch].into_iter().collect(),
            None => state.redis.epochs.iter().filter(|(_, data)| in_flight(data)).map(|(e, _)| *e).collect(),
        };
        let whole = epoch.and_then(|epoch| state.redis.epochs.get(&epoch)).is_some();
        Some(match protocol.verify && whole {
            false => Step::ForgetHalfBuilt,
            true if protocol.variant == Variant::VerifyReadsLedgerFirst => Step::VerifyLedger,
            true => Step::VerifyInFlight,
        })
    }

    /// The data that a verification reads.
    fn verified<'a>(&self, state: &'a State) -> Option<&'a Data> {
        state.redis.epochs.get(&self.old.iter().next()?)
    }

    fn in_flight_and_issued(&self, state: &State) -> Set {
        self.verified(state).map(|data| data.flying().and(state.ledger.issued())).unwrap_or_default()
    }

    fn is_intact(&self, state: &State, decided: Set) -> bool {
        // A coupon that is not loaded has no accounts.
        self.verified(state).is_some_and(|data| {
            data.coupon.is_none_or(|coupon| {
                coupon.settled + decided.len() == self.picture.issued.len()
                    && coupon.total == self.picture.total
            })
        })
    }

    /// Whether the ledger had, when it was read, an issued id that Redis does not know.
    fn misses_issued(&self, state: &State) -> bool {
        let Some(data) = self.verified(state).filter(|data| data.coupon.is_some()) else { return false };
        let known = data.known();
        !self.picture.issued.without(known).is_empty()
    }

    /// Opens the same epoch on this instance: compare-and-set like `open.lua`.
    fn certify(&self, state: &mut State) -> Option<Step> {
        let certificate = state.redis.certificate.as_mut()?;
        let mine =
            !certificate.open && certificate.term == self.term && certificate.building == Some(self.term);
        if !mine || certificate.building_on != state.instance {
            return None;
        }
        certificate.open = true;
        certificate.instance = state.instance;
        (certificate.building, certificate.building_on) = (None, 0);
        let epoch = certificate.epoch?;
        Some(Step::ForgetOld(epoch))
    }

    /// `forget.lua`. Returns whether the recoverer still had its turn.
    fn forget_all_but(&self, state: &mut State, mine: Epoch, kept: Set) -> bool {
        let allowed = state.redis.certificate.as_ref().is_some_and(|held| {
            (held.open && held.epoch == Some(mine)) || (!held.open && held.building == Some(mine))
        });
        if allowed {
            state.redis.epochs.retain(|epoch, _| kept.contains(*epoch));
        }
        allowed
    }

    /// The in-flight hashes of the old epochs (of one issuance, the latest), less what the ledger has
    /// decided.
    fn read_survivors(&mut self, protocol: &Protocol, state: &State) {
        let decided = match protocol.variant {
            Variant::RebuildKeepsDecided => Set::default(),
            _ => state.ledger.issued().union(state.ledger.rejected()),
        };
        for epoch in self.old.iter() {
            let Some(data) = state.redis.epochs.get(&epoch) else { continue };
            for id in data.flying().without(decided).iter() {
                self.survivors[usize::from(id)] = data.in_flight[usize::from(id)];
            }
        }
    }

    /// `load_into`: an issuance that was decided meanwhile is no survivor, and a taken unit goes to no other.
    fn load(&mut self, protocol: &Protocol, state: &mut State) -> bool {
        if state.redis.certificate.as_ref().is_none_or(|held| held.building != Some(self.term)) {
            return false;
        }
        if !matches!(protocol.variant, Variant::RebuildKeepsDecided | Variant::RebuildAsksOnce) {
            self.picture.issued.iter().for_each(|id| self.survivors[usize::from(id)] = None);
        }
        let loaded = loaded(protocol, state, self.picture, &mut self.survivors, false);
        let data = state.redis.epochs.entry(self.term).or_default();
        if data.coupon.is_none() {
            (data.coupon, data.holders, data.rejected) = (loaded.coupon, loaded.holders, loaded.rejected);
        }
        true
    }

    /// `move.lua`, for the next one, or `built.lua` when all are moved: in an old epoch or in its own, never in
    /// neither. No single epoch has them all from then on.
    fn move_one(&self, protocol: &Protocol, state: &mut State) -> Option<Step> {
        let certificate = state.redis.certificate.as_mut()?;
        if certificate.open || certificate.building != Some(self.term) {
            return None;
        }
        let data = state.redis.epochs.entry(self.term).or_default();
        let is_left =
            |(at, survivor): &(usize, &Option<Flight>)| survivor.is_some() && data.in_flight[*at].is_none();
        let Some((at, survivor)) = self.survivors.iter().enumerate().find(is_left) else {
            data.built = true;
            return Some(Step::Renew);
        };
        if protocol.variant != Variant::MoveKeepsEpoch {
            certificate.epoch = None;
        }
        state.appended[at] += 1;
        let flight = survivor.map(|flight| Flight { entry: state.appended[at], ..flight });
        (data.in_flight[at], data.stream[at]) = (flight, flight);
        for (epoch, data) in &mut state.redis.epochs {
            if *epoch != self.term {
                data.in_flight[at] = None;
            }
        }
        Some(Step::MoveQueue)
    }

    pub fn is_loading(&self) -> bool {
        self.step == Step::Load
    }

    /// Leaves the coupon out. The recoverer still moves its issuances in flight.
    pub fn leave_out(&mut self) {
        self.step = Step::MoveQueue;
        self.picture = Picture::default();
    }

    /// `open.lua`: compare-and-set on term and epoch, if everything that the recoverer built is there.
    fn open(&self, protocol: &Protocol, state: &mut State) -> bool {
        let count = self.survivors.iter().flatten().count();
        let is_complete = state.redis.epochs.get(&self.term).is_some_and(|data| {
            data.built
                && usize::from(data.flying().len()) == count
                && data.stream.iter().flatten().count() == count
        });
        let mine = state.redis.certificate.as_ref().is_some_and(|held| {
            !held.open
                && held.term == self.term
                && held.building == Some(self.term)
                && held.building_on == state.instance
        });
        if !is_complete || !(mine || protocol.variant == Variant::OpenWithoutCompare) {
            return false;
        }
        state.redis.certificate = Some(Certificate {
            open: true,
            epoch: Some(self.term),
            instance: state.instance,
            term: self.term,
            building: None,
            building_on: 0,
        });
        true
    }
}
