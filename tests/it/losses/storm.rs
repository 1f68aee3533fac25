//! A rush during which Redis loses acknowledged data.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use coupon_system::ids::CouponId;
use futures::future::join_all;
use tokio::process::Child;
use tokio::task::JoinHandle;

use crate::helpers::{
    NotFound, RequestTally, System, accounts_hold, adopted, eventually, recovered, rush, stopped, worker,
};

pub const TOTAL: u32 = 1_500;
/// Requests that are accepted before the first worker starts, so that Redis has a backlog to lose.
const BACKLOG: u32 = 750;
/// Users of the first wave: fewer than units.
pub const FIRST_WAVE: u32 = 1_000;
const USERS: usize = 2_500;

/// A rush in two waves of users, with the system under it.
pub struct RequestStorm {
    pub system: System,
    pub coupon: CouponId,
    pub workers: Vec<Child>,
    pub tally: Arc<RequestTally>,
    /// Users who have not requested yet.
    second_wave: Vec<String>,
    waves: Vec<JoinHandle<Vec<u64>>>,
}

impl RequestStorm {
    /// Lets the first wave of users request. No worker runs yet.
    pub async fn start() -> Self {
        let system = System::start().await;
        let coupon = system.coupon("c", TOTAL, 1).await;
        let mut users = system.users("u", USERS).await;
        let second_wave = users.split_off(FIRST_WAVE as usize);
        let tally = Arc::default();
        let waves = vec![rush(&system, users, &tally, NotFound::IsTheTruth)];
        RequestStorm { system, coupon, workers: Vec::new(), tally, second_wave, waves }
    }

    /// Lets all other users request.
    pub fn second_wave(&mut self) {
        let users = std::mem::take(&mut self.second_wave);
        self.waves.push(rush(&self.system, users, &self.tally, NotFound::IsTheTruth));
    }

    /// Starts two workers on a backlog. Their batches are small, so that it lasts.
    pub async fn work(&mut self) {
        self.accepted(BACKLOG).await;
        for _ in 0..2 {
            let worker = worker(&self.system, &["--batch", "10", "--concurrency", "2"]);
            self.workers.push(worker.await);
        }
    }

    /// Waits until this many requests are accepted.
    pub async fn accepted(&self, count: u32) {
        eventually("so many are accepted", async || {
            (self.tally.accepted.load(Ordering::Relaxed) >= count.into()).then_some(())
        })
        .await;
    }

    /// Waits until every user has a final answer and all workers have stopped, and compares everything with the ledger.
    /// Returns how many accepted requests were lost.
    pub async fn ends(self, what: &str) -> u64 {
        let RequestStorm { system, coupon, workers, tally, second_wave, waves } = self;
        assert_eq!(second_wave.len(), 0, "all have come");
        let waves = join_all(waves).await;
        let mut told: Vec<u64> = waves.into_iter().flat_map(|serials| serials.expect("no panic")).collect();
        recovered(&system).await;
        eventually("nothing is in flight", async || (system.queue().await == (0, 0)).then_some(())).await;
        for worker in workers {
            assert_eq!(stopped(worker).await.code(), Some(0));
        }
        // A worker may have decided an entry after a rebuild had read the ledger. This issues no unit twice, but Redis
        // learns of such a record only from an audit.
        let late = adopted(&system, &coupon).await;
        accounts_hold(&system, &coupon).await;

        let count = |figure: &std::sync::atomic::AtomicU64| figure.load(Ordering::Relaxed);
        let lost = count(&tally.lost);
        eprintln!(
            "{what}: {} accepted, {lost} of them lost, {} told that they hold it, {} rejected, {} sold out, {} times 503; \
             {late} decided late",
            count(&tally.accepted),
            count(&tally.already_issued),
            count(&tally.rejected),
            count(&tally.sold_out),
            count(&tally.repeated),
        );
        told.sort_unstable();
        assert!(told.is_sorted_by(|a, b| a < b), "two users were told of one unit");
        let issued = system.issued_serials(&coupon).await;
        assert_eq!(issued, (1..=TOTAL).collect::<Vec<_>>(), "all that there is was issued");
        // All other users were refused, or hold a unit that they do not know of, because a poll was answered 404.
        let untold = u64::from(TOTAL) - told.len() as u64;
        assert!(untold <= lost, "{untold} units went to nobody who knows, and {lost} requests were lost");
        assert_eq!(
            told.len() as u64 + count(&tally.rejected) + count(&tally.sold_out),
            USERS as u64,
            "everybody has a last word"
        );
        lost
    }
}
