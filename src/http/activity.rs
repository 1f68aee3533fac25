//! What a connection is doing, and what its listener orders. Two tasks share it: the one that serves the connection
//! writes what it does, and the listener reads it to find the connection that has idled longest.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::task::Waker;
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::time::Instant;

/// The activity of one connection.
pub(super) struct Activity {
    started: Instant,
    /// A phase in the lowest two bits; above them its beginning, in milliseconds from `started`.
    phase: AtomicU64,
    /// Whether a part of an answer waits until the client reads.
    is_stalled: AtomicBool,
    told: AtomicU8,
    waker: AtomicWaker,
}

/// What a connection is doing. Moments are milliseconds from the listener's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// A request has arrived, and its answer is not complete.
    Request,
    /// The first bytes of a request's head have arrived, or the connection is new.
    Head { since: u64 },
    /// No byte of a request has arrived.
    Idle { since: u64 },
    /// The connection has ended.
    Closed,
}

/// What a listener orders a connection to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionOrder {
    Nothing,
    /// End with the answer to the request in hand.
    Finish,
    /// End now, unless a request is in hand.
    Leave,
}

const REQUEST: u64 = 0;
const HEAD: u64 = 1;
const IDLE: u64 = 2;
const CLOSED: u64 = 3;
const PHASE_BITS: u32 = 2;

const NOTHING: u8 = 0;
const FINISH: u8 = 1;
const LEAVE: u8 = 2;

impl Activity {
    /// A new connection of a listener that started at `started`.
    pub fn new(started: Instant) -> Arc<Self> {
        let activity = Activity {
            started,
            phase: AtomicU64::new(0),
            is_stalled: AtomicBool::new(false),
            told: AtomicU8::new(NOTHING),
            waker: AtomicWaker::new(),
        };
        activity.set(HEAD);
        Arc::new(activity)
    }

    fn set(&self, phase: u64) {
        self.phase.store(self.now() << PHASE_BITS | phase, Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What the connection is doing now.
    pub fn phase(&self) -> Phase {
        let phase = self.phase.load(Relaxed);
        let since = phase >> PHASE_BITS;
        match phase & ((1 << PHASE_BITS) - 1) {
            HEAD => Phase::Head { since },
            IDLE => Phase::Idle { since },
            CLOSED => Phase::Closed,
            _ => Phase::Request,
        }
    }

    /// Bytes have come in.
    pub fn has_read(&self) {
        if matches!(self.phase(), Phase::Idle { .. }) {
            self.set(HEAD);
        }
    }

    /// The bytes in the buffer of an idle connection are the beginning of a head: the client has owed the rest since
    /// the connection became idle.
    pub fn idled_with_a_head(&self) {
        if let Phase::Idle { since } = self.phase() {
            self.phase.store(since << PHASE_BITS | HEAD, Relaxed);
        }
    }

    /// A request has arrived.
    pub fn begin_request(&self) {
        self.phase.store(REQUEST, Relaxed);
    }

    /// The answer is complete: its last bytes are written, or wait for the client ([`Activity::stall`]).
    pub fn end_request(&self) {
        self.set(IDLE);
    }

    /// Notes whether a part of an answer waits until the client reads.
    pub fn stall(&self, is_stalled: bool) {
        self.is_stalled.store(is_stalled, Relaxed);
    }

    /// The connection has ended.
    pub fn close(&self) {
        self.set(CLOSED);
    }

    /// Since when the client has owed the next request or the rest of one, in milliseconds from the listener's
    /// start; `None` if it owes nothing.
    pub fn at_rest_since(&self) -> Option<u64> {
        match self.phase() {
            Phase::Idle { since } | Phase::Head { since } if !self.is_stalled.load(Relaxed) => Some(since),
            _ => None,
        }
    }

    /// How long the connection has been idle, if it is.
    pub fn idle_for(&self) -> Option<Duration> {
        match self.phase() {
            Phase::Idle { since } if !self.is_stalled.load(Relaxed) => {
                Some(Duration::from_millis(self.now().saturating_sub(since)))
            }
            _ => None,
        }
    }

    /// The moment `after` one that was told as `since`.
    pub fn moment(&self, since: u64, after: Duration) -> Instant {
        self.started + Duration::from_millis(since) + after
    }

    /// Gives the connection an order.
    pub fn tell(&self, order: ConnectionOrder) {
        let told = match order {
            ConnectionOrder::Nothing => NOTHING,
            ConnectionOrder::Finish => FINISH,
            ConnectionOrder::Leave => LEAVE,
        };
        self.told.store(told, Relaxed);
        self.waker.wake();
    }

    /// The last order of the listener. A later order wakes the task.
    pub fn told(&self, waker: &Waker) -> ConnectionOrder {
        self.waker.register(waker);
        match self.told.load(Relaxed) {
            FINISH => ConnectionOrder::Finish,
            LEAVE => ConnectionOrder::Leave,
            _ => ConnectionOrder::Nothing,
        }
    }

    /// A request arrived before the order to leave, which is void now.
    pub fn stays(&self) {
        let _ = self.told.compare_exchange(LEAVE, NOTHING, Relaxed, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_owes_something_from_its_start_on_and_after_each_answer() {
        let activity = Activity::new(Instant::now());
        assert_eq!(activity.at_rest_since(), Some(0));
        activity.begin_request();
        activity.has_read();
        assert_eq!((activity.phase(), activity.at_rest_since()), (Phase::Request, None));
        tokio::time::advance(Duration::from_secs(2)).await;
        activity.end_request();
        activity.stall(true);
        assert_eq!((activity.at_rest_since(), activity.idle_for()), (None, None), "it owes the reading");
        activity.stall(false);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(activity.phase(), Phase::Idle { since: 2_000 });
        assert_eq!(activity.idle_for(), Some(Duration::from_secs(3)));
        activity.idled_with_a_head();
        assert_eq!((activity.phase(), activity.idle_for()), (Phase::Head { since: 2_000 }, None));
    }
}
