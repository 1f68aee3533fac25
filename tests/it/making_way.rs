//! Who comes first: callers who wait at the door before what is safely queued, and both before work in the background.

use std::time::{Duration, Instant};

use coupon_system::config::Concurrency;
use coupon_system::ids::PartitionId;
use coupon_system::redis::keys::pressure;
use futures::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use crate::helpers::{System, accounts_hold, eventually};

const QUEUED: u32 = 3_000;

async fn queue(system: &System, name: &str) -> coupon_system::ids::CouponId {
    let coupon = system.coupon(name, QUEUED, 1).await;
    system.accept_all(&coupon, (0..QUEUED).map(|number| format!("{name}{number}"))).await;
    coupon
}

#[tokio::test]
async fn a_worker_rests_while_callers_wait_and_drains_all_the_same() {
    let system = System::start().await;
    let mut took = Vec::new();
    for (name, callers_wait) in [("pressed", true), ("calm", false)] {
        let coupon = queue(&system, name).await;
        let key = pressure(PartitionId::ONE);
        if callers_wait {
            system.command::<()>(&["SET", &key, "1", "PX", "600000"]).await;
        } else {
            system.command::<()>(&["DEL", &key]).await;
        }
        let began = Instant::now();
        let worker = system.worker_with(Concurrency { batches: 4, batch_size: 100 });
        assert_eq!(system.settled(&coupon).await.issued, QUEUED);
        took.push(began.elapsed());
        worker.cancel();
        accounts_hold(&system, &coupon).await;
    }
    // It works a fifth of the time, and one batch at a time.
    assert!(took[0] > took[1] * 2, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_says_that_callers_wait_while_a_crowd_does_unless_the_queue_is_full() {
    let system = System::builder().flags(&["--backlog-max", "2000"]).start().await;
    let coupon = system.coupon("c", 100_000, 1).await;
    let users = system.users("u", 4_000).await;
    let key = pressure(PartitionId::ONE);
    let says_so = async || system.command::<u8>(&["EXISTS", &key]).await == 1;
    assert!(!says_so().await, "nobody asks");
    let (crowd, rest) = users.split_at(1_500);
    let ask = async |users: &[String]| {
        let asking = users.iter().map(async |user| system.client.issue(user, "c", None).await.status);
        stream::iter(asking).buffer_unordered(100).collect::<Vec<_>>().await
    };
    let (answers, seen) = tokio::join!(ask(crowd), async {
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            if says_so().await {
                return true;
            }
        }
        false
    });
    assert!(answers.iter().all(|status| *status == 202), "{answers:?}");
    assert!(seen, "they waited for each other");
    eventually("it is calm again", async || (!says_so().await).then_some(())).await;

    // From here on the queue is full after five hundred more.
    let answers = ask(rest).await;
    assert!(answers.iter().filter(|status| **status == 503).count() >= 1_500);
    assert!(answers[600..].iter().all(|status| *status == 503));
    let mut seen = false;
    for users in rest.chunks(100) {
        ask(users).await;
        seen |= says_so().await;
    }
    assert!(!seen, "workers must make room");
    system.worker_with(Concurrency { batches: 4, batch_size: 500 });
    assert_eq!(system.settled(&coupon).await.issued, 2_000);
}

#[tokio::test]
async fn however_much_is_in_flight_an_audit_takes_a_small_share_of_the_time() {
    const TIME: Duration = Duration::from_secs(3);
    let system = System::start().await;
    let coupon = queue(&system, "c").await;
    let stop = CancellationToken::new();
    let scans = async || system.commands_run().await.get("hscan").copied().unwrap_or(0);
    let before = scans().await;
    let auditing = system.keep_auditing(Duration::from_millis(1), &stop);
    tokio::time::sleep(TIME).await;
    stop.cancel();
    auditing.await.expect("it ends");
    let scanned = scans().await - before;
    assert!(scanned > 0, "it does read what is in flight");
    // Each call of the audit is charged a tenth of a millisecond at least, and 2 % of three seconds are 60 ms, after
    // 200 ms at one go. Without a bound it makes some thousand calls.
    assert!(scanned < 400, "{scanned} pages in {TIME:?}");
    system.leaves_in_flight();
    drop(coupon);
}
