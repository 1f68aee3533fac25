//! The same request, repeated in every state of its issuance.

use coupon_system::ids::IssuanceId;
use serde_json::json;

use crate::helpers::{System, at, discarded};

/// Rejects an issuance in flight as an operator's discard does, and lets a worker settle it.
async fn reject(system: &System, id: IssuanceId) {
    let entries = system.take_entries().await;
    let entry = entries.iter().find(|entry| entry.id == id).expect("it is in the queue");
    system.write(&[discarded(entry)]).await;
    system.decider().process(&system.keys(), &entries).await.expect("it is settled");
}

#[tokio::test]
async fn without_a_key_a_repeat_is_a_replay_while_queued_and_already_issued_after() {
    let system = System::start().await;
    system.users("u", 2).await;
    let coupon = system.coupon("c", 1, 1).await;
    let first = system.client.issue("u0", "c", None).await;
    assert_eq!((first.status, first.is_replay()), (202, false));
    // The issuance is queued; the coupon is sold out for all other users.
    for _ in 0..2 {
        let again = system.client.issue("u0", "c", None).await;
        assert_eq!((again.status, again.is_replay(), again.id()), (202, true, first.id()));
    }
    assert_eq!(system.client.issue("u1", "c", None).await.code(), "sold-out");
    // The issuance is issued.
    system.worker();
    system.client.decided(&first.id()).await;
    system.settled(&coupon).await;
    let late = system.client.issue("u0", "c", None).await;
    assert_eq!((late.status, late.code()), (409, "already-issued"));
    assert_eq!(late.body["userCoupons"], json!([format!("/user-coupons/u0/{}", first.id())]));
    assert_eq!(system.stock(&coupon).await.issued, 1);
}

#[tokio::test]
async fn with_a_key_a_repeat_has_the_same_id_for_ever() {
    let system = System::start().await;
    system.users("u", 1).await;
    let coupon = system.coupon("c", 1, 1).await;
    let first = system.client.issue("u0", "c", Some("k")).await;
    assert_eq!((first.status, first.is_replay()), (202, false));
    let queued = system.client.issue("u0", "c", Some("k")).await;
    assert_eq!((queued.status, queued.is_replay(), queued.id()), (202, true, first.id()));
    // Without its key, or with another, the user is at their limit.
    let bare = system.client.issue("u0", "c", None).await;
    assert_eq!((bare.status, bare.is_replay(), bare.id()), (202, true, first.id()));
    let other = system.client.issue("u0", "c", Some("k2")).await;
    assert_eq!((other.status, other.code()), (409, "already-issued"));
    assert_eq!(other.body["userCoupons"], json!([]));
    assert_eq!(other.body["issuances"], json!([format!("/issuances/{}", first.id())]));

    system.worker();
    system.client.decided(&first.id()).await;
    system.settled(&coupon).await;
    let issued = system.client.issue("u0", "c", Some("k")).await;
    assert_eq!((issued.status, issued.is_replay(), issued.id()), (200, true, first.id()));
    assert_eq!((issued.state(), issued.body["serial"].as_u64()), ("issued", Some(1)));
    let other = system.client.issue("u0", "c", Some("k2")).await;
    assert_eq!(other.body["userCoupons"], json!([format!("/user-coupons/u0/{}", first.id())]));
}

#[tokio::test]
async fn after_the_window_a_repeat_still_gets_its_id_and_a_newcomer_hears_that_it_ended() {
    let system = System::start().await;
    system.users("u", 2).await;
    let coupon = system.coupon("c", 2_000, 1).await;
    let bare = system.client.issue("u0", "c", None).await;
    let keyed = system.client.issue("u1", "c", Some("k")).await;
    assert_eq!((bare.status, keyed.status), (202, 202));
    let ends = system.client.request("PATCH", "/coupons/c").json(&json!({"endsAt": at(0).to_string()}));
    assert_eq!(system.client.send(ends).await.status, 200);
    // A new user each time: the API answers an accepted user with their issuance from then on.
    let mut newcomers = system.users("late", 1_000).await.into_iter();
    crate::helpers::eventually("the window closes", async || {
        let newcomer = newcomers.next().expect("the window closes before they run out");
        (system.client.issue(&newcomer, "c", None).await.code() == "ended").then_some(())
    })
    .await;
    let again = system.client.issue("u0", "c", None).await;
    assert_eq!((again.status, again.is_replay(), again.id()), (202, true, bare.id()));
    let again = system.client.issue("u1", "c", Some("k")).await;
    assert_eq!((again.status, again.is_replay(), again.id()), (202, true, keyed.id()));

    system.worker();
    system.client.decided(&keyed.id()).await;
    system.settled(&coupon).await;
    assert_eq!(system.client.issue("u0", "c", None).await.code(), "already-issued");
    assert_eq!(system.client.issue("u1", "c", Some("k")).await.status, 200);
}

