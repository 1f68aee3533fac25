//! Damage to one thing in Redis stays with its issuance, its user or its coupon. Others of the same batch are served,
//! and the damage is named.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coupon_system::coupon::stock;
use coupon_system::ids::{CouponId, IssuanceId, PartitionId};
use coupon_system::issuance::Outcome;
use coupon_system::issuance::lookup::read_in_flight;
use coupon_system::issuance::reassign::{Reassigned, reassign};
use coupon_system::issuance::reserve::{QueueEntries, Request, Reserved, TOLD_MAX, reserve};
use coupon_system::issuance::settle::{Settled, Settlement, settle};
use coupon_system::limits::{Admission, LimitScope, Limiter, Rate};
use coupon_system::queue::{DEAD_LETTER_CONSUMER, dead, figures, restore};
use coupon_system::redis::keys::GROUP;
use coupon_system::{Failure, recovery};
use futures::future::join_all;

use crate::helpers::{
    API, Client, NO_BACKLOG_MAX, System, at, decision, eventually, native, program, request, serving,
};

/// A Redis command, whatever its arguments are.
async fn raw<T: redis::FromRedisValue>(system: &System, words: &[&[u8]]) -> T {
    let mut command = redis::cmd(std::str::from_utf8(words[0]).expect("a name"));
    command.arg(&words[1..]);
    command.query_async(&mut system.partition().connection()).await.expect("Redis does it")
}

async fn damage_flight(system: &System, id: IssuanceId, value: &[u8]) {
    let key = system.keys().in_flight();
    raw::<()>(system, &[b"HSET", key.as_bytes(), id.as_bytes(), value]).await;
}

fn is_damaged(answer: &Reserved) -> bool {
    matches!(answer, Reserved::Damaged(_))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_damaged_in_flight_value_is_the_trouble_of_its_user_alone() {
    const OTHERS: usize = 200;
    let system = System::start().await;
    system.leaves_in_flight();
    let users = system.users("u", OTHERS + 1).await;
    let coupon = system.coupon("c", 1_000, 1).await;
    let asker = &users[OTHERS];
    for damaged in [&b"nonsense"[..], b"", b"1-0 1 1 1 1 c", b"1-0 x 1 1 1 c u", b"\xff\xfe 1 1 1 1 c u"] {
        let id = system.accepted(asker, &coupon).await;
        damage_flight(&system, id, damaged).await;
        // Many at once, so that every batch contains the damaged one.
        let asks = users[..OTHERS].iter().map(|user| system.client.issue(user, "c", None));
        let again = (0..8).map(|_| system.client.issue(asker, "c", None));
        let (answers, again) = tokio::join!(join_all(asks), join_all(again));
        assert!(answers.iter().all(|answer| answer.status == 202), "{damaged:?}");
        for answer in again {
            assert_eq!((answer.status, answer.code()), (503, "unavailable"), "{answer:?}");
            let detail = answer.body["detail"].as_str().expect("a reason");
            assert!(detail.contains("state of this request in Redis"), "{detail}");
        }
        // The same holds for polls.
        let ids: Vec<_> = answers.iter().map(|answer| answer.id()).collect();
        let path = format!("/issuances/{id}");
        let looks = ids.iter().map(async |id| system.client.get(&format!("/issuances/{id}")).await);
        let (looked, own) = tokio::join!(join_all(looks), system.client.get(&path));
        assert!(looked.iter().all(|answer| answer.state() == "queued"), "{damaged:?}");
        assert_eq!((own.status, own.code()), (503, "unavailable"), "{own:?}");
        assert!(
            own.body["detail"].as_str().is_some_and(|detail| detail.contains("in-flight value")),
            "{own:?}"
        );
        let (keys, user) = (system.keys(), asker.as_bytes());
        raw::<()>(&system, &[b"HDEL", keys.in_flight().as_bytes(), id.as_bytes()]).await;
        raw::<()>(&system, &[b"HDEL", keys.holders(&coupon).as_bytes(), user]).await;
    }
}

#[tokio::test]
async fn what_a_user_holds_that_is_no_list_of_ids_is_the_trouble_of_that_user_alone() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 1_000, 1).await;
    let holders = system.keys().holders(&coupon);
    for damaged in [vec![7; 15], vec![7; 17], vec![7], vec![7; 16 * 100_000]] {
        raw::<()>(&system, &[b"HSET", holders.as_bytes(), b"bad", &damaged]).await;
        let asked: Vec<_> = ["a", "bad", "b"].map(|user| request(user, &coupon)).to_vec();
        let answers =
            reserve(system.partition(), &asked, NO_BACKLOG_MAX, QueueEntries::OfOne).await.expect("answers");
        assert!(matches!(answers[0], Reserved::Accepted(_) | Reserved::Replayed(_)), "{answers:?}");
        assert!(is_damaged(&answers[1]), "{answers:?}");
        assert!(matches!(answers[2], Reserved::Accepted(_) | Reserved::Replayed(_)), "{answers:?}");
        let kept: Vec<u8> = raw(&system, &[b"HGET", holders.as_bytes(), b"bad"]).await;
        assert_eq!(kept.len(), damaged.len(), "nothing is written over it");
    }
}

