//! A rush while processes are killed, stopped and restarted, and while MongoDB does not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coupon_system::dev::servers::{MongoOptions, MongoServer};
use coupon_system::ids::CouponId;
use rustix::process::Signal;

use crate::helpers::{
    NotFound, POLL_EVERY, RequestTally, System, accounts_hold, eventually, issued, rush, send, stopped,
    worker,
};

async fn all_are_accounted_for(system: &System, coupon: &CouponId, total: u32) {
    let stock = accounts_hold(system, coupon).await;
    assert_eq!((stock.remaining, stock.issued), (0, total));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_rush_for_five_thousand_while_one_worker_is_killed_and_one_sleeps() {
    const TOTAL: u32 = 5_000;
    let system = System::start().await;
    let coupon = system.coupon("c", TOTAL, 1).await;
    let users = system.users("u", 20_000).await;
    let (mut doomed, sleeper, steady) =
        (worker(&system, &[]).await, worker(&system, &[]).await, worker(&system, &[]).await);
    let tally = Arc::new(RequestTally::default());
    let rush = rush(&system, users, &tally, NotFound::IsAFault);

    issued(&system, &coupon, TOTAL / 4).await;
    send(&sleeper, Signal::STOP);
    issued(&system, &coupon, TOTAL / 2).await;
    doomed.kill().await.expect("it is killed");

    let mut serials = rush.await.expect("no panic");
    send(&sleeper, Signal::CONT);
    serials.sort_unstable();
    assert_eq!(serials, (1..=u64::from(TOTAL)).collect::<Vec<_>>());
    assert_eq!(tally.sold_out.load(Ordering::Relaxed), 15_000);
    all_are_accounted_for(&system, &coupon, TOTAL).await;
    for worker in [sleeper, steady] {
        assert_eq!(stopped(worker).await.code(), Some(0));
    }
    // The accounts also hold after the stopped worker has written what it had in hand.
    all_are_accounted_for(&system, &coupon, TOTAL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_away_for_twenty_seconds_in_mid_rush_rejects_nothing_and_uses_no_attempt() {
    const TOTAL: u32 = 2_000;
    const AWAY: Duration = Duration::from_secs(20);
    let folder = tempfile::tempdir().expect("a folder");
    let mut mongodb =
        MongoServer::start(MongoOptions::new(folder.path().join("mongodb"))).await.expect("it starts");
    let system = System::builder().mongodb(mongodb.url()).start().await;
    let coupon = system.coupon("c", TOTAL, 1).await;
    let users = system.users("u", 4_000).await;
    let workers = [worker(&system, &[]).await, worker(&system, &[]).await];
    let tally = Arc::new(RequestTally::default());
    let rush = rush(&system, users, &tally, NotFound::IsAFault);

    issued(&system, &coupon, TOTAL / 4).await;
    mongodb.stop().await.expect("it stops");
    tokio::time::sleep(AWAY).await;
    mongodb.restart().await.expect("it is back");

    let mut serials = rush.await.expect("no panic");
    serials.sort_unstable();
    assert_eq!(serials, (1..=u64::from(TOTAL)).collect::<Vec<_>>(), "each accepted request was issued");
    all_are_accounted_for(&system, &coupon, TOTAL).await;
    for worker in workers {
        assert_eq!(stopped(worker).await.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_restarted_one_after_another_under_load_leave_nothing_behind() {
    const TOTAL: u32 = 3_000;
    let system = System::start().await;
    let coupon = system.coupon("c", TOTAL, 1).await;
    let users = system.users("u", TOTAL as usize).await;
    let mut workers = vec![worker(&system, &[]).await, worker(&system, &[]).await];
    let tally = Arc::new(RequestTally::default());
    let done = Arc::new(AtomicBool::new(false));
    let rush = rush(&system, users, &tally, NotFound::IsAFault);
    let over = Arc::clone(&done);
    let rush = tokio::spawn(async move {
        let serials = rush.await;
        over.store(true, Ordering::Relaxed);
        serials
    });
    let mut restarts = 0;
    while !done.load(Ordering::Relaxed) || restarts < 2 {
        let old = workers.remove(0);
        assert_eq!(stopped(old).await.code(), Some(0), "a drained worker ends well");
        workers.push(worker(&system, &[]).await);
        restarts += 1;
    }
    let mut serials = rush.await.expect("no panic").expect("no panic");
    serials.sort_unstable();
    assert_eq!(serials, (1..=u64::from(TOTAL)).collect::<Vec<_>>());
    assert_eq!(tally.repeated.load(Ordering::Relaxed), 0, "nobody was turned away");
    all_are_accounted_for(&system, &coupon, TOTAL).await;
    for worker in workers {
        assert_eq!(stopped(worker).await.code(), Some(0));
    }
    // No consumer is left with an entry: workers that stopped have settled theirs, and handed none over.
    assert_eq!(system.queue().await, (0, 0));
}

#[tokio::test]
async fn a_worker_that_cannot_finish_hands_over_within_the_bound_and_a_second_signal_ends_it_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut mongodb =
        MongoServer::start(MongoOptions::new(folder.path().join("mongodb"))).await.expect("it starts");
    let system = System::builder().mongodb(mongodb.url()).start().await;
    let coupon = system.coupon("c", 4, 1).await;
    let (patient, hurried) = (worker(&system, &[]).await, worker(&system, &[]).await);
    eventually("both live", async || {
        let beats = coupon_system::queue::registry::beats(system.partition()).await.expect("the beats");
        (beats.len() == 2).then_some(())
    })
    .await;
    mongodb.pause().await.expect("it is paused");
    // The requests come one after another, so that each worker has one that it cannot decide.
    for number in 0..4 {
        system.accepted(&format!("u{number}"), &coupon).await;
        eventually("it is delivered", async || (system.queue().await.1 == number + 1).then_some(())).await;
    }

    send(&hurried, Signal::TERM);
    let mut hurried = hurried;
    let at_once = tokio::time::timeout(Duration::from_secs(5), async {
        loop {
            send(&hurried, Signal::TERM);
            if let Ok(ended) = tokio::time::timeout(POLL_EVERY, hurried.wait()).await {
                return ended.expect("it ends");
            }
        }
    });
    assert_eq!(at_once.await.expect("it ends at once").code(), Some(1));

    let ended =
        tokio::time::timeout(coupon_system::worker::DRAIN_MAX + Duration::from_secs(10), stopped(patient));
    assert_eq!(ended.await.expect("within the bound").code(), Some(0));
    mongodb.resume().expect("it goes on");
    system.worker();
    all_are_accounted_for(&system, &coupon, 4).await;
}
