//! A worker decides an accepted request whose in-flight value is damaged, from its stream entry. If that is lost too,
//! the API never answers with 404: the request is a dead letter until an operator discards it.

use coupon_system::audit::FindingKind;
use coupon_system::ids::{CouponId, IssuanceId, PartitionId};
use coupon_system::issuance::Outcome;
use coupon_system::queue::{dead, figures};
use coupon_system::recovery::{CertifyOutcome, RecoveryMode, RecoveryOutcome, ignore_progress};
use coupon_system::redis::keys::damaged;
use tokio_util::sync::CancellationToken;

use crate::helpers::{Answer, System, decided, eventually, issued_to, native, recovered};

/// Values that no program can read. `None`: the field is gone.
const DAMAGE: [Option<&[u8]>; 6] = [
    Some(b"nonsense"),
    Some(b""),
    Some(b"1-0 x 1 1 1 c u"),
    Some(b"\xff\xfe 1"),
    Some(b"0 1 1 1 1 c u"),
    None,
];

async fn raw(system: &System, words: &[&[u8]]) -> redis::Value {
    let mut command = redis::cmd(std::str::from_utf8(words[0]).expect("a name"));
    command.arg(&words[1..]);
    command.query_async(&mut system.partition().connection()).await.expect("Redis does it")
}

async fn damage(system: &System, id: IssuanceId, value: Option<&[u8]>) {
    let key = system.keys().in_flight();
    match value {
        Some(value) => raw(system, &[b"HSET", key.as_bytes(), id.as_bytes(), value]).await,
        None => raw(system, &[b"HDEL", key.as_bytes(), id.as_bytes()]).await,
    };
}

/// One accepted request for each kind of damage, in the order of the stream.
async fn accept_and_damage(system: &System, coupon: &CouponId) -> Vec<IssuanceId> {
    let mut ids = Vec::new();
    for (number, value) in DAMAGE.into_iter().enumerate() {
        let id = system.accepted(&format!("u{number}"), coupon).await;
        damage(system, id, value).await;
        ids.push(id);
    }
    ids
}

async fn lose_stream(system: &System) {
    system.command::<u64>(&["XTRIM", &system.keys().stream(), "MAXLEN", "0"]).await;
}

async fn rebuild(system: &System) {
    let keeper = system.supervisor();
    eventually("it is rebuilt", async || {
        let kept = keeper.recover(RecoveryMode::Rebuild, &ignore_progress(), &CancellationToken::new()).await;
        matches!(kept, Ok(CertifyOutcome::Recovered(RecoveryOutcome::Rebuilt { .. }))).then_some(())
    })
    .await;
    recovered(system).await;
}

async fn get(system: &System, id: IssuanceId) -> Answer {
    system.client.get(&format!("/issuances/{id}")).await
}

/// Polls until the issuance is decided; until then the answer may be 503.
async fn becomes(system: &System, id: IssuanceId, state: &str) {
    eventually("it is decided", async || {
        let answer = get(system, id).await;
        assert_ne!(answer.status, 404);
        (answer.status == 200 && answer.state() == state).then_some(())
    })
    .await;
}

async fn discard(system: &System, id: IssuanceId) -> Answer {
    system.client.post(&format!("/dead-letters/{id}/discard"), serde_json::json!({})).await
}