#[tokio::test]
async fn a_field_of_a_coupon_that_cannot_be_read_is_the_trouble_of_that_coupon_alone() {
    let mut system = System::start().await;
    system.leaves_in_flight();
    let (bad, good) = (system.coupon("bad", 100, 1).await, system.coupon("good", 100, 1).await);
    // It would bring some of the fields up to the record.
    system.stop().await;
    let key = system.keys().coupon(&bad);
    let fields = ["id", "total", "next", "per_user", "starts_at", "ends_at", "paused", "archived"];
    let wrong = ["x", "", "0x10", "1e3", "nan", "inf", "-1", " 5", "99999999999999999999"];
    for field in fields {
        let was: String = system.command(&["HGET", &key, field]).await;
        for (number, wrong) in wrong.iter().map(|wrong| Some(*wrong)).chain([None]).enumerate() {
            match wrong {
                Some(wrong) => system.command::<()>(&["HSET", &key, field, wrong]).await,
                None => system.command::<()>(&["HDEL", &key, field]).await,
            }
            // A moment may be before 1970.
            let is_moment = matches!(field, "starts_at" | "ends_at") && wrong == Some("-1");
            let asked = [request("u", &bad), request(&format!("{field}{number}"), &good)];
            let answers = reserve(system.partition(), &asked, NO_BACKLOG_MAX, QueueEntries::OfOne)
                .await
                .expect("answers");
            assert!(is_damaged(&answers[0]) || is_moment, "{field} {wrong:?}: {answers:?}");
            assert!(matches!(answers[1], Reserved::Accepted(_)), "{field} {wrong:?}: {answers:?}");
            if is_moment {
                system.command::<()>(&["HDEL", &system.keys().holders(&bad), "u"]).await;
            }
            let both = [bad.clone(), good.clone()];
            let (_, stocks) = stock::read(system.partition(), &both).await.expect("the stock");
            assert!(matches!(stocks[1], Ok(Some(_))), "{field} {wrong:?}: {stocks:?}");
            if matches!(field, "total" | "next") {
                assert!(matches!(stocks[0], Err(Failure::Damaged { .. })), "{field} {wrong:?}: {stocks:?}");
            }
        }
        system.command::<()>(&["HSET", &key, field, &was]).await;
    }
    let mut api = program(API, &system);
    api.args(["--listen", "127.0.0.1:0"]);
    let (_api, address) = serving(api).await;
    let listed = Client::new(address).get("/coupons").await;
    assert_eq!((listed.status, listed.body["items"].as_array().map(Vec::len)), (200, Some(2)));
}

