//! The actions that are possible in a state, and their effects: the scripts of a share, a hand's steps, failures,
//! rebuilds, the audit.

use super::state::{
    Condition, Flight, Hand, Id, InFlight, Kind, Ledger, Next, Record, SHARES, Share, State, Unit, native,
};
use super::{Action, Loss, Moves, Variant};
use crate::state::Set;

/// What a hand finds when it decides.
enum Decision {
    /// The ledger has it.
    Adopt(Record),
    Insert(Kind),
    /// It is in flight with this unit.
    Again(Option<Unit>),
    /// Its unit is another's: it takes another.
    Reassign,
    /// It is not in flight any more, or belongs to another epoch.
    Gone,
    /// Its share is not open.
    Wait,
}

/// What a rebuild computes from the ledger and from what survived in flight.
pub struct Rebuilt {
    pub free: Set,
    pub in_flight: InFlight,
    pub credited: Set,
}

impl Moves {
    /// Whether any process has something to do if nobody asks for a unit and nothing fails any more.
    pub fn has_work(&self, state: &State) -> bool {
        let mut actions = Vec::new();
        self.work(state, &mut actions);
        !actions.is_empty()
    }

    /// The steps of the processes themselves.
    pub fn work(&self, state: &State, actions: &mut Vec<Action>) {
        let has_hand = state.hands.iter().flatten().count() < self.hands;
        for (number, share) in state.shares.iter().enumerate() {
            match share.condition {
                Condition::Closed => actions.push(Action::ReadToRebuild { share: number }),
                Condition::Built => actions.push(Action::Open { share: number }),
                Condition::Open => {
                    if has_hand {
                        actions.extend(share.flying().map(|(id, _)| Action::Read { share: number, id }));
                    }
                    if !share.free.and(state.ledger.occupied(number)).is_empty() {
                        actions.push(Action::Adopt { share: number });
                    }
                    if self.pulls() {
                        let moved = state.ledger.moved_to(number).map(|(id, _)| id);
                        let late = moved.filter(|id| !share.credited.contains(*id));
                        actions.extend(late.map(|id| Action::Pull { share: number, id }));
                    }
                    if share.total < state.ledger.total {
                        actions.push(Action::BringTotal { share: number });
                    }
                }
            }
        }
        for (number, hand) in state.hands.iter().enumerate() {
            let Some(hand) = hand else { continue };
            self.hand_steps(state, number, hand, actions);
        }
    }

    fn hand_steps(&self, state: &State, number: usize, hand: &Hand, actions: &mut Vec<Action>) {
        let is_open = |share: usize| state.shares[share].condition == Condition::Open;
        let receiver = 1 - usize::from(hand.share);
        match hand.next {
            Next::Decide => match self.decision(state, hand) {
                Decision::Wait => {}
                Decision::Reassign => {
                    let free = state.shares[usize::from(hand.share)].free.iter().map(Unit);
                    actions.extend(free.map(|unit| Action::Decide { hand: number, pick: Some(unit) }));
                }
                _ => actions.push(Action::Decide { hand: number, pick: None }),
            },
            Next::Credit(_) => {
                if is_open(receiver) {
                    actions.push(Action::Credit { hand: number });
                }
                if self.settles_first() && is_open(usize::from(hand.share)) {
                    actions.push(Action::Settle { hand: number });
                }
            }
            Next::CreditAfterSettling(_) if is_open(receiver) => {
                actions.push(Action::Credit { hand: number })
            }
            Next::Settle(_) if is_open(usize::from(hand.share)) => {
                actions.push(Action::Settle { hand: number })
            }
            Next::CreditAfterSettling(_) | Next::Settle(_) => {}
        }
    }

