//! Redis may hold any bytes, and keys of any type: an unreadable value affects only the thing that it belongs to, and
//! values that the whole partition needs are recovered.

use std::sync::Arc;
use std::time::Duration;

use coupon_system::audit::{FindingKind, SettleMode};
use coupon_system::ids::PartitionId;
use coupon_system::issuance::reserve::Reserved;
use coupon_system::queue::{ReadFrom, ReadOutcome, Reader, claim, dead};
use coupon_system::recovery;
use coupon_system::recovery::{LoadOutcome, RecoverySupervisor};
use coupon_system::redis::Partition;
use coupon_system::service::ServiceStore;
use mongodb::bson::{Document, doc};
use tokio_util::sync::CancellationToken;

use crate::helpers::{System, eventually};

/// Runs a command in Redis, whose words may be any bytes.
async fn raw(system: &System, words: &[&[u8]]) {
    let mut command = redis::cmd(std::str::from_utf8(words[0]).expect("a name"));
    command.arg(&words[1..]);
    command.query_async::<redis::Value>(&mut system.partition().connection()).await.expect("Redis does it");
}

/// The supervisor of a process that has just started and knows of no opening.
fn new_keeper(system: &System) -> RecoverySupervisor {
    let backends = &system.backends;
    let partition = Arc::new(Partition::new(PartitionId::ONE, &system.backends.nodes));
    RecoverySupervisor::new(partition, backends.database.clone(), backends.durability, "new".into())
}

async fn kinds(system: &System) -> Vec<FindingKind> {
    system.audited().await.findings().map(|finding| finding.kind).collect()
}

#[tokio::test]
async fn a_stream_entry_that_is_no_text_is_left_alone_and_named_and_the_others_are_decided() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let stream = system.keys().stream();
    for (field, value) in [(&b"\xff\xfe"[..], &b"1"[..]), (b"2", b"\xff"), (b"\xff", b"\xff")] {
        raw(&system, &[b"XADD", stream.as_bytes(), b"*", field, value]).await;
    }
    let id = system.accepted("u", &coupon).await;
    // A consumer reads them and goes away, so that workers claim them.
    let mut reader = Reader::new(system.partition().client().clone(), "gone".into());
    let ReadOutcome::Entries(read) =
        reader.read(&system.keys(), ReadFrom::NewAtOnce, 100).await.expect("a read")
    else {
        panic!("there is a group");
    };
    assert_eq!((read.entries.len(), read.undecodable.len()), (1, 3));
    let claimed = claim(system.partition(), &system.keys(), "heir", 100).await.expect("they are claimed");
    assert_eq!((claimed.entries.len(), claimed.undecodable.len()), (1, 3));
    assert!(claimed.undecodable[0].why.contains("its fields are"), "{claimed:?}");
    system.worker();
    assert_eq!(system.client.decided(&id.to_string()).await.state(), "issued");
    assert_eq!(kinds(&system).await, [FindingKind::EntryUnreadable; 3]);
}

#[tokio::test]
async fn a_dead_letter_that_is_no_text_hides_no_other() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 10, 1).await;
    for user in ["a", "b"] {
        system.accepted(user, &coupon).await;
    }
    let (keys, entries) = (system.keys(), system.take_entries().await);
    for entry in &entries {
        assert!(
            dead::set_aside(system.partition(), &keys, &entry.entry, entry.id, 3, "why").await.expect("done")
        );
    }
    let key = keys.dead();
    raw(&system, &[b"HSET", key.as_bytes(), entries[0].id.as_bytes(), b"\xff\xfe \xff"]).await;
    raw(&system, &[b"HSET", key.as_bytes(), b"\xff", b"1-0 1 1 why"]).await;
    let listed = system.client.get("/dead-letters").await;
    let mut ids: Vec<_> =
        listed.body["items"].as_array().expect("items").iter().map(|one| &one["id"]).collect();
    ids.sort_by_key(|id| id.to_string());
    let mut wanted: Vec<_> = entries.iter().map(|entry| entry.id.to_string()).collect();
    wanted.sort();
    assert_eq!(ids, wanted.iter().collect::<Vec<_>>(), "{listed:?}");
    assert_eq!(kinds(&system).await, [FindingKind::DeadLetterUnreadable]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_cannot_be_read_is_recovered_as_one_that_is_missing() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 1_000, 1).await;
    let id = system.accepted("first", &coupon).await;
    let key = system.keys().certificate();
    let key = key.as_bytes();
    let mut damages: Vec<Vec<&[u8]>> = vec![vec![b"SET", key, b"open"], vec![b"RPUSH", key, b"open"]];
    for field in ["state", "epoch", "run_id", "replid", "ledger", "term", "opened_at"] {
        damages.push(vec![b"HDEL", key, field.as_bytes()]);
        for wrong in [&b"\xff"[..], b"", b"-1", b"9223372036854775807", b"99999999999999999999"] {
            damages.push(vec![b"HSET", key, field.as_bytes(), wrong]);
        }
    }
    for (number, damage) in damages.into_iter().enumerate() {
        if damage[0] != b"HSET" && damage[0] != b"HDEL" {
            raw(&system, &[b"DEL", key]).await;
        }
        raw(&system, &damage).await;
        let shown: Vec<_> = damage.iter().map(|word| String::from_utf8_lossy(word)).collect();
        eventually(&format!("it is recovered from {shown:?}"), async || {
            // An older process, and one that knows nothing yet.
            new_keeper(&system).ensure().await.is_ok_and(|is_certified| is_certified).then_some(())?;
            matches!(recovery::is_certified(system.partition()).await, Ok(true)).then_some(())
        })
        .await;
        system.accepted(&format!("u{number}"), &coupon).await;
        assert!(system.is_in_flight(id).await, "{shown:?}: what was accepted is forgotten");
    }
    system.audited_clean().await;
}

