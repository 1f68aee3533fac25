//! Recoverers that die at each of their steps, and that sleep at each and wake when another has opened.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use coupon_system::ids::PartitionId;
use coupon_system::recovery::{
    CertifyOutcome, Lease, ProgressCallback, RecoveryMode, RecoveryOutcome, RecoveryStep, RecoverySupervisor,
    ignore_progress, is_certified,
};
use coupon_system::redis::{Partition, RedisNodes};
use mongodb::bson::{DateTime, Document, doc};
use redis::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::busy::BusyQueue;
use super::rebuild;
use crate::helpers::{System, eventually};

/// A state of Redis, and what a recoverer does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecoveryEnd {
    /// As after a restart: the recoverer verifies the data and certifies it.
    Intact,
    /// The data is intact, and an operator rebuilds it all the same.
    Certified,
    /// The data contradicts the ledger: the recoverer verifies it, then rebuilds.
    Damaged,
    /// The certificate is gone: the recoverer rebuilds from what is left.
    WithoutCertificate,
}

/// Every step of each kind of recovery, in order.
const STEPS: [(RecoveryEnd, &[&str]); 4] = [
    (RecoveryEnd::Intact, &["Closed", "Read", "Compared", "Opened"]),
    (RecoveryEnd::Certified, &["Closed", "Read", "Sorted", "Loading", "Queueing", "Built", "Opened"]),
    (RecoveryEnd::Damaged, &["Damaged", "Sorted", "Loading", "Queueing", "Built", "Opened"]),
    (
        RecoveryEnd::WithoutCertificate,
        &["Closed", "Read", "Sorted", "Loading", "Queueing", "Built", "Opened"],
    ),
];

fn name(step: &RecoveryStep) -> &'static str {
    match step {
        RecoveryStep::Closed => "Closed",
        RecoveryStep::Read { .. } => "Read",
        RecoveryStep::Compared { .. } => "Compared",
        RecoveryStep::Damaged { .. } => "Damaged",
        RecoveryStep::Sorted { .. } => "Sorted",
        RecoveryStep::Loading { .. } => "Loading",
        RecoveryStep::Queueing { .. } => "Queueing",
        RecoveryStep::Built => "Built",
        RecoveryStep::Opened => "Opened",
    }
}

const FIRST: &str = "the first recoverer";

/// A supervisor that looks like another process to Redis and MongoDB.
fn keeper(system: &System, holder: &str) -> RecoverySupervisor {
    let partition = Partition::new(PartitionId::ONE, &RedisNodes::open(&system.redis.url()).expect("a URL"));
    keeper_on(system, Arc::new(partition), holder)
}

fn keeper_on(system: &System, partition: Arc<Partition>, holder: &str) -> RecoverySupervisor {
    let backends = &system.backends;
    RecoverySupervisor::new(partition, backends.database.clone(), backends.durability, holder.into())
}

/// Brings Redis into that state, and holds the lease for the first recoverer.
async fn find(system: &System, busy: &BusyQueue, found: RecoveryEnd) {
    let database = &system.backends.database;
    let lease = Lease::take(database, PartitionId::ONE, FIRST, 0).await.expect("an answer");
    assert!(lease.is_some(), "nobody recovers");
    let keys = system.keys();
    let certificate = keys.certificate();
    if found == RecoveryEnd::Damaged {
        let _: u64 = system.command(&["HINCRBY", &keys.coupon(&busy.coupon), "settled", "1"]).await;
    }
    match found {
        RecoveryEnd::Certified => {}
        RecoveryEnd::Intact | RecoveryEnd::Damaged => {
            let _: u64 = system.command(&["HSET", &certificate, "run_id", "another"]).await;
        }
        RecoveryEnd::WithoutCertificate => system.command(&["DEL", &certificate]).await,
    }
}