#[tokio::test]
async fn members_of_the_free_set_that_are_no_units_are_never_handed_out() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 3, 1).await;
    let free = system.keys().free(&coupon);
    let strange = ["x", "", "007", "0", "-1", "1e3", "12345678901", "\u{1f600}"];
    for strange in strange {
        system.command::<()>(&["SADD", &free, strange]).await;
    }
    for user in ["a", "b", "c"] {
        system.accepted(user, &coupon).await;
    }
    let serials: Vec<_> = system.take_entries().await.iter().map(|entry| entry.unit).collect();
    assert_eq!(serials, [1, 2, 3].map(|serial| Some(native(serial))));
    // The script has not read all of them, so that it cannot know whether one is free.
    assert!(is_damaged(&system.reserve("d", &coupon).await));
    for strange in strange {
        system.command::<()>(&["SREM", &free, strange]).await;
    }
    assert_eq!(system.reserve("d", &coupon).await, Reserved::SoldOut);
}

#[tokio::test]
async fn what_is_decided_is_settled_beside_what_cannot_be_read() {
    let system = System::start().await;
    system.leaves_in_flight();
    let (bad, good) = (system.coupon("bad", 10, 1).await, system.coupon("good", 10, 1).await);
    for user in ["whole", "tail", "fine"] {
        system.accepted(user, &good).await;
    }
    system.accepted("u", &bad).await;
    let entries = system.take_entries().await;
    let keys = system.keys();
    damage_flight(&system, entries[0].id, b"nonsense").await;
    damage_flight(&system, entries[1].id, format!("{} x y", entries[1].entry).as_bytes()).await;
    system.command::<()>(&["HSET", &keys.coupon(&bad), "next", "x"]).await;
    let decided: Vec<_> = entries
        .iter()
        .map(|entry| Settlement {
            of: entry.of,
            entry: entry.entry.clone(),
            // Another unit than the one in flight, which must be taken out of the free units.
            decision: decision(
                entry,
                Outcome::Issued { unit: native(entry.unit.expect("a unit").serial() + 4), nth: 1 },
            ),
            holds: Vec::new(),
        })
        .collect();
    let settled = settle(system.partition(), &keys, &decided).await.expect("answers");
    assert_eq!(settled, [Settled::Unreadable, Settled::Unreadable, Settled::Now, Settled::Now]);
    let counted: (String, String) = system.command(&["HMGET", &keys.coupon(&good), "settled", "next"]).await;
    assert_eq!(counted, ("1".into(), "8".into()));
    let untouched: (String, String) = system.command(&["HMGET", &keys.coupon(&bad), "settled", "next"]).await;
    assert_eq!(untouched, ("0".into(), "x".into()));
    assert_eq!(system.queue().await, (2, 2), "those whose values cannot be read");
}

#[tokio::test]
async fn a_damaged_count_of_the_queue_stops_nobody() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let counters = system.keys().counters();
    for wrong in ["x", "", "nan", "1e400", "-"] {
        system.command::<()>(&["HSET", &counters, "accepted", wrong, "settled", wrong]).await;
        let id = system.accepted(&format!("u{}", wrong.len()), &coupon).await;
        let found = read_in_flight(system.partition(), &[id]).await.expect("a look");
        assert!(matches!(found[..], [Ok(Some(_))]), "{wrong:?}: {found:?}");
        let entry = system.take_entries().await.remove(0);
        system.command::<()>(&["HSET", &counters, "settled", wrong]).await;
        let outcome = Outcome::Issued { unit: entry.unit.expect("a unit"), nth: 1 };
        let decided = Settlement {
            entry: entry.entry.clone(),
            of: entry.of,
            decision: decision(&entry, outcome),
            holds: vec![],
        };
        let settled = settle(system.partition(), &system.keys(), &[decided]).await.expect("an answer");
        assert_eq!(settled, [Settled::Now], "{wrong:?}");
        system.command::<()>(&["HDEL", &system.keys().holders(&coupon), entry.user.as_str()]).await;
    }
}

