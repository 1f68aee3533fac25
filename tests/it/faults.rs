//! A rush while things break: processes killed, stopped, restarted, MongoDB away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use coupon_system::coupon::CouponId;
use coupon_system::dev::servers::{MongoOptions, MongoServer};
use coupon_system::queue::dead;
use futures::future::join_all;
use rustix::process::Signal;
use tokio::process::Child;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::helpers::{Client, System, WORKER, eventually, program, send, serving, stopped};

/// Requests on their way at once.
const AT_ONCE: usize = 256;
/// A poller asks again after this; the service would allow it sooner.
const POLL_EVERY: Duration = Duration::from_millis(200);

async fn worker(system: &System) -> Child {
    let mut worker = program(WORKER, system);
    worker.args(["--metrics-listen", "127.0.0.1:0"]);
    serving(worker).await.0
}

/// What became of a rush.
#[derive(Default)]
struct Tally {
    accepted: AtomicU64,
    sold_out: AtomicU64,
    /// Requests that had to be repeated, because the answer was 503.
    repeated: AtomicU64,
}

/// Lets every user request the coupon, and a poller of its own follow each accepted request to its end.
fn rush(system: &System, users: Vec<String>, tally: &Arc<Tally>) -> JoinHandle<Vec<u64>> {
    let gate = Arc::new(Semaphore::new(AT_ONCE));
    let tasks: Vec<_> = users
        .into_iter()
        .map(|user| {
            let (client, gate, tally) = (system.client.clone(), Arc::clone(&gate), Arc::clone(tally));
            tokio::spawn(async move {
                let id = {
                    let _turn = gate.acquire().await.expect("it is open");
                    request(&client, &user, &tally).await?
                };
                Some(follow(&client, &id).await)
            })
        })
        .collect();
    tokio::spawn(async move {
        let ended = join_all(tasks).await;
        ended.into_iter().filter_map(|ended| ended.expect("no panic")).collect()
    })
}

