//! redis-server killed again and again: with fsync-always nothing that it acknowledged is lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::RngExt;

use crate::helpers::{
    NotFound, RequestTally, System, accounts_hold, chance, issued, recovered, rounds, rush, stopped, worker,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_killed_ten_times_in_mid_rush_forgets_no_accepted_request() {
    const TOTAL: u32 = 2_500;
    let (mut chance, kills) = (chance(), u32::try_from(rounds(10)).expect("a number of kills"));
    let mut system = System::start().await;
    let coupon = system.coupon("c", TOTAL, 1).await;
    let users = system.users("u", 4_000).await;
    let workers = [worker(&system, &[]).await, worker(&system, &[]).await];
    let tally = Arc::new(RequestTally::default());
    let started = Instant::now();
    let rush = rush(&system, users, &tally, NotFound::IsAFault);

    let (mut verified, mut rebuilt, mut in_recovery, mut outage_max) = (0, 0, 0, Duration::ZERO);
    for kill in 0..kills {
        let step = TOTAL / (kills + 1);
        issued(&system, &coupon, kill * step + chance.random_range(1..=step)).await;
        let before = system.keys().epoch();
        let down = Instant::now();
        system.redis.kill().await.expect("it is killed");
        system.redis.restart().await.expect("it is back");
        if chance.random_bool(0.3) {
            // The test kills Redis once more during the recovery.
            in_recovery += 1;
            tokio::time::sleep(Duration::from_millis(chance.random_range(0..100))).await;
            system.redis.kill().await.expect("it is killed");
            system.redis.restart().await.expect("it is back");
        }
        recovered(&system).await;
        outage_max = outage_max.max(down.elapsed());
        *(if system.keys().epoch() == before { &mut verified } else { &mut rebuilt }) += 1;
    }

    let mut serials = rush.await.expect("no panic");
    eprintln!(
        "{kills} kills, {in_recovery} more during a recovery: {verified} times verified, {rebuilt} times rebuilt; \
         the longest outage {outage_max:?}; {} requests and polls answered 503; {:?} in all",
        tally.repeated.load(Ordering::Relaxed),
        started.elapsed(),
    );
    assert!(verified > 0, "data that was intact was never certified as it was");
    serials.sort_unstable();
    assert_eq!(serials, (1..=u64::from(TOTAL)).collect::<Vec<_>>(), "each accepted request was issued");
    let told_late = tally.already_issued.load(Ordering::Relaxed);
    assert_eq!(tally.accepted.load(Ordering::Relaxed) + told_late, u64::from(TOTAL));
    accounts_hold(&system, &coupon).await;
    for worker in workers {
        assert_eq!(stopped(worker).await.code(), Some(0));
    }
    accounts_hold(&system, &coupon).await;
}