/// Lets the first recoverer begin; at each step it does what `watch` does.
fn begin(
    system: &System,
    found: RecoveryEnd,
    watch: ProgressCallback,
) -> JoinHandle<Result<CertifyOutcome, coupon_system::Failure>> {
    let keeper = keeper(system, FIRST);
    let how = if found == RecoveryEnd::Certified { RecoveryMode::Rebuild } else { RecoveryMode::VerifyFirst };
    tokio::spawn(async move { keeper.recover(how, &watch, &CancellationToken::new()).await })
}

/// A recoverer that sleeps when it first reaches a step.
struct SleepingRecoverer {
    asleep: mpsc::Receiver<()>,
    wake: mpsc::Sender<()>,
}

impl SleepingRecoverer {
    fn at(step: &'static str) -> (ProgressCallback, Self) {
        let (tell, asleep) = mpsc::channel::<()>();
        let (wake, woken) = mpsc::channel::<()>();
        let (woken, once) = (Mutex::new(woken), AtomicBool::new(false));
        let watch: ProgressCallback = Arc::new(move |now| {
            if name(now) == step && !once.swap(true, Ordering::SeqCst) {
                tell.send(()).expect("the test waits");
                tokio::task::block_in_place(|| woken.lock().expect("one sleeper").recv()).expect("a word");
            }
        });
        (watch, SleepingRecoverer { asleep, wake })
    }

    /// Waits until it sleeps.
    fn sleeps(&self) {
        tokio::task::block_in_place(|| self.asleep.recv()).expect("it comes there");
    }

    fn wakes(&self) {
        self.wake.send(()).expect("it sleeps");
    }
}

/// Ends the lease, as if its time had passed.
async fn the_lease_runs_out(system: &System) {
    let leases = system.backends.database.collection::<Document>("recovery");
    let past = doc! {"$set": {"until": DateTime::from_millis(0)}};
    leases.update_one(doc! {"holder": FIRST}, past).await.expect("it is written");
}

/// The next recoverer, or the API's own supervisor, finishes what the first one began.
async fn another_finishes(system: &System) {
    let heir = keeper(system, "the heir");
    eventually("another recoverer has finished", async || {
        let _ = heir.ensure().await;
        matches!(is_certified(system.partition()).await, Ok(true)).then_some(())
    })
    .await;
}

async fn keys(system: &System) -> Vec<String> {
    let mut keys: Vec<String> = system.command(&["KEYS", "coupon:*"]).await;
    keys.sort_unstable();
    keys
}

/// Waits until only keys of the open epoch exist.
async fn nothing_else_is_left(system: &System, when: &str) {
    let open = system.keys();
    eventually(&format!("only keys of the open epoch are left, {when}"), async || {
        let all = keys(system).await;
        all.iter().all(|key| key.starts_with(open.prefix()) || *key == open.certificate()).then_some(())
    })
    .await;
}