async fn request(client: &Client, user: &str, tally: &Tally) -> Option<String> {
    loop {
        let answer = client.issue(user, "c", None).await;
        match (answer.status, answer.code()) {
            (202, _) => {
                tally.accepted.fetch_add(1, Ordering::Relaxed);
                return Some(answer.id());
            }
            (409, "sold-out") => {
                tally.sold_out.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            (503, _) => {
                tally.repeated.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(POLL_EVERY).await;
            }
            _ => panic!("{user}: {answer:?}"),
        }
    }
}

/// Polls an accepted request until it is issued, and returns its serial. It is never 404.
async fn follow(client: &Client, id: &str) -> u64 {
    loop {
        let answer = client.get(&format!("/issuances/{id}")).await;
        match (answer.status, answer.state()) {
            (200, "issued") => return answer.body["serial"].as_u64().expect("a serial"),
            (200, "queued") | (503, _) => tokio::time::sleep(POLL_EVERY).await,
            _ => panic!("{id}: {answer:?}"),
        }
    }
}

async fn issued(system: &System, coupon: &CouponId, count: u32) {
    eventually("so many are issued", async || (system.stock(coupon).await.issued >= count).then_some(()))
        .await;
}

async fn is_accounted_for(system: &System, coupon: &CouponId, total: u32) {
    let stock = system.settled(coupon).await;
    assert_eq!((stock.remaining, stock.reserved, stock.issued), (0, 0, total));
    assert_eq!(system.issued_serials(coupon).await, (1..=total).collect::<Vec<_>>());
    assert_eq!(system.queue().await, (0, 0));
    let (letters, _) = dead::scan(system.partition(), 0, 10).await.expect("a look");
    assert_eq!(letters, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_rush_for_five_thousand_while_one_worker_is_killed_and_one_sleeps() {
    const TOTAL: u32 = 5_000;
    let system = System::start().await;
    let coupon = system.coupon("c", TOTAL, 1).await;
    let users = system.users("u", 20_000).await;
    let (mut doomed, sleeper, steady) = (worker(&system).await, worker(&system).await, worker(&system).await);
    let tally = Arc::new(Tally::default());
    let rush = rush(&system, users, &tally);

    issued(&system, &coupon, TOTAL / 4).await;
    send(&sleeper, Signal::STOP);
    issued(&system, &coupon, TOTAL / 2).await;
    doomed.kill().await.expect("it is killed");

    let mut serials = rush.await.expect("no panic");
    send(&sleeper, Signal::CONT);
    serials.sort_unstable();
    assert_eq!(serials, (1..=u64::from(TOTAL)).collect::<Vec<_>>());
    assert_eq!(tally.sold_out.load(Ordering::Relaxed), 15_000);
    is_accounted_for(&system, &coupon, TOTAL).await;
    for worker in [sleeper, steady] {
        assert_eq!(stopped(worker).await.code(), Some(0));
    }
    // Also after the sleeper has had its say.
    is_accounted_for(&system, &coupon, TOTAL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_away_for_twenty_seconds_in_mid_rush_rejects_nothing_and_uses_no_attempt() {
    const TOTAL: u32 = 2_000;
    const AWAY: Duration = Duration::from_secs(20);
    let folder = tempfile::tempdir().expect("a folder");
    let mut mongodb =
        MongoServer::start(MongoOptions::new(folder.path().join("mongodb"))).await.expect("it starts");
    let system = System::start_on(mongodb.url(), &[]).await;
    let coupon = system.coupon("c", TOTAL, 1).await;
    let users = system.users("u", 4_000).await;
    let workers = [worker(&system).await, worker(&system).await];
    let tally = Arc::new(Tally::default());
    let rush = rush(&system, users, &tally);

    issued(&system, &coupon, TOTAL / 4).await;
    mongodb.stop().await.expect("it stops");
    tokio::time::sleep(AWAY).await;
    mongodb.restart().await.expect("it is back");

    let mut serials = rush.await.expect("no panic");
    serials.sort_unstable();
    assert_eq!(serials, (1..=u64::from(TOTAL)).collect::<Vec<_>>(), "each accepted request was issued");
    is_accounted_for(&system, &coupon, TOTAL).await;
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
    let mut workers = vec![worker(&system).await, worker(&system).await];
    let tally = Arc::new(Tally::default());
    let done = Arc::new(AtomicBool::new(false));
    let rush = rush(&system, users, &tally);
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
        workers.push(worker(&system).await);
        restarts += 1;
    }
    let mut serials = rush.await.expect("no panic").expect("no panic");
    serials.sort_unstable();
    assert_eq!(serials, (1..=u64::from(TOTAL)).collect::<Vec<_>>());
    assert_eq!(tally.repeated.load(Ordering::Relaxed), 0, "nobody was turned away");
    is_accounted_for(&system, &coupon, TOTAL).await;
    for worker in workers {
        assert_eq!(stopped(worker).await.code(), Some(0));
    }
    // Nobody's consumer is left with an entry: what was drained was settled, not handed over.
    assert_eq!(system.queue().await, (0, 0));
}

#[tokio::test]
async fn a_worker_that_cannot_finish_hands_over_within_the_bound_and_a_second_signal_ends_it_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut mongodb =
        MongoServer::start(MongoOptions::new(folder.path().join("mongodb"))).await.expect("it starts");
    let system = System::start_on(mongodb.url(), &[]).await;
    let coupon = system.coupon("c", 4, 1).await;
    let (patient, hurried) = (worker(&system).await, worker(&system).await);
    eventually("both live", async || {
        let beats = coupon_system::queue::registry::beats(system.partition()).await.expect("the beats");
        (beats.len() == 2).then_some(())
    })
    .await;
    mongodb.pause().await.expect("it is paused");
    // One after another, so that each worker has something that it cannot decide.
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
    is_accounted_for(&system, &coupon, 4).await;
}