async fn set_all_aside(system: &System) {
    let (partition, keys) = (system.partition(), system.keys());
    for entry in system.take_entries().await {
        assert!(dead::set_aside(partition, &keys, &entry.entry, entry.id, 3, "why").await.expect("done"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_decides_and_settles_what_is_in_flight_and_cannot_be_read() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let ids = accept_and_damage(&system, &coupon).await;
    let _worker = system.worker();
    for id in &ids {
        becomes(&system, *id, "issued").await;
    }
    // One value names another entry: the guard leaves it in flight, and an operator discards it. Where the value is
    // gone, the audit finds the entry.
    eventually("the others are settled", async || {
        (figures(system.partition()).await.expect("figures").in_flight == 1).then_some(())
    })
    .await;
    let answer = discard(&system, ids[2]).await;
    assert_eq!((answer.status, answer.state()), (200, "issued"), "{answer:?}");
    assert_eq!(system.stock(&coupon).await.issued, ids.len() as u32 - 1);
    let left = figures(system.partition()).await.expect("figures");
    assert_eq!((left.in_flight, left.dead), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_flight_and_cannot_be_read_is_taken_from_the_stream_by_a_rebuild() {
    let mut system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let mut ids = accept_and_damage(&system, &coupon).await;
    ids.push(system.accepted("fine", &coupon).await);
    system.redis.kill().await.expect("it is killed");
    system.redis.restart().await.expect("it is back");
    recovered(&system).await;
    for id in &ids {
        assert_eq!(get(&system, *id).await.state(), "queued");
    }
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved), (3, 7));
    system.audited_clean().await;
    let _worker = system.worker();
    for id in &ids {
        becomes(&system, *id, "issued").await;
    }
    assert_eq!(system.settled(&coupon).await.issued, 7);
    assert_eq!(system.issued_serials(&coupon).await, (1..=7).collect::<Vec<_>>());
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_in_flight_hash_of_a_wrong_type_is_taken_from_the_stream_by_a_rebuild() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let mut ids = Vec::new();
    for user in ["a", "b", "c"] {
        ids.push(system.accepted(user, &coupon).await);
    }
    let letter = system.take_entries().await.remove(0);
    let (partition, keys) = (system.partition(), system.keys());
    assert!(dead::set_aside(partition, &keys, &letter.entry, letter.id, 3, "why").await.expect("done"));
    system.command::<()>(&["SET", &keys.in_flight(), "no hash"]).await;
    rebuild(&system).await;
    for id in &ids {
        assert_eq!(get(&system, *id).await.state(), "queued");
    }
    let kept = dead::get(system.partition(), letter.id).await.expect("a look").expect("a dead letter");
    assert_eq!((kept.attempts, kept.why.as_str()), (3, "why"));
    let _worker = system.worker();
    assert!(dead::redrive(system.partition(), letter.id).await.expect("an answer"));
    for id in &ids {
        becomes(&system, *id, "issued").await;
    }
    system.settled(&coupon).await;
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_neither_hash_nor_stream_can_tell_is_a_dead_letter_and_never_not_found() {
    let mut system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let mut ids = accept_and_damage(&system, &coupon).await;
    // Nothing is left of an issuance that is gone in both.
    ids.pop();
    let fine = system.accepted("fine", &coupon).await;
    lose_stream(&system).await;
    for _ in 0..2 {
        rebuild(&system).await;
        assert_eq!(get(&system, fine).await.state(), "queued");
        for id in &ids {
            let answer = get(&system, *id).await;
            assert_eq!((answer.status, answer.code()), (503, "unavailable"), "{answer:?}");
        }
    }
    // A known dead letter is no reason for a rebuild.
    let epoch = system.keys().epoch();
    system.redis.kill().await.expect("it is killed");
    system.redis.restart().await.expect("it is back");
    recovered(&system).await;
    assert_eq!(system.keys().epoch(), epoch);

    let _worker = system.worker();
    assert_eq!(system.client.decided(&fine.to_string()).await.state(), "issued");
    let letters = system.client.get("/dead-letters").await.body["items"].clone();
    let letters = letters.as_array().expect("items");
    assert_eq!(letters.len(), ids.len());
    for letter in letters {
        let why = letter["reason"].as_str().expect("a reason");
        assert!(why.contains("could be read") && why.contains("Discard it"), "{why}");
    }
    let report = system.audited().await;
    for id in &ids {
        let named = report
            .findings()
            .any(|found| found.kind == FindingKind::InFlightUnreadable && found.issuances == [*id]);
        assert!(named, "{id} is not named");
        // No entry is left that a worker could get.
        assert!(dead::redrive(system.partition(), *id).await.is_err());
        let answer = discard(&system, *id).await;
        assert_eq!((answer.status, answer.state()), (200, "rejected"), "{answer:?}");
        assert_eq!(get(&system, *id).await.state(), "rejected");
    }
    assert_eq!(system.settled(&coupon).await.issued, 1);
    assert_eq!(system.queue().await, (0, 0));
    assert_eq!(figures(system.partition()).await.expect("figures").dead, 0);
    system.audited_clean().await;
}

#[tokio::test]
async fn a_recoverer_that_dies_after_the_stream_is_deleted_has_lost_nothing_of_it() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 10, 1).await;
    let ids = accept_and_damage(&system, &coupon).await;
    let stop = CancellationToken::new();
    let dies = stop.clone();
    let watch: coupon_system::recovery::ProgressCallback = std::sync::Arc::new(move |step| {
        if matches!(step, coupon_system::recovery::RecoveryStep::Sorted { .. }) {
            dies.cancel();
        }
    });
    let keeper = system.supervisor();
    keeper.recover(RecoveryMode::Rebuild, &watch, &stop).await.expect("it is broken off");
    recovered(&system).await;
    for id in &ids {
        assert_eq!(get(&system, *id).await.state(), "queued");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_whose_in_flight_value_is_damaged_is_discarded_and_its_unit_is_free() {
    let system = System::start().await;
    system.leaves_in_flight();
    system.users("u", DAMAGE.len()).await;
    let coupon = system.coupon("c", 10, 1).await;
    let mut ids = Vec::new();
    for number in 0..DAMAGE.len() {
        ids.push(system.accepted(&format!("u{number}"), &coupon).await);
    }
    set_all_aside(&system).await;
    for (id, value) in ids.iter().zip(DAMAGE) {
        damage(&system, *id, value).await;
    }
    // An earlier decision stands.
    let issued = Outcome::Issued { unit: native(1), nth: 1 };
    system.write(&[decided(ids[0], &coupon, "u0", issued)]).await;
    for (number, id) in ids.iter().enumerate() {
        let answer = discard(&system, *id).await;
        let state = if number == 0 { "issued" } else { "rejected" };
        assert_eq!((answer.status, answer.state()), (200, state), "{answer:?}");
        assert_eq!(get(&system, *id).await.state(), state);
    }
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved, stock.issued), (9, 0, 1));
    assert_eq!(system.queue().await, (0, 0));
    system.audited_clean().await;
    assert_eq!(system.client.issue("u1", "c", None).await.status, 202, "the user may try again");
}

#[tokio::test]
async fn what_is_in_flight_and_can_be_read_is_discarded_only_as_a_dead_letter() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 10, 1).await;
    let id = system.accepted("u0", &coupon).await;
    assert_eq!(discard(&system, id).await.status, 404);
    assert_eq!(get(&system, id).await.state(), "queued");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_whose_in_flight_value_or_stream_entry_is_damaged_is_sent_through_again() {
    let system = System::start().await;
    let coupon = system.coupon("c", 20, 1).await;
    let mut ids = Vec::new();
    for number in 0..DAMAGE.len() + 1 {
        ids.push(system.accepted(&format!("u{number}"), &coupon).await);
    }
    set_all_aside(&system).await;
    for (id, value) in ids.iter().zip(DAMAGE) {
        damage(&system, *id, value).await;
    }
    // The stream has lost the last entry.
    let last = ids[DAMAGE.len()];
    let held = dead::get(system.partition(), last).await.expect("a look").and_then(|letter| letter.in_flight);
    system.command::<u64>(&["XDEL", &system.keys().stream(), &held.expect("in flight").entry]).await;
    for id in &ids {
        assert!(dead::redrive(system.partition(), *id).await.expect("an answer"), "{id}");
    }
    let _worker = system.worker();
    for id in &ids {
        becomes(&system, *id, "issued").await;
    }
    assert_eq!(system.settled(&coupon).await.issued, ids.len() as u32);
    assert_eq!(system.queue().await, (0, 0));
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_damaged_value_whose_unit_is_anothers_does_not_keep_its_coupon_waiting() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let ids = [system.accepted("u0", &coupon).await, system.accepted("u1", &coupon).await];
    damage(&system, ids[0], Some(b"nonsense")).await;
    let other = issued_to(&coupon, "late", 1);
    system.write(&[other]).await;
    let _worker = system.worker();
    for id in ids {
        becomes(&system, id, "issued").await;
    }
    assert_eq!(system.issued_serials(&coupon).await, [1, 2, 3]);
    eventually("both are settled", async || {
        (figures(system.partition()).await.expect("figures").in_flight == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_rebuild_of_an_earlier_version_set_aside_is_not_said_to_be_unknown() {
    let system = System::start().await;
    system.coupon("c", 10, 1).await;
    let id = IssuanceId::generate(PartitionId::ONE);
    let aside = damaged(PartitionId::ONE);
    raw(&system, &[b"HSET", aside.as_bytes(), id.as_bytes(), b"1-0 x 1 1 1 c u"]).await;
    assert_eq!(get(&system, id).await.status, 503);
    rebuild(&system).await;
    assert_eq!(get(&system, id).await.status, 503);
    assert_eq!(system.command::<u64>(&["EXISTS", &aside]).await, 0);
    let answer = discard(&system, id).await;
    assert_eq!((answer.status, answer.state()), (200, "rejected"));
    assert_eq!((answer.body["couponId"].as_str(), answer.body["userId"].as_str()), (Some("c"), Some("u")));
}
