//! A process dies on its way with units, after each step: they are neither lost nor there twice.

use std::time::Duration;

use coupon_system::issuance::ledger::Inserted;
use coupon_system::issuance::{Decision, Outcome, Reason};
use serde_json::Value;

use super::{Mover, STEPS, Step, create, requested, sells_out, shares_of, start, users_of};
use crate::helpers::{WORKER, eventually, program, serving};

const TOTAL: u32 = 12;
/// How long a worker lives that has something to move.
const LIVES_MS: [u64; 12] = [50, 60, 70, 80, 90, 100, 110, 120, 130, 150, 180, 250];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mover_dies_after_any_step_and_a_worker_brings_the_units_to_their_share() {
    for step in STEPS {
        let system = start().await;
        let coupon = create(&system, "hot", TOTAL, 3, 1).await;
        let shares = shares_of(&system, &coupon).await;
        let mut mover = Mover::lends(&system, &coupon, shares[0], shares[1]).await;
        assert_eq!(mover.goes_on(Step::Lent, step).await, 2, "half of four");
        let _worker = system.worker();
        eventually("the worker has done the rest", async || {
            let stock = system.stock(&coupon).await;
            (stock.remaining == TOTAL && stock.reserved == 0).then_some(())
        })
        .await;
        system.audited_clean().await;
        sells_out(&system, &coupon, shares[2], TOTAL, TOTAL as usize).await;
        println!("after {step:?}: every unit was sold");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_are_killed_while_they_move_units_and_each_unit_is_sold_once() {
    let (system, total) = (start().await, 96);
    let coupon = create(&system, "hot", total, 3, 1).await;
    let shares = shares_of(&system, &coupon).await;
    for (round, life) in LIVES_MS.into_iter().enumerate() {
        let mut worker = program(WORKER, &system);
        worker.args(["--metrics-listen", "127.0.0.1:0"]);
        let (mut worker, _) = serving(worker).await;
        // Each dies with its units lent, and the worker goes on with them.
        Mover::lends(&system, &coupon, shares[round % 3], shares[(round + 1) % 3]).await;
        tokio::time::sleep(Duration::from_millis(life)).await;
        worker.kill().await.expect("it is killed");
        let stock = system.stock(&coupon).await;
        println!("after {life} ms {} units are lent, {} free", stock.reserved, stock.remaining);
    }
    let _worker = system.worker();
    sells_out(&system, &coupon, shares[1], total, total as usize).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_committed_and_never_credited_is_brought_by_whoever_misses_it() {
    let system = start().await;
    let coupon = create(&system, "hot", TOTAL, 3, 1).await;
    let shares = shares_of(&system, &coupon).await;
    let mut mover = Mover::lends(&system, &coupon, shares[0], shares[1]).await;
    mover.goes_on(Step::Lent, Step::Committed).await;
    // Settled before it is credited: nothing in Redis says that two units are on their way.
    mover.goes_on(Step::Credited, Step::Settled).await;
    assert_eq!(system.stock(&coupon).await.remaining, TOTAL - 2);
    let _worker = system.worker();
    sells_out(&system, &coupon, shares[2], TOTAL, TOTAL as usize).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_units_are_lent_nobody_is_told_sold_out() {
    let system = start().await;
    system.leaves_in_flight();
    let coupon = create(&system, "hot", 2, 2, 1).await;
    let shares = shares_of(&system, &coupon).await;
    let (first, second) =
        (users_of(&system, &coupon, shares[0], 2).await, users_of(&system, &coupon, shares[1], 2).await);
    assert!(requested(&system, &second[0], &coupon).await);
    let mover = Mover::lends(&system, &coupon, shares[0], shares[1]).await;
    // Every share is empty, and the unit that is lent may come to either.
    for user in [&first[0], &second[1]] {
        let answer = system.client.issue(user, coupon.as_str(), None).await;
        assert_eq!((answer.status, answer.code()), (503, "overloaded"), "{answer:?}");
    }
    drop(mover);
    let _worker = system.worker();
    assert!(requested(&system, &first[0], &coupon).await);
    assert!(!requested(&system, &second[1], &coupon).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_goes_around_all_shares_and_is_issued_once() {
    let system = start().await;
    let coupon = create(&system, "hot", 3, 3, 1).await;
    let shares = shares_of(&system, &coupon).await;
    let first = users_of(&system, &coupon, shares[1], 1).await;
    let second = users_of(&system, &coupon, shares[2], 1).await;
    assert!(requested(&system, &first[0], &coupon).await && requested(&system, &second[0], &coupon).await);
    for round in 0..6 {
        let (from, to) = (shares[round % 3], shares[(round + 1) % 3]);
        let mut mover = Mover::lends(&system, &coupon, from, to).await;
        assert_eq!(mover.goes_on(Step::Lent, Step::Settled).await, 1);
        // It cannot be moved twice: the ledger has it.
        let again = system.backends.ledger.insert(&mover.decisions()).await.expect("an answer");
        assert_eq!(again, [Inserted::Conflict]);
        mover.goes_on(Step::Committed, Step::Credited).await;
        assert_eq!(system.stock(&coupon).await.remaining, 1, "round {round}");
    }
    let _worker = system.worker();
    sells_out(&system, &coupon, shares[1], 3, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_a_move_nor_its_rejection_is_told_as_an_outcome() {
    let system = start().await;
    let coupon = create(&system, "hot", TOTAL, 3, 1).await;
    let shares = shares_of(&system, &coupon).await;
    let told = async |query: &str| -> Vec<Value> {
        let answer =
            system.client.request("GET", &format!("/outcomes{query}")).send().await.expect("an answer");
        let text = answer.text().await.expect("lines");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let place = told("").await[0]["after"].as_str().expect("a place").to_owned();
    let mut moved = Mover::lends(&system, &coupon, shares[0], shares[1]).await;
    moved.goes_on(Step::Lent, Step::Settled).await;
    let mover = Mover::lends(&system, &coupon, shares[0], shares[2]).await;
    let rejected = mover.lent.iter().map(|lent| {
        let Outcome::Moved { unit, .. } = lent.decision.outcome else { panic!("{lent:?}") };
        let outcome = Outcome::Rejected { reason: Reason::Discarded, unit: Some(unit), lost: false };
        Decision { outcome, ..lent.decision.clone() }
    });
    system.write(&rejected.collect::<Vec<_>>()).await;
    let _worker = system.worker();
    let user = users_of(&system, &coupon, shares[0], 1).await.remove(0);
    assert!(requested(&system, &user, &coupon).await);
    let lines = told(&format!("?after={place}&wait=30")).await;
    assert_eq!(lines[0]["userId"], user.as_str(), "{lines:?}");
    assert_eq!(system.settled(&coupon).await.remaining, TOTAL - 1);
    system.audited_clean().await;
}