    /// What users, operators and askers do, and failures.
    pub fn interfere(&self, state: &State, actions: &mut Vec<Action>) {
        for (number, share) in
            state.shares.iter().enumerate().filter(|(_, share)| share.condition == Condition::Open)
        {
            if state.requested[number] < self.requests {
                actions.extend(
                    share.free.iter().map(|unit| Action::Reserve { share: number, unit: Unit(unit) }),
                );
            }
            if state.moves < self.moves {
                actions
                    .extend(share.free.iter().map(|unit| Action::Lend { share: number, unit: Unit(unit) }));
            }
            if state.losses < self.losses {
                let is_possible = |loss: &Loss| *loss != Loss::Rewind || state.saved[number].is_some();
                let kinds = self.kinds.iter().copied().filter(is_possible);
                actions.extend(kinds.map(|loss| Action::Lose { share: number, loss }));
                if self.kinds.contains(&Loss::Rewind) && state.saved[number] != Some(share.in_flight) {
                    actions.push(Action::Save { share: number });
                }
            }
            if state.discards < self.discards {
                let requests =
                    share.flying().filter(|(id, _)| !self.is_move(*id) && state.ledger.get(*id).is_none());
                actions.extend(requests.map(|(id, _)| Action::Discard { share: number, id }));
            }
        }
        let hands = state.hands.iter().enumerate().filter(|(_, hand)| hand.is_some());
        actions.extend(hands.map(|(hand, _)| Action::Stop { hand }));
        if state.restocks < self.restocks {
            actions.push(Action::Restock);
        }
        self.asking(state, actions);
    }