#[tokio::test]
async fn units_of_a_damaged_coupon_are_not_reassigned_and_no_unit_is_made_up() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 10, 1).await;
    let id = system.accepted("u", &coupon).await;
    let entry = system.take_entries().await.remove(0);
    let (keys, state) = (system.keys(), system.keys().coupon(&coupon));
    let again = async || reassign(system.partition(), &keys, &coupon, id, &entry.entry, entry.unit).await;
    for (field, right) in [("total", "10"), ("next", "2")] {
        for wrong in ["x", "", "nan"] {
            system.command::<()>(&["HSET", &state, field, wrong]).await;
            let answer = again().await;
            assert!(matches!(answer, Err(Failure::Damaged { .. })), "{field} {wrong:?}: {answer:?}");
        }
        system.command::<()>(&["HSET", &state, field, right]).await;
    }
    system.command::<()>(&["SADD", &keys.free(&coupon), "x", "", "-3"]).await;
    assert_eq!(again().await.expect("an answer"), Reassigned::To(native(2)));
}

#[tokio::test]
async fn a_look_for_lost_entries_passes_over_what_cannot_be_read() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 100, 1).await;
    let lost = system.accepted("lost", &coupon).await;
    for (number, damaged) in
        ["x", "", "0-", "99999999999999999999999-0 1 1 1 1 c u", "1-0 1"].iter().enumerate()
    {
        let id = system.accepted(&format!("u{number}"), &coupon).await;
        damage_flight(&system, id, damaged.as_bytes()).await;
    }
    let stream = system.keys().stream();
    let first: Vec<(String, HashMap<String, Vec<u8>>)> =
        system.command(&["XRANGE", &stream, "-", "+", "COUNT", "1"]).await;
    system.command::<()>(&["XDEL", &stream, &first[0].0]).await;
    let (restored, next) = restore(system.partition(), None, 1_000).await.expect("a look");
    assert_eq!((restored, next), (vec![lost], None));
}

#[tokio::test]
async fn a_damaged_coupon_keeps_no_other_from_being_retired() {
    let mut system = System::start().await;
    let (bad, good) = (system.coupon("bad", 10, 1).await, system.coupon("good", 10, 1).await);
    // It would bring the window up to the record.
    system.stop().await;
    for coupon in [&bad, &good] {
        system.command::<()>(&["HSET", &system.keys().coupon(coupon), "ends_at", "1"]).await;
    }
    for field in ["ends_at", "next", "settled"] {
        let key = system.keys().coupon(&bad);
        let was: String = system.command(&["HGET", &key, field]).await;
        system.command::<()>(&["HDEL", &key, field]).await;
        system.command::<()>(&["HSET", &key, field, "x"]).await;
        let retired = recovery::retire(system.partition(), &system.backends.coupons, Duration::ZERO).await;
        let retired = retired.expect("an answer");
        assert!(retired.is_empty() || retired == [good.clone()], "{field}: {retired:?}");
        system.command::<()>(&["HSET", &key, field, &was]).await;
    }
    let loaded = recovery::loaded_coupons(system.partition(), &system.keys()).await.expect("a look");
    assert!(!loaded.contains(&good), "{loaded:?}");
}

/// Redis's own processor time for scripts, in microseconds.
async fn script_time(system: &System) -> u64 {
    let stats: String = system.command(&["INFO", "commandstats"]).await;
    let line =
        stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:")).expect("scripts have run");
    let usec = line.split(',').find_map(|field| field.strip_prefix("usec=")).expect("a time");
    usec.parse().expect("a number")
}

/// The shortest time of several calls with the same requests.
async fn least_time(system: &System, requests: &[Request], check: impl Fn(&Reserved) -> bool) -> u64 {
    let mut least = u64::MAX;
    for _ in 0..9 {
        let before = script_time(system).await;
        let answers = reserve(system.partition(), requests, NO_BACKLOG_MAX, QueueEntries::OfOne)
            .await
            .expect("answers");
        least = least.min(script_time(system).await - before);
        assert!(answers.iter().all(&check), "{answers:?}");
    }
    least
}

