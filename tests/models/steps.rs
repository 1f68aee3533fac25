//! The actions that are possible in a state, and their effects.

use super::failure::Failure;
use super::loader::Loader;
use super::recoverer::Recoverer;
use super::scripts::{self, Amiss};
use super::state::{Id, Set, State};
use super::worker::{Step, Worker};
use super::{Action, Protocol, Variant};

impl Protocol {
    /// Whether any process has something to do if no client sends and nothing fails or interferes any more.
    pub fn has_work(&self, state: &State) -> bool {
        let mut actions = Vec::new();
        self.work(state, &mut actions);
        !actions.is_empty()
    }

    /// The actions of the processes themselves.
    pub fn work(&self, state: &State, actions: &mut Vec<Action>) {
        let open = state.open_data();
        let picks = open.and_then(|data| data.coupon).map_or(1, |coupon| coupon.free.len().max(1));
        let queued = state.known_epoch().and_then(|epoch| state.redis.epochs.get(&epoch));
        let mut idle = false;
        for (number, worker) in state.workers.iter().enumerate() {
            if worker.is_idle() {
                // All idle workers are alike.
                if !std::mem::replace(&mut idle, true) {
                    let queued = |id: &Id| queued.is_some_and(|data| data.stream[usize::from(*id)].is_some());
                    actions.extend(self.ids().filter(queued).map(|id| Action::Read { worker: number, id }));
                }
            } else if worker.can_go_on(state) {
                let picks = if worker.next().1 == Step::Reassign { picks } else { 1 };
                actions.extend((0..picks).map(|pick| Action::Work { worker: number, pick }));
            }
        }
        let mut idle = false;
        for (number, recoverer) in state.recoverers.iter().enumerate() {
            if !recoverer.is_idle() {
                actions.push(Action::Recover { recoverer: number });
            } else if state.open_epoch().is_none() && !std::mem::replace(&mut idle, true) {
                let is_free = state.recoverers.iter().all(Recoverer::is_idle);
                if is_free || state.spent.steals < self.bounds.steals {
                    actions.push(Action::TakeLease { recoverer: number });
                }
            }
        }
        for (number, loader) in state.loaders.iter().enumerate() {
            if !loader.is_idle() {
                actions.push(Action::Load { loader: number });
            }
        }
        actions.extend(self.adoptable(state).iter().map(|id| Action::Adopt { id }));
        if open.and_then(|data| data.coupon).is_some_and(|coupon| self.is_behind(coupon.total, state)) {
            actions.push(Action::BringTotal);
        }
    }

    /// The issued ids that the audit must adopt or correct.
    fn adoptable(&self, state: &State) -> Set {
        let Some(data) = state.open_data() else { return Set::default() };
        let amiss = |id: Id, serial| scripts::amiss(self, data, id, serial) != Amiss::Nothing;
        let records = state.ledger.issued_records();
        records.filter(|(id, serial, _)| amiss(*id, *serial)).map(|(id, ..)| id).collect()
    }

    fn is_behind(&self, total: u8, state: &State) -> bool {
        if self.variant == Variant::TotalShrinks {
            total != state.ledger.total
        } else {
            total < state.ledger.total
        }
    }