    pub fn act(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Reserve { share, unit } => {
                let id = share as u8 * self.requests + state.requested[share];
                state.requested[share] += 1;
                take_into_flight(&mut state.shares[share], id, unit);
            }
            Action::Lend { share, unit } => {
                let id = self.requests * SHARES as u8 + state.moves;
                state.moves += 1;
                take_into_flight(&mut state.shares[share], id, unit);
                if self.credits_before_ledger() && state.shares[1 - share].condition == Condition::Open {
                    self.credit(state, 1 - share, id, unit.moved());
                }
            }
            Action::Read { share, id } => {
                let Share { epoch, in_flight, .. } = state.shares[share];
                let unit = in_flight[usize::from(id)]?.unit;
                hold(state, Hand { share: share as u8, epoch, id, unit, next: Next::Decide });
            }
            Action::Decide { hand, pick } => self.decide(state, hand, pick)?,
            Action::Credit { hand } => {
                let hand = drop_hand(state, hand)?;
                let (Next::Credit(record) | Next::CreditAfterSettling(record)) = hand.next else {
                    return None;
                };
                if !self.credits_before_ledger() {
                    self.credit(state, record.receiver(), hand.id, record.unit?.moved());
                }
                if hand.next == Next::Credit(record) {
                    hold(state, Hand { next: Next::Settle(record), ..hand });
                }
            }
            Action::Settle { hand } => {
                let hand = drop_hand(state, hand)?;
                let (Next::Credit(record) | Next::Settle(record)) = hand.next else { return None };
                settle(state, &hand, record);
                if hand.next == Next::Credit(record) {
                    hold(state, Hand { next: Next::CreditAfterSettling(record), ..hand });
                }
            }
            Action::Stop { hand } => drop(drop_hand(state, hand)?),
            Action::Save { share } => state.saved[share] = Some(state.shares[share].in_flight),
            Action::Lose { share, loss } => {
                state.losses += 1;
                let Share { epoch, in_flight, .. } = state.shares[share];
                let in_flight = match loss {
                    Loss::Restart => in_flight,
                    Loss::Wipe => InFlight::default(),
                    Loss::Rewind => state.saved[share]?,
                };
                state.shares[share] = Share { epoch, in_flight, ..Share::default() };
            }
            Action::ReadToRebuild { share } => {
                let epoch = state.shares[share].epoch + 1;
                let Rebuilt { free, in_flight, credited } = self.rebuilt(state, share);
                let total = state.ledger.total;
                state.shares[share] =
                    Share { condition: Condition::Built, epoch, total, free, in_flight, credited };
            }
            Action::Open { share } => {
                state.shares[share].condition = Condition::Open;
                self.opened(state, share);
            }
            Action::Adopt { share } => {
                state.shares[share].free = state.shares[share].free.without(state.ledger.occupied(share));
            }
            Action::Pull { share, id } => {
                let unit = state.ledger.get(id)?.unit?.moved();
                self.credit(state, share, id, unit);
            }
            Action::Discard { share, id } => self.discard(state, share, id)?,
            Action::Restock => {
                state.restocks += 1;
                state.ledger.total += 1;
            }
            Action::BringTotal { share } => {
                let it = &mut state.shares[share];
                let fresh = native(share, state.ledger.total).without(native(share, it.total));
                it.total = state.ledger.total;
                it.free = it.free.union(fresh);
                if !fresh.is_empty() && self.variant != Variant::RestockWithoutGain {
                    gain(state, share);
                }
            }
            Action::Ask => self.ask(state),
            Action::Look { share } => self.look(state, share),
            Action::CountMoves => self.count_moves(state),
        }
        Some(())
    }

    /// As the unique index has it: without the hop, if a test breaks it.
    fn keys(&self, units: Set) -> Set {
        match self.variant {
            Variant::NoHop => units.iter().map(|unit| Unit::native(Unit(unit).serial()).0).collect(),
            _ => units,
        }
    }

    fn is_taken(&self, ledger: &Ledger, share: usize, unit: Unit) -> bool {
        let key = self.keys([unit.0].into_iter().collect());
        !self.keys(ledger.occupied(share)).and(key).is_empty()
    }

    fn decision(&self, state: &State, hand: &Hand) -> Decision {
        if let Some(record) = state.ledger.get(hand.id) {
            return Decision::Adopt(record);
        }
        let at = usize::from(hand.share);
        let unchecked = matches!(self.variant, Variant::NoCheck | Variant::CreditsBeforeLedgerUnchecked);
        let kind = if self.is_move(hand.id) { Kind::Moved } else { Kind::Issued };
        let may_have = |unit| unchecked || state.ledger.belongs(at, unit);
        if hand.unit.is_some_and(|unit| may_have(unit) && !self.is_taken(&state.ledger, at, unit)) {
            return Decision::Insert(kind);
        }
        let share = &state.shares[at];
        if share.condition != Condition::Open {
            return Decision::Wait;
        }
        match share.in_flight[usize::from(hand.id)] {
            _ if share.epoch != hand.epoch => Decision::Gone,
            None => Decision::Gone,
            Some(Flight { unit: Some(unit) }) if hand.unit != Some(unit) => Decision::Again(Some(unit)),
            Some(_) if kind == Kind::Issued && !share.free.is_empty() => Decision::Reassign,
            Some(_) => Decision::Insert(Kind::Rejected),
        }
    }

    fn decide(&self, state: &mut State, at: usize, pick: Option<Unit>) -> Option<()> {
        let decision = self.decision(state, state.hands[at].as_ref()?);
        let hand = drop_hand(state, at)?;
        let next = match decision {
            Decision::Wait => return None,
            Decision::Gone => return Some(()),
            Decision::Again(unit) => {
                hold(state, Hand { unit, ..hand });
                return Some(());
            }
            Decision::Reassign => {
                let share = &mut state.shares[usize::from(hand.share)];
                take_into_flight(share, hand.id, pick?);
                hold(state, Hand { unit: pick, ..hand });
                return Some(());
            }
            Decision::Insert(kind) => {
                let record = Record { share: hand.share, kind, unit: hand.unit };
                state.ledger.insert(hand.id, record);
                record
            }
            Decision::Adopt(record) => record,
        };
        let next = if next.kind == Kind::Moved { Next::Credit(next) } else { Next::Settle(next) };
        hold(state, Hand { next, ..hand });
        Some(())
    }

    /// `credit.lua`: once an id.
    fn credit(&self, state: &mut State, share: usize, id: Id, unit: Unit) {
        let it = &mut state.shares[share];
        if it.credited.contains(id) && self.variant != Variant::NoGuard {
            return;
        }
        it.credited.insert(id);
        it.free.insert(unit.0);
        gain(state, share);
    }

    /// An operator's rejection, and its settling, in one step. The unit comes back unless it is another's.
    fn discard(&self, state: &mut State, share: usize, id: Id) -> Option<()> {
        state.discards += 1;
        let unit = state.shares[share].in_flight[usize::from(id)].take()?.unit;
        state.ledger.insert(id, Record { share: share as u8, kind: Kind::Discarded, unit });
        if let Some(unit) = unit
            && !self.is_taken(&state.ledger, share, unit)
        {
            state.shares[share].free.insert(unit.0);
            gain(state, share);
        }
        Some(())
    }

    /// What a rebuild of a share computes now.
    pub fn rebuilt(&self, state: &State, share: usize) -> Rebuilt {
        let ledger = &state.ledger;
        let occupied = self.keys(ledger.occupied(share));
        let is_occupied = |unit: u8| !self.keys([unit].into_iter().collect()).and(occupied).is_empty();
        let forgets = self.variant == Variant::RebuildForgetsMovedIn;
        let moved_in = || ledger.moved_to(share).filter(|_| !forgets);
        let own = native(share, ledger.total).union(moved_in().map(|(_, unit)| unit.0).collect());
        let (mut in_flight, mut used) = (InFlight::default(), Set::default());
        for (id, flight) in state.shares[share].flying().filter(|(id, _)| ledger.get(*id).is_none()) {
            let is_its = |unit: &Unit| own.contains(unit.0) && !used.contains(unit.0) && !is_occupied(unit.0);
            let unit = flight.unit.filter(is_its);
            unit.iter().for_each(|unit| used.insert(unit.0));
            in_flight[usize::from(id)] = Some(Flight { unit });
        }
        if self.queues_moves_again {
            let out = ledger.of_kind(Kind::Moved).filter(|(_, record)| usize::from(record.share) == share);
            out.for_each(|(id, record)| in_flight[usize::from(id)] = Some(Flight { unit: record.unit }));
        }
        let free = own.without(used).iter().filter(|unit| !is_occupied(*unit)).collect();
        Rebuilt { free, in_flight, credited: moved_in().map(|(id, _)| id).collect() }
    }
}