#[tokio::test]
async fn who_holds_a_hundred_and_asks_again_costs_redis_about_what_others_do() {
    const HELD: usize = 100;
    const BATCH: usize = 256;
    let system = System::start().await;
    let many = system.coupon("many", 100_000, 100).await;
    let one = system.coupon("one", 100_000, 1).await;
    let keys = system.keys();
    let issued_to = async |user: &str, coupon: &CouponId, count: usize| {
        let ids: Vec<u8> =
            (0..count).flat_map(|_| *IssuanceId::generate(PartitionId::ONE).as_bytes()).collect();
        raw::<()>(&system, &[b"HSET", keys.holders(coupon).as_bytes(), user.as_bytes(), &ids]).await;
        ids
    };
    let held = issued_to("u", &many, HELD).await;
    let same: Vec<_> = (0..BATCH).map(|_| request("u", &many)).collect();
    let others: Vec<_> = (0..BATCH).map(|number| request(&format!("o{number}"), &one)).collect();
    for other in &others {
        issued_to(other.user.as_str(), &one, 1).await;
    }
    let bounded = |answer: &Reserved| {
        let Reserved::AtLimit { issued, in_flight } = answer else { return false };
        let told: Vec<u8> = issued.iter().flat_map(|id| *id.as_bytes()).collect();
        in_flight.is_empty() && told == held[held.len() - TOLD_MAX * 16..]
    };
    let of_same = least_time(&system, &same, bounded).await;
    let of_others = least_time(&system, &others, |answer| matches!(answer, Reserved::AtLimit { .. })).await;
    assert!(of_same <= 2 * of_others, "{of_same} µs instead of {of_others} µs");
}

fn is_admitted(admission: Admission) -> bool {
    matches!(admission, Admission::Admitted(_))
}