    /// The actions of clients and operators, and failures.
    pub fn interfere(&self, state: &State, actions: &mut Vec<Action>) {
        let (bounds, spent) = (self.bounds, state.spent);
        if let Some(coupon) = state.open_data().and_then(|data| data.coupon) {
            for id in self.ids().filter(|id| self.is_keyed(*id) || !state.sent.contains(*id)) {
                actions.extend((0..coupon.free.len().max(1)).map(|pick| Action::Send { id, pick }));
            }
        }
        for (number, worker) in state.workers.iter().enumerate() {
            if !worker.is_idle() {
                actions.push(Action::StopWorker { worker: number });
            }
        }
        if let Some(worker) = state.workers.iter().position(Worker::is_idle)
            && spent.discards < bounds.discards
            && let Some(data) = state.known_epoch().and_then(|epoch| state.redis.epochs.get(&epoch))
        {
            actions.extend(data.flying().iter().map(|id| Action::Discard { worker, id }));
        }
        if spent.recoverers_stopped < bounds.recoverers_stopped {
            let working = state.recoverers.iter().enumerate().filter(|(_, recoverer)| !recoverer.is_idle());
            actions.extend(working.map(|(recoverer, _)| Action::StopRecoverer { recoverer }));
        }
        if spent.splits < bounds.splits {
            let entries = self.ids().filter(|id| scripts::may_split(self, state, *id));
            actions.extend(entries.map(|id| Action::Split { id }));
        }
        if spent.left_out < bounds.left_out {
            let loads = state.recoverers.iter().enumerate().filter(|(_, recoverer)| recoverer.is_loading());
            actions.extend(loads.map(|(recoverer, _)| Action::LeaveOut { recoverer }));
        }
        for (loader, it) in state.loaders.iter().enumerate() {
            if it.is_idle() && Loader::read(self, state).is_some() {
                actions.push(Action::ReadToLoad { loader });
            }
        }
        if spent.restocks < bounds.restocks {
            actions.push(if self.variant == Variant::TotalShrinks {
                Action::Shrink
            } else {
                Action::Restock
            });
        }
        if self.variant == Variant::ApiCompensates
            && let Some(data) = state.open_data()
        {
            actions.extend(data.flying().iter().map(|id| Action::Compensate { id }));
        }
        if state.snapshot.is_none() && spent.rewinds < bounds.rewinds {
            actions.push(Action::Save);
        }
        let failures = [
            (spent.restarts < bounds.restarts, Failure::Restart),
            (spent.flushes < bounds.flushes, Failure::Flush),
            (spent.certificates_lost < bounds.certificates_lost, Failure::LoseCertificate),
            (spent.rewinds < bounds.rewinds && state.snapshot.is_some(), Failure::Rewind),
        ];
        actions
            .extend(failures.into_iter().filter(|(may, _)| *may).map(|(_, failure)| Action::Fail(failure)));
    }

    pub fn act(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Send { id, pick } => scripts::reserve(self, state, id, pick),
            Action::Read { worker, id } => state.workers[worker] = Worker::read(self, state, id)?,
            Action::Work { worker, pick } => {
                state.workers[worker] = state.workers[worker].go_on(self, state, pick);
            }
            Action::StopWorker { worker } => state.workers[worker] = Worker::default(),
            Action::Discard { worker, id } => {
                state.workers[worker] = Worker::discard(state, id)?;
                state.spent.discards += 1;
            }
            Action::TakeLease { recoverer } => {
                if !state.recoverers.iter().all(Recoverer::is_idle) {
                    state.spent.steals += 1;
                }
                state.recoverers[recoverer] = Recoverer::lease(state);
            }
            Action::Recover { recoverer } => {
                let it = std::mem::take(&mut state.recoverers[recoverer]);
                state.recoverers[recoverer] = it.go_on(self, state);
            }
            Action::StopRecoverer { recoverer } => {
                state.recoverers[recoverer] = Recoverer::default();
                state.spent.recoverers_stopped += 1;
            }
            Action::LeaveOut { recoverer } => {
                state.recoverers[recoverer].leave_out();
                state.spent.left_out += 1;
            }
            Action::Split { id } => {
                scripts::split(self, state, id);
                state.spent.splits += 1;
            }
            Action::ReadToLoad { loader } => state.loaders[loader] = Loader::read(self, state)?,
            Action::Load { loader } => {
                let it = std::mem::take(&mut state.loaders[loader]);
                state.loaders[loader] = it.go_on(self, state);
            }
            Action::Adopt { id } => scripts::adopt(self, state, id),
            Action::Restock => {
                state.ledger.total += 1;
                state.spent.restocks += 1;
            }
            Action::Shrink => {
                // What an operator might think is safe: the last unit is not issued.
                if state.ledger.issued_records().any(|(_, serial, _)| serial == state.ledger.total) {
                    return None;
                }
                state.ledger.total -= 1;
                state.spent.restocks += 1;
            }
            Action::BringTotal => {
                let total = state.ledger.total;
                let epoch = state.open_epoch()?;
                state.redis.epochs.get_mut(&epoch)?.coupon.as_mut()?.total = total;
            }
            Action::Compensate { id } => scripts::compensate(self, state, id),
            Action::Save => state.snapshot = Some(state.redis.clone()),
            Action::Fail(failure) => failure.strike(state),
        }
        Some(())
    }
}
