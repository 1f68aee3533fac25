//! The connections of one listener: how many there may be, and which one must go when there are too many. When all
//! places are taken, the connection that has idled longest makes room for the next one; and from half of the places
//! on, the fewer are free the shorter a connection may idle. A connection that waits for an answer is never closed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::activity::{Activity, ConnectionOrder};
use super::keep_alive::IDLE_MAX;
use crate::metrics;

/// How long a connection may idle when all places are taken.
const IDLE_MAX_WHEN_FULL: Duration = Duration::from_secs(5);
/// How often connections that have idled for too long are closed.
pub(super) const SHRINK_EVERY: Duration = Duration::from_secs(1);
/// A connection that was told to leave does so within this; otherwise another one is told.
const LEAVE_MAX: Duration = Duration::from_millis(50);
/// Candidates that one pass over all connections finds.
const NEXT_TO_GO_MAX: usize = 1_024;
/// Ended connections that may be remembered beside the open ones.
const CLOSED_MAX: usize = 256;

/// The open connections, and their places.
pub(super) struct Connections {
    most: usize,
    places: Arc<Semaphore>,
    all: Vec<Arc<Activity>>,
    /// The connections that had idled longest at the last pass, and since when; the longest is the last.
    next_to_go: Vec<(u64, Arc<Activity>)>,
}

impl Connections {
    /// A listener's connections, at most `most` at once.
    pub fn new(most: usize) -> Self {
        let places = Arc::new(Semaphore::new(most));
        Connections { most, places, all: Vec::new(), next_to_go: Vec::new() }
    }

    /// Waits for a place for one more. If none is free, an idle connection is told to leave.
    pub async fn place(&mut self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
                return place;
            }
            self.send_away();
            let freed = tokio::time::timeout(LEAVE_MAX, Arc::clone(&self.places).acquire_owned());
            if let Ok(Ok(place)) = freed.await {
                return place;
            }
        }
    }

    /// Tells the connection that has idled longest to leave, if any idles.
    pub fn send_away(&mut self) {
        if let Some(longest) = self.longest_at_rest() {
            metrics::DROPPED.count("crowd");
            longest.tell(ConnectionOrder::Leave);
        }
    }

    /// Remembers a connection that has got a place.
    pub fn add(&mut self, activity: Arc<Activity>) {
        if self.all.len() >= 2 * self.taken() + CLOSED_MAX {
            self.forget_closed();
        }
        self.all.push(activity);
    }

    /// Tells the connections that idle for longer than they may now to leave.
    pub fn shrink(&mut self) {
        let taken = self.taken();
        let idle_max = idle_max(taken, self.most);
        if idle_max == IDLE_MAX {
            return;
        }
        for activity in &self.all {
            if activity.idle_for().is_some_and(|idle| idle > idle_max) {
                metrics::DROPPED.count("crowd");
                activity.tell(ConnectionOrder::Leave);
            }
        }
    }

    /// Tells all to end with the answers to the requests in hand.
    pub fn finish(&self) {
        self.all.iter().for_each(|activity| activity.tell(ConnectionOrder::Finish));
    }

    fn taken(&self) -> usize {
        self.most.saturating_sub(self.places.available_permits())
    }

    fn forget_closed(&mut self) {
        self.all.retain(|activity| activity.phase() != super::activity::Phase::Closed);
    }

    fn longest_at_rest(&mut self) -> Option<Arc<Activity>> {
        self.known_at_rest().or_else(|| {
            self.find_next_to_go();
            self.known_at_rest()
        })
    }

    /// Of the candidates, the one that has idled longest and has done nothing since. A connection that came to rest
    /// later has idled less.
    fn known_at_rest(&mut self) -> Option<Arc<Activity>> {
        while let Some((since, activity)) = self.next_to_go.pop() {
            if activity.at_rest_since() == Some(since) {
                return Some(activity);
            }
        }
        None
    }

    fn find_next_to_go(&mut self) {
        self.forget_closed();
        let resting = |activity: &Arc<Activity>| Some((activity.at_rest_since()?, Arc::clone(activity)));
        let mut resting: Vec<_> = self.all.iter().filter_map(resting).collect();
        if resting.len() > NEXT_TO_GO_MAX {
            resting.select_nth_unstable_by_key(NEXT_TO_GO_MAX, |(since, _)| *since);
            resting.truncate(NEXT_TO_GO_MAX);
        }
        resting.sort_unstable_by_key(|(since, _)| std::cmp::Reverse(*since));
        self.next_to_go = resting;
    }
}

/// How long a connection may idle while `taken` of `most` places are taken.
fn idle_max(taken: usize, most: usize) -> Duration {
    let half = most / 2;
    let Some(beyond) = taken.checked_sub(half).filter(|beyond| *beyond > 0) else { return IDLE_MAX };
    let share = beyond as f64 / (most - half) as f64;
    IDLE_MAX - (IDLE_MAX - IDLE_MAX_WHEN_FULL).mul_f64(share.min(1.0))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn the_fewer_places_are_left_the_shorter_a_connection_may_idle() {
        assert_eq!((idle_max(0, 100), idle_max(50, 100)), (IDLE_MAX, IDLE_MAX));
        assert_eq!(idle_max(75, 100), (IDLE_MAX + IDLE_MAX_WHEN_FULL) / 2);
        assert_eq!((idle_max(100, 100), idle_max(1, 1)), (IDLE_MAX_WHEN_FULL, IDLE_MAX_WHEN_FULL));
    }

    /// What a connection was told.
    fn told(activity: &Activity) -> ConnectionOrder {
        activity.told(std::task::Waker::noop())
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_idled_longest_goes_first_and_who_waits_for_an_answer_never() {
        let started = Instant::now();
        let mut connections = Connections::new(4);
        let mut places = Vec::new();
        let all: Vec<_> = (0..4).map(|_| Activity::new(started)).collect();
        for activity in &all {
            places.push(connections.place().await);
            connections.add(Arc::clone(activity));
        }
        all[1].begin_request();
        for number in [2, 0, 3] {
            tokio::time::advance(Duration::from_millis(10)).await;
            all[number].end_request();
        }
        let gone =
            || (0..4).filter(|number| told(&all[*number]) == ConnectionOrder::Leave).collect::<Vec<_>>();
        for expected in [vec![2], vec![0, 2], vec![0, 2, 3], vec![0, 2, 3]] {
            connections.send_away();
            assert_eq!(gone(), expected);
            all.iter()
                .filter(|activity| told(activity) == ConnectionOrder::Leave)
                .for_each(|activity| activity.close());
        }
    }
}
