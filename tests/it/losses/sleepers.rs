//! Workers and API processes that sleep through a loss and a rebuild, and wake.

use coupon_system::issuance::settle::{Settled, settle};
use futures::future::join_all;
use rand::RngExt;
use rustix::process::Signal;

use super::rebuild;
use super::storm::{FIRST_WAVE, RequestStorm};
use crate::helpers::{
    API, Answer, Client, POLL_EVERY, System, accounts_hold, adopted, chance, issued, program, recovered,
    send, serving, stopped,
};

#[tokio::test]
async fn a_worker_that_decided_before_a_flush_and_settles_after_the_rebuild_is_counted_once() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    for user in 0..3 {
        system.accepted(&format!("u{user}"), &coupon).await;
    }
    let (old, entries) = (system.keys(), system.take_entries().await);
    let decided = system.decider().decide(&old, &entries).await.expect("decided").settlements;
    let _: () = system.command(&["FLUSHALL"]).await;
    recovered(&system).await;
    let late = settle(system.partition(), &old, &decided).await.expect("an answer");
    assert_eq!(late, [Settled::AnotherEpoch; 3]);
    let stock = accounts_hold(&system, &coupon).await;
    assert_eq!((stock.remaining, stock.issued), (2, 3));
}

#[tokio::test]
async fn a_worker_that_decides_what_redis_has_lost_takes_no_unit_from_anybody() {
    let system = System::start().await;
    let coupon = system.coupon("c", 4, 1).await;
    for user in ["u0", "u1"] {
        system.accepted(user, &coupon).await;
    }
    let (old, asleep) = (system.keys(), system.take_entries().await);
    let _: () = system.command(&["FLUSHALL"]).await;
    recovered(&system).await;
    // u0 tries again and is served before the sleeper wakes; u1 does not. Redis reserves both units again that the
    // sleeper has in hand.
    for user in ["u0", "u2", "u3"] {
        system.accepted(user, &coupon).await;
    }
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries[..1]).await.expect("u0 has its coupon");
    system.decider().process(&old, &asleep).await.expect("it decides, and settles nothing");
    system.decider().process(&system.keys(), &entries[1..]).await.expect("they are decided");

    assert_eq!(adopted(&system, &coupon).await, 1, "u1's");
    let stock = accounts_hold(&system, &coupon).await;
    assert_eq!((stock.remaining, stock.issued), (0, 4), "u0 once, u1, u2 and u3");
    for user in ["u0", "u1", "u2", "u3"] {
        let held = system.backends.ledger.held_by(&coupon, &user.parse().expect("an id")).await;
        assert_eq!(held.expect("a read").len(), 1, "{user}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_processes_that_sleep_through_a_flush_and_a_rebuild_and_wake_issue_nothing_twice() {
    let mut chance = chance();
    let mut storm = RequestStorm::start().await;
    storm.work().await;
    issued(&storm.system, &storm.coupon, chance.random_range(1..=FIRST_WAVE / 2)).await;
    for worker in &storm.workers {
        send(worker, Signal::STOP);
    }
    let _: () = storm.system.command(&["FLUSHALL"]).await;
    recovered(&storm.system).await;
    // Redis reserves the units again that the sleepers have in hand.
    storm.second_wave();
    storm.accepted(FIRST_WAVE + chance.random_range(1..=FIRST_WAVE / 4)).await;
    for worker in &storm.workers {
        send(worker, Signal::CONT);
    }
    storm.ends("slept through a flush").await;
}

/// Polls issuances at a sleeping process, and wakes it; polls again while the answer is 503. A 404 is an answer.
async fn polled_on_waking(
    process: &tokio::process::Child,
    client: &Client,
    ids: &[String],
) -> Vec<(u16, String)> {
    let polls: Vec<_> = ids
        .iter()
        .map(|id| {
            let (client, path) = (client.clone(), format!("/issuances/{id}"));
            tokio::spawn(async move {
                loop {
                    let answer: Answer = client.get(&path).await;
                    if answer.status != 503 {
                        return (answer.status, answer.state().to_owned());
                    }
                    tokio::time::sleep(POLL_EVERY).await;
                }
            })
        })
        .collect();
    send(process, Signal::CONT);
    join_all(polls).await.into_iter().map(|answer| answer.expect("no panic")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_process_that_slept_through_it_all_denies_nothing_that_was_accepted() {
    let system = System::start().await;
    system.users("u", 20).await;
    let coupon = system.coupon("c", 20, 1).await;
    let mut api = program(API, &system);
    api.args(["--listen", "127.0.0.1:0"]);
    let (api, address) = serving(api).await;
    let client = Client::new(address);
    let mut ids = Vec::new();
    for user in 0..12 {
        ids.push(client.issue(&format!("u{user}"), "c", None).await.id());
    }
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries[..4]).await.expect("settled");

    // While it sleeps, some are decided, some of them before the rebuild and some after it.
    send(&api, Signal::STOP);
    system.decider().decide(&system.keys(), &entries[4..6]).await.expect("decided");
    rebuild(&system).await;
    let entries = system.take_entries().await;
    assert_eq!(entries.len(), 6);
    system.decider().process(&system.keys(), &entries[..2]).await.expect("settled");
    let answers = polled_on_waking(&api, &client, &ids).await;
    for (number, (status, state)) in answers.iter().enumerate() {
        let right = if number < 8 { "issued" } else { "queued" };
        assert_eq!((*status, state.as_str()), (200, right), "number {number}");
    }

    // The same without the data: decided issuances stay decided, and the others are lost.
    send(&api, Signal::STOP);
    system.decider().decide(&system.keys(), &entries[2..4]).await.expect("decided");
    let _: () = system.command(&["FLUSHALL"]).await;
    recovered(&system).await;
    let answers = polled_on_waking(&api, &client, &ids).await;
    for (number, (status, state)) in answers.iter().enumerate() {
        let right = if number < 10 { (200, "issued") } else { (404, "") };
        assert_eq!((*status, state.as_str()), right, "number {number}");
    }
    let again = client.issue("u11", "c", None).await;
    assert_eq!(again.status, 202, "it may be asked for again, also here");
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries).await.expect("settled");
    assert_eq!(accounts_hold(&system, &coupon).await.issued, 11);
    assert_eq!(stopped(api).await.code(), Some(0));
}