#[tokio::test]
async fn a_key_of_the_whole_queue_that_is_of_a_wrong_type_is_recovered() {
    let system = System::builder().flags(&["--require-registered-users=false"]).start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 100, 1).await;
    for (number, key) in ["counters", "loaded", "dead", "in-flight"].iter().enumerate() {
        let name = format!("{}{key}", system.keys().prefix());
        system.accepted(&format!("before{number}"), &coupon).await;
        raw(&system, &[b"DEL", name.as_bytes()]).await;
        raw(&system, &[b"RPUSH", name.as_bytes(), b"x"]).await;
        eventually(&format!("{key} is recovered"), async || {
            system.auditor().full(&[], SettleMode::ReadOnly, |_| {}).await.ok()?;
            (system.client.issue(&format!("after{number}"), "c", None).await.status == 202).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn what_mongodb_remembers_of_openings_keeps_nothing_closed_where_it_cannot_be_read() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 100, 1).await;
    let leases = system.backends.database.collection::<Document>("recovery");
    let damages = [
        doc! {"term": "x"},
        doc! {"term": -7.5},
        doc! {"opened.term": "x"},
        doc! {"opened.instance": 5},
        doc! {"opened": "x"},
        doc! {"servedAt": "x"},
        doc! {"until": "x"},
        doc! {"holder": 5},
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        leases.update_one(doc! {}, doc! {"$set": damage.clone()}).await.expect("it is damaged");
        let _: u64 = system.command(&["DEL", &system.keys().certificate()]).await;
        eventually(&format!("it is recovered from {damage}"), async || {
            new_keeper(&system).ensure().await.is_ok_and(|is_certified| is_certified).then_some(())?;
            matches!(recovery::is_certified(system.partition()).await, Ok(true)).then_some(())
        })
        .await;
        system.accepted(&format!("u{number}"), &coupon).await;
        let lease = leases.find_one(doc! {}).await.expect("an answer").expect("it is there");
        let opened = lease.get_document("opened").expect("the opening is remembered");
        assert_eq!(opened.get("term"), lease.get("term"), "{damage}");
    }
}

#[tokio::test]
async fn heartbeats_are_said_anew_where_they_cannot_be_kept() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let workers = system.keys().workers();
    raw(&system, &[b"RPUSH", workers.as_bytes(), b"x"]).await;
    system.worker();
    let id = system.accepted("u", &coupon).await;
    assert_eq!(system.client.decided(&id.to_string()).await.state(), "issued");
    let listed = system.client.get("/workers").await;
    assert_eq!(listed.body.as_array().map(Vec::len), Some(1), "{listed:?}");
}

#[tokio::test]
async fn a_count_of_audits_that_is_none_keeps_nothing_from_being_audited() {
    let system = System::start().await;
    let audited = system.keys().audited();
    raw(&system, &[b"RPUSH", audited.as_bytes(), b"x"]).await;
    let stop = CancellationToken::new();
    let watching = system.keep_auditing(Duration::from_millis(100), &stop);
    eventually("a round has ended", async || {
        let kind: String = system.command(&["TYPE", &audited]).await;
        (kind == "string").then_some(())
    })
    .await;
    stop.cancel();
    watching.await.expect("it ends");
}

