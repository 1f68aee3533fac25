//! A rush on a cluster that meets a change of its nodes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use std::time::Duration;

use coupon_system::dev::servers::RedisCluster;
use coupon_system::redis::keys::certificate;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::helpers::{
    Client, NotFound, RequestTally, System, accounts_hold, adopted, eventually, issued, recovered, rush_from,
};

/// A sale, for which more users come than there are units.
#[derive(Clone, Copy)]
pub struct Sale {
    pub total: u32,
    pub users: usize,
    /// The pause between two users until the change is over; then all others come at once, as all do if it is zero.
    pub pause: Duration,
}

/// Lets the users come. Returns the serials that were issued to them.
async fn come(
    client: Client,
    users: Vec<String>,
    pause: Duration,
    changed: CancellationToken,
    tally: Arc<RequestTally>,
    not_found: NotFound,
) -> Vec<u64> {
    let (mut users, mut rushes) = (users.into_iter(), Vec::new());
    while !pause.is_zero() && !changed.is_cancelled() {
        let Some(user) = users.next() else { break };
        rushes.push(rush_from(&client, vec![user], &tally, not_found));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = changed.cancelled() => {}
        }
    }
    rushes.push(rush_from(&client, users.collect(), &tally, not_found));
    join_all(rushes).await.into_iter().flat_map(|told| told.expect("no panic")).collect()
}

/// Lets a rush meet what has its partition served by another node. Each user gets a last word, every unit goes to one
/// user, and the accounts agree, on another server than before. Returns how often the answer was 503.
pub async fn rush_meets(
    cluster: RedisCluster,
    sale: Sale,
    not_found: NotFound,
    change: impl AsyncFnOnce(&mut System),
) -> u64 {
    let mut system = System::builder().cluster(cluster).start().await;
    let coupon = system.coupon("c", sale.total, 1).await;
    let users = system.users("u", sale.users).await;
    let key = certificate(system.partition().id());
    let before: String = system.command(&["HGET", &key, "run_id"]).await;
    let tally = Arc::<RequestTally>::default();
    let changed = CancellationToken::new();
    let coming =
        come(system.client.clone(), users, sale.pause, changed.clone(), Arc::clone(&tally), not_found);
    let coming = tokio::spawn(coming);
    let worker = system.worker();
    issued(&system, &coupon, sale.total / 10).await;
    change(&mut system).await;
    changed.cancel();
    eventually("another server is certified", async || {
        recovered(&system).await;
        let now: Option<String> = redis::cmd("HGET")
            .arg(&[&key, "run_id"])
            .query_async(&mut system.partition().connection())
            .await
            .ok()?;
        now.filter(|now| *now != before)
    })
    .await;
    let told = coming.await.expect("no panic");
    eventually("nothing is in flight", async || (system.queue().await == (0, 0)).then_some(())).await;
    worker.cancel();
    // A worker may have decided an entry after a rebuild had read the ledger.
    adopted(&system, &coupon).await;
    accounts_hold(&system, &coupon).await;
    assert_eq!(
        system.issued_serials(&coupon).await,
        (1..=sale.total).collect::<Vec<_>>(),
        "every unit was issued"
    );
    let count = |figure: &std::sync::atomic::AtomicU64| figure.load(Ordering::Relaxed);
    let answered = told.len() as u64 + count(&tally.rejected) + count(&tally.sold_out);
    assert_eq!(answered, sale.users as u64, "each user has a last word");
    eprintln!(
        "{} accepted, {} lost, {} times 503",
        count(&tally.accepted),
        count(&tally.lost),
        count(&tally.repeated)
    );
    count(&tally.repeated)
}