#[tokio::test]
async fn a_rejected_key_stays_rejected_and_a_new_key_is_a_new_attempt() {
    let system = System::start().await;
    system.users("u", 1).await;
    let coupon = system.coupon("c", 1, 1).await;
    let first = system.client.issue("u0", "c", Some("k")).await;
    reject(&system, first.id().parse().expect("an id")).await;
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved, stock.issued), (1, 0, 0));

    let polled = system.client.get(&format!("/issuances/{}", first.id())).await;
    assert_eq!((polled.status, polled.state()), (200, "rejected"));
    assert_eq!(polled.body["problem"]["code"], "discarded");
    for _ in 0..2 {
        let again = system.client.issue("u0", "c", Some("k")).await;
        assert_eq!((again.status, again.code(), again.is_replay()), (409, "discarded", true));
        assert_eq!(again.body["issuance"], format!("/issuances/{}", first.id()));
    }
    assert_eq!(system.stock(&coupon).await.remaining, 1);

    system.worker();
    let anew = system.client.issue("u0", "c", Some("k2")).await;
    assert_eq!(anew.status, 202);
    assert_eq!(system.client.decided(&anew.id()).await.state(), "issued");
    assert_eq!(system.settled(&coupon).await.issued, 1);
}

#[tokio::test]
async fn without_a_key_a_request_after_a_rejection_is_a_new_attempt() {
    let system = System::start().await;
    system.users("u", 1).await;
    let coupon = system.coupon("c", 1, 1).await;
    let first = system.client.issue("u0", "c", None).await;
    reject(&system, first.id().parse().expect("an id")).await;
    let second = system.client.issue("u0", "c", None).await;
    assert_eq!((second.status, second.is_replay()), (202, false));
    assert_ne!(second.id(), first.id());
    system.worker();
    assert_eq!(system.client.decided(&second.id()).await.state(), "issued");
    assert_eq!(system.client.get(&format!("/issuances/{}", first.id())).await.state(), "rejected");
    let stock = system.settled(&coupon).await;
    assert_eq!((stock.remaining, stock.issued), (0, 1));
}

#[tokio::test]
async fn with_a_limit_of_three_a_repeat_is_a_replay_until_decided_and_then_the_next_unit() {
    let system = System::start().await;
    system.users("u", 1).await;
    let coupon = system.coupon("c", 10, 3).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let accepted = system.client.issue("u0", "c", None).await;
        assert_eq!((accepted.status, accepted.is_replay()), (202, false), "{accepted:?}");
        let again = system.client.issue("u0", "c", None).await;
        assert_eq!((again.is_replay(), again.id()), (true, accepted.id()));
        let entries = system.take_entries().await;
        system.decider().process(&system.keys(), &entries).await.expect("it is decided");
        ids.push(accepted.id());
    }
    let late = system.client.issue("u0", "c", None).await;
    assert_eq!((late.status, late.code()), (409, "already-issued"));
    let links: Vec<_> = ids.iter().map(|id| format!("/user-coupons/u0/{id}")).collect();
    assert_eq!(late.body["userCoupons"], json!(links));
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved, stock.issued), (7, 0, 3));
}

#[tokio::test]
async fn when_sold_out_a_holder_still_gets_their_own_answer() {
    let system = System::start().await;
    system.users("u", 2).await;
    let coupon = system.coupon("c", 1, 3).await;
    let first = system.client.issue("u0", "c", Some("k")).await;
    system.worker();
    system.client.decided(&first.id()).await;
    system.settled(&coupon).await;
    assert_eq!(system.client.issue("u0", "c", Some("k")).await.status, 200);
    assert_eq!(system.client.issue("u0", "c", None).await.code(), "sold-out");
    assert_eq!(system.client.issue("u1", "c", Some("k")).await.code(), "sold-out");
    assert_eq!(system.client.issue("u1", "c", Some("k")).await.code(), "sold-out");
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved, stock.issued), (0, 0, 1));
}