/// What `reserve.lua`, `lend.lua` and `reassign.lua` have in common.
fn take_into_flight(share: &mut Share, id: Id, unit: Unit) {
    share.free.remove(unit.0);
    share.in_flight[usize::from(id)] = Some(Flight { unit: Some(unit) });
}

/// `settle.lua`: guarded by what is in flight, and by the epoch.
fn settle(state: &mut State, hand: &Hand, record: Record) {
    let at = usize::from(hand.share);
    let share = &mut state.shares[at];
    if share.epoch != hand.epoch {
        return;
    }
    let Some(flight) = share.in_flight[usize::from(hand.id)].take() else { return };
    if let (Kind::Issued | Kind::Moved, Some(unit)) = (record.kind, record.unit) {
        let other = flight.unit.filter(|held| *held != unit);
        other.iter().for_each(|held| share.free.insert(held.0));
        share.free.remove(unit.0);
        if other.is_some() {
            gain(state, at);
        }
    }
}

/// A share has a unit more than before: an asker may have looked at it already.
pub fn gain(state: &mut State, share: usize) {
    if let Some(asker) = &mut state.asker {
        asker.gains(share);
    }
}

fn hold(state: &mut State, hand: Hand) {
    if let Some(place) = state.hands.iter_mut().find(|place| place.is_none()) {
        *place = Some(hand);
    }
    state.hands.sort_unstable();
}

fn drop_hand(state: &mut State, at: usize) -> Option<Hand> {
    let hand = state.hands[at].take();
    state.hands.sort_unstable();
    hand
}