/// The certificate and everything in the open epoch, byte by byte.
async fn everything_open(system: &System) -> Vec<(String, Value)> {
    let open = system.keys();
    let mut all = Vec::new();
    for key in keys(system).await {
        if key.starts_with(open.prefix()) || key == open.certificate() {
            let dump = system.command(&["DUMP", &key]).await;
            all.push((key, dump));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_step_a_recoverer_dies_at_another_finishes_and_the_accounts_hold() {
    let system = System::start().await;
    for (found, steps) in STEPS {
        for step in steps {
            let when = format!("{found:?}, died at {step}");
            let busy = BusyQueue::make(&system, &format!("{found:?}-{step}")).await;
            let before = system.keys().epoch();
            find(&system, &busy, found).await;
            let doomed: ProgressCallback = Arc::new(move |now| {
                if name(now) == *step {
                    // Ends the task at once, without an error.
                    std::panic::resume_unwind(Box::new("killed"));
                }
            });
            let died = begin(&system, found, doomed).await;
            assert!(died.is_err_and(|error| error.is_panic()), "{when}: it came there");
            the_lease_runs_out(&system).await;
            another_finishes(&system).await;
            if found == RecoveryEnd::Intact {
                assert_eq!(system.keys().epoch(), before, "{when}: nothing was lost");
            }
            if *step == "Opened" {
                // Only the deletion of old keys was left, which the next recovery does.
                rebuild(&system).await;
            }
            nothing_else_is_left(&system, &when).await;
            busy.ends_well(&system, &when).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_step_a_recoverer_sleeps_at_it_changes_nothing_after_another_has_opened() {
    let system = System::start().await;
    for (found, steps) in STEPS {
        for step in steps {
            let when = format!("{found:?}, slept at {step}");
            let busy = BusyQueue::make(&system, &format!("{found:?}-{step}")).await;
            find(&system, &busy, found).await;
            let (watch, sleeper) = SleepingRecoverer::at(step);
            let late = begin(&system, found, watch);
            sleeper.sleeps();
            the_lease_runs_out(&system).await;
            another_finishes(&system).await;
            let open = everything_open(&system).await;

            sleeper.wakes();
            let late = late.await.expect("no panic");
            let opened_before = *step == "Opened";
            assert_eq!(
                opened_before,
                matches!(
                    late,
                    Ok(CertifyOutcome::Recovered(
                        RecoveryOutcome::Verified { .. } | RecoveryOutcome::Rebuilt { .. }
                    ))
                ),
                "{when}: {late:?}"
            );
            assert!(matches!(is_certified(system.partition()).await, Ok(true)), "{when}");
            assert_eq!(everything_open(&system).await, open, "{when}");
            // The late recoverer has written into keys of its own, which the next recovery deletes.
            rebuild(&system).await;
            nothing_else_is_left(&system, &when).await;
            busy.ends_well(&system, &when).await;
        }
    }
}

#[tokio::test]
async fn while_somebody_holds_the_lease_nobody_else_recovers() {
    let system = System::start().await;
    let busy = BusyQueue::make(&system, "c").await;
    find(&system, &busy, RecoveryEnd::Intact).await;
    let kept = keeper(&system, "another")
        .recover(RecoveryMode::VerifyFirst, &ignore_progress(), &CancellationToken::new())
        .await
        .expect("an answer");
    assert_eq!(kept, CertifyOutcome::ByAnother);
    let kept =
        begin(&system, RecoveryEnd::Intact, ignore_progress()).await.expect("no panic").expect("it recovers");
    assert!(matches!(kept, CertifyOutcome::Recovered(RecoveryOutcome::Verified { .. })), "{kept:?}");
    busy.ends_well(&system, "in turn").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_redis_that_restarts_twice_while_it_is_verified_is_verified_in_the_end() {
    let mut system = System::start().await;
    let busy = BusyQueue::make(&system, "c").await;
    let before = system.keys().epoch();
    for step in ["Read", "Compared"] {
        find(&system, &busy, RecoveryEnd::Intact).await;
        let (watch, sleeper) = SleepingRecoverer::at(step);
        let watch: ProgressCallback = Arc::new(move |now| {
            assert_ne!(name(now), "Damaged", "it was not: it is to be looked at again, not rebuilt");
            watch(now);
        });
        // It shares its connection with others, which notice first that the connection is broken.
        let keeper = keeper_on(&system, Arc::clone(system.backends.partitions.first()), FIRST);
        let late = tokio::spawn(async move {
            keeper.recover(RecoveryMode::VerifyFirst, &watch, &CancellationToken::new()).await
        });
        sleeper.sleeps();
        for _ in 0..2 {
            system.redis.kill().await.expect("it is killed");
            system.redis.restart().await.expect("it is back");
        }
        eventually("the connection is whole again", async || {
            is_certified(system.partition()).await.is_ok().then_some(())
        })
        .await;
        sleeper.wakes();
        let late = late.await.expect("no panic");
        assert!(late.is_err(), "what it looked at is another process's: {late:?}");
        another_finishes(&system).await;
        assert_eq!(system.keys().epoch(), before, "nothing was lost");
        nothing_else_is_left(&system, step).await;
    }
    busy.ends_well(&system, "restarted").await;
}