#[tokio::test]
async fn a_bucket_of_later_than_now_fills_from_now_on_and_a_damaged_one_is_full() {
    let system = System::start().await;
    let rate = Rate { per_second: 1.0, burst: 4 };
    let partition = Arc::clone(system.backends.partitions.first());
    // A process admits a quarter of the limit without asking Redis.
    let limiter = async || Limiter::start(LimitScope::User, rate, &partition);
    // The bucket must not refill while a slow machine sends requests.
    let slow = async || Limiter::start(LimitScope::User, Rate { per_second: 0.01, burst: 4 }, &partition);
    let admitted = async |limiter: &Limiter, count: usize| {
        let mut admitted = 0;
        for _ in 0..count {
            admitted += usize::from(is_admitted(limiter.admit("u").await));
        }
        admitted
    };
    assert!(admitted(&limiter().await, 4).await >= 1);
    let bucket: Vec<String> = system.command(&["KEYS", "coupon:{limit*}:limit:user:*"]).await;
    let [bucket] = &bucket[..] else { panic!("{bucket:?}") };

    // This process has used up its share and reported it: from now on it asks Redis for each request.
    let asking = limiter().await;
    admitted(&asking, 2).await;
    let later = format!("0.000 {}", at(3_600).as_millisecond());
    system.command::<()>(&["SET", bucket, &later]).await;
    let started = Instant::now();
    let filled = async {
        while !is_admitted(asking.admit("u").await) {
            assert!(started.elapsed() < Duration::from_secs(30), "nothing refills until then");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    filled.await;
    let kept: String = system.command(&["GET", bucket]).await;
    let stamped: i64 = kept.split(' ').nth(1).expect("a time").parse().expect("a number");
    assert!(stamped < at(60).as_millisecond(), "{kept}");

    let others = keys_of_others(&system).await;
    for damaged in ["x", "", "nan 1", "1.0 x", "1.0.0 5"] {
        system.command::<()>(&["SET", bucket, damaged]).await;
        let asking = slow().await;
        assert!((1..=6).contains(&admitted(&asking, 20).await), "{damaged:?}");
    }
    system.command::<()>(&["DEL", bucket]).await;
    system.command::<()>(&["LPUSH", bucket, "of another type"]).await;
    let asking = slow().await;
    let asked = join_all((0..20).map(|number| {
        let (asking, who) = (asking.clone(), if number % 2 == 0 { "u" } else { "v" });
        async move { (who, asking.admit(who).await) }
    }));
    let limited = asked.await.into_iter().filter(|(who, told)| *who == "v" && !is_admitted(*told));
    assert!(limited.count() > 0, "one damaged bucket lets everybody pass");
    assert_eq!(keys_of_others(&system).await, others);
}

async fn keys_of_others(system: &System) -> usize {
    let keys: Vec<String> = system.command(&["KEYS", "coupon:*"]).await;
    keys.iter().filter(|key| !key.contains(":limit:")).count()
}

/// Appends a stream entry that no program of this version can read.
async fn unreadable_entry(system: &System, id: &str) {
    system.command::<()>(&["XADD", &system.keys().stream(), id, "9", "of another version"]).await;
}

#[tokio::test]
async fn the_oldest_that_waits_is_told_whatever_stands_before_it() {
    const DEAD: usize = 105;
    const WAITING: usize = 35;
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 1_000, 1).await;
    let (partition, keys) = (system.partition(), system.keys());
    for number in 0..DEAD {
        system.accepted(&format!("d{number}"), &coupon).await;
    }
    for entry in system.take_entries().await {
        assert!(dead::set_aside(partition, &keys, &entry.entry, entry.id, 3, "why").await.expect("done"));
    }
    assert_eq!(figures(partition).await.expect("figures").oldest_at, None, "dead letters wait for nobody");
    for _ in 0..DEAD {
        unreadable_entry(&system, "*").await;
    }
    let mut accepted = Vec::new();
    for number in 0..WAITING {
        match system.reserve(&format!("w{number}"), &coupon).await {
            Reserved::Accepted(queued) => accepted.push(queued.accepted_at),
            other => panic!("{other:?}"),
        }
    }
    let oldest = async || figures(partition).await.expect("figures").oldest_at;
    assert_eq!(oldest().await, Some(accepted[0]), "never delivered");
    let read: redis::Value = system
        .command(&["XREADGROUP", "GROUP", GROUP, "w", "COUNT", "1000", "STREAMS", &keys.stream(), ">"])
        .await;
    drop(read);
    assert_eq!(oldest().await, Some(accepted[0]), "delivered");
    // A redriven dead letter waits for a decision again.
    let (letters, _) = dead::scan(partition, 0, 1_000).await.expect("the dead letters");
    let first = letters.iter().min_by_key(|letter| letter.in_flight.as_ref().map(|held| held.sequence));
    let first = first.expect("a dead letter");
    assert!(dead::redrive(partition, first.id).await.expect("an answer"));
    assert_eq!(oldest().await, first.in_flight.as_ref().map(|held| held.accepted_at));
    let pending: Vec<redis::Value> =
        system.command(&["XPENDING", &keys.stream(), GROUP, "-", "+", "1000", DEAD_LETTER_CONSUMER]).await;
    assert_eq!(pending.len(), DEAD - 1);
}

#[tokio::test]
async fn a_stream_entry_that_cannot_be_read_is_a_finding_and_no_age() {
    let system = System::start().await;
    system.coupon("c", 10, 1).await;
    let hour_ago = format!("{}-0", at(-3_600).as_millisecond());
    unreadable_entry(&system, &hour_ago).await;
    let told = figures(system.partition()).await.expect("figures");
    assert_eq!((told.length, told.in_flight, told.oldest_age()), (1, 0, Duration::ZERO));
    // The worker cannot read it either.
    let _worker = system.worker();
    eventually("it is delivered", async || (system.queue().await.1 == 1).then_some(())).await;
    assert_eq!(figures(system.partition()).await.expect("figures").oldest_age(), Duration::ZERO);
    let report = system.audited().await;
    let findings: Vec<_> = report.findings().map(|finding| finding.kind.code()).collect();
    assert_eq!(findings, ["entry-unreadable"]);
}
