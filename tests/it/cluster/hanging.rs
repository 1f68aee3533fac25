//! A node that stands still, and who waits for others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coupon_system::coupon::stock;
use coupon_system::ids::{CouponId, SLOTS, slot_of};
use coupon_system::limits::{Admission, LimitScope, Limiter, Rate};
use coupon_system::queue::{ReadFrom, ReadOutcome, Reader};
use coupon_system::redis::Partition;
use coupon_system::worker::Decider;
use futures::future::join_all;

use crate::helpers::{System, cluster, eventually};

/// Whether a coupon lies on the first of three nodes.
async fn is_on_first(system: &System, coupon: &CouponId) -> bool {
    let partition = system.partition_of(coupon).await.id();
    usize::from(slot_of(partition.tag())) < usize::from(SLOTS) / 3
}

/// By then a poll that began after the node stood still waits for it.
const POLLED_BY: Duration = Duration::from_millis(1_200);
/// Longer than a poll that waits for no other node takes; a call to a node that stands still lasts five seconds.
const SOON: Duration = Duration::from_secs(3);
const CLIENTS: usize = 48;

/// A coupon on the first node, and one elsewhere.
async fn coupons(system: &System) -> [CouponId; 2] {
    let (mut there, mut elsewhere) = (None, None);
    for number in 0..12 {
        let coupon = system.coupon(&format!("c{number}"), 5, 1).await;
        let place = if is_on_first(system, &coupon).await { &mut there } else { &mut elsewhere };
        place.get_or_insert(coupon);
    }
    [there.expect("one of many"), elsewhere.expect("one of many")]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_the_feed_does_not_bring_is_found_by_a_poll_that_waits_for_no_other_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut system = System::builder().cluster(cluster(&folder, 0).await).partitions(6).start().await;
    let [there, elsewhere] = coupons(&system).await;
    let users = system.users("u", 2).await;
    let stuck = system.client.issue(&users[0], there.as_str(), None).await.id();
    let id = system.client.issue(&users[1], elsewhere.as_str(), None).await.id();
    let wait = |id: &str| {
        let (client, path) = (system.client.clone(), format!("/issuances/{id}?wait=20"));
        tokio::spawn(async move { (client.get(&path).await, Instant::now()) })
    };
    let (waits, _stuck_waits) = (wait(&id), wait(&stuck));
    eventually("both wait", async || (system.app.waiting() == 2).then_some(())).await;
    // A process that announces nothing that this one hears: it knows no ledger.
    let silent = Arc::new(Partition::new(system.partition_of(&elsewhere).await.id(), &system.backends.nodes));
    stock::read(&silent, &[]).await.expect("it learns of the epoch");
    let mut reader = Reader::new(Arc::clone(silent.client()), "silent".into());
    let ReadOutcome::Entries(delivered) =
        reader.read(&silent.keys(), ReadFrom::New, 10).await.expect("a read")
    else {
        panic!("there is a queue")
    };

    system.other_nodes[0].pause().await.expect("it stands still");
    tokio::time::sleep(POLLED_BY).await;
    let decider =
        Decider::new(Arc::clone(&silent), system.backends.ledger.clone(), system.backends.coupons.clone());
    let decided = Instant::now();
    decider.process(&silent.keys(), &delivered.entries).await.expect("it is decided");
    let (answer, at) = waits.await.expect("no panic");
    assert_eq!(answer.state(), "issued", "{answer:?}");
    assert!(at.duration_since(decided) < SOON, "{:?}", at.duration_since(decided));
    system.other_nodes[0].resume().expect("it goes on");
    system.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_limited_while_the_node_of_another_clients_limit_stands_still() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut system = System::builder().cluster(cluster(&folder, 0).await).start().await;
    system.other_nodes[0].pause().await.expect("it stands still");
    let rate = Rate { per_second: 0.01, burst: 4 };
    let limiter = Limiter::start(LimitScope::User, rate, system.partition());
    let clients: Vec<String> = (0..CLIENTS).map(|number| format!("client{number}")).collect();
    let mut limited = vec![false; CLIENTS];
    // All ask at once, so that what they ask could share calls.
    for _ in 0..3 * rate.burst {
        let asked = join_all(clients.iter().map(|client| limiter.admit(client))).await;
        for (is_limited, admission) in limited.iter_mut().zip(asked) {
            *is_limited |= matches!(admission, Admission::Limited { .. });
        }
    }
    // Two of the three nodes tell.
    let limited = limited.into_iter().filter(|limited| *limited).count();
    assert!((CLIENTS / 2..CLIENTS).contains(&limited), "{limited} of {CLIENTS}");
    system.other_nodes[0].resume().expect("it goes on");
}