#[tokio::test]
async fn counters_that_cannot_be_read_keep_nothing_from_being_loaded_or_retired_and_are_set_anew() {
    let system = System::start().await;
    system.leaves_in_flight();
    for (number, wrong) in [&b"x"[..], b"", b"-1", b"\xff", b"99999999999999999999"].into_iter().enumerate() {
        let counters = system.keys().counters();
        let waiting = system.coupon(&format!("waiting{number}"), 10, 1).await;
        system.accepted("u", &waiting).await;
        let damage = async || {
            for field in ["retired", "settled_unloaded", "accepted", "settled"] {
                raw(&system, &[b"HSET", counters.as_bytes(), field.as_bytes(), wrong]).await;
            }
        };
        damage().await;
        // One coupon with issuances in flight, and one without.
        let keys = system.keys();
        let _: u64 = system.command(&["DEL", &keys.coupon(&waiting), &keys.holders(&waiting)]).await;
        assert_eq!(
            system.backends.loaders().first().load(&waiting).await.expect("a load"),
            LoadOutcome::Now,
            "{wrong:?}"
        );
        let over = system.coupon(&format!("over{number}"), 10, 1).await;
        system.end(&over).await;
        let retired = recovery::retire(system.partition(), &system.backends.coupons, Duration::ZERO).await;
        assert_eq!(retired.expect("an answer"), [over], "{wrong:?}");
        let healed: String = system.command(&["HGET", &counters, "retired"]).await;
        assert!(healed.parse::<u64>().is_ok_and(|count| count > 1_000), "{wrong:?}: {healed}");

        damage().await;
        let found = kinds(&system).await;
        assert_eq!(found, [FindingKind::CountersUnreadable], "{wrong:?}");
        let repaired = system.auditor().repair(&[], |_| {}).await.expect("a repair");
        assert_eq!(repaired.repaired.len(), 1, "{wrong:?}: {repaired:?}");
        let counts: (u64, u64) = system.command(&["HMGET", &counters, "accepted", "settled"]).await;
        assert_eq!(counts, (number as u64 + 1, 0), "{wrong:?}: as many as are in flight");
        system.audited_clean().await;
    }
}

#[tokio::test]
async fn a_count_that_cannot_be_read_makes_no_in_flight_value_that_cannot_be_read() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 10, 1).await;
    let counters = system.keys().counters();
    system.accepted("a", &coupon).await;
    system.command::<()>(&["HSET", &counters, "accepted", "-5"]).await;
    let id = system.accepted("b", &coupon).await;
    assert!(system.is_in_flight(id).await);
    let accepted: u64 = system.command(&["HGET", &counters, "accepted"]).await;
    assert_eq!(accepted, 2, "what is accepted and not settled is in flight");
}

#[tokio::test]
async fn a_state_of_the_service_that_cannot_be_read_is_named_and_can_be_changed() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let services = ServiceStore::new(&system.backends.database);
    services.set_paused(false).await.expect("changed");
    let states = system.backends.database.collection::<Document>("service");
    let damages = [doc! {"generation": "three"}, doc! {"generation": -1_i64}, doc! {"paused": "no"}];
    for (number, wrong) in damages.into_iter().enumerate() {
        states.update_one(doc! {}, doc! {"$set": wrong.clone()}).await.expect("it is damaged");
        assert_eq!(kinds(&system).await, [FindingKind::ServiceUnreadable], "{wrong}");
        for paused in [true, false] {
            let path = if paused { "/pause" } else { "/resume" };
            let answer = system.client.send(system.client.request("POST", path)).await;
            assert_eq!(answer.status, 200, "{wrong}: {answer:?}");
            let is_paused = system.reserve(&format!("u{number}"), &coupon).await == Reserved::Paused;
            assert_eq!(is_paused, paused, "{wrong}");
        }
        assert_eq!(kinds(&system).await, [], "{wrong}");
    }
    system.drain().await;
}

#[tokio::test]
async fn a_generation_of_the_service_that_redis_made_up_hides_no_pause() {
    let system = System::start().await;
    let services = ServiceStore::new(&system.backends.database);
    let coupon = system.coupon("c", 10, 1).await;
    for wrong in ["99999999999999", "99999999999999999999", "x", "-7"] {
        services.set_paused(false).await.expect("changed");
        system
            .command::<()>(&["HSET", &system.keys().counters(), "service_generation", wrong, "paused", "0"])
            .await;
        services.set_paused(true).await.expect("paused");
        system.auditor().repair(&[], |_| {}).await.expect("a repair");
        assert_eq!(system.reserve("u", &coupon).await, Reserved::Paused, "{wrong}");
        assert_eq!(kinds(&system).await, [], "{wrong}");
    }
}
