//! Examples that generated operations do not reach: full batches, full memory, certificates that do not fit, and keys
//! of the wrong type.

use crate::helpers::native;
use std::collections::BTreeSet;

use coupon_system::Failure;
use coupon_system::coupon::{Stock, stock};
use coupon_system::ids::{CouponId, IssuanceId};
use coupon_system::issuance::lookup::read_in_flight;
use coupon_system::issuance::reassign::{Reassigned, reassign};
use coupon_system::issuance::reserve::{KEYS_REMEMBERED, QueueEntries, Request, Reserved, reserve};
use coupon_system::issuance::settle::{Settled, Settlement, settle};
use coupon_system::issuance::{Decision, Outcome, Reason};
use coupon_system::queue::Entry;
use coupon_system::recovery::{CertifyOutcome, LoadOutcome, RecoveryMode, RecoveryOutcome, ignore_progress};
use coupon_system::redis::keys::{EpochKeys, certificate};
use tokio_util::sync::CancellationToken;

use super::bench::{ScriptBench, new_id};
use super::model::Offer;
use super::operations::{NO_BACKLOG_MAX, OperationId, made_of};

fn request(user: &str, coupon: &CouponId) -> Request {
    Request {
        id: new_id(),
        coupon: coupon.clone(),
        user: user.parse().expect("an id"),
        key: None,
        trace: None,
    }
}

fn issued(entry: &Entry, serial: u32) -> Settlement {
    decided(entry, Outcome::Issued { unit: native(serial), nth: 1 })
}

fn given_back(entry: &Entry) -> Settlement {
    decided(entry, Outcome::Rejected { reason: Reason::Discarded, unit: entry.unit, lost: false })
}

fn decided(entry: &Entry, outcome: Outcome) -> Settlement {
    let Entry { entry, id, coupon, user, accepted_at, .. } = entry.clone();
    let decision = Decision { id, coupon, user, outcome, accepted_at, decided_at: accepted_at };
    Settlement { entry, of: 1, decision, holds: Vec::new() }
}

/// Accepts `count` requests, each of another user, and delivers them.
async fn queued(bench: &ScriptBench, coupon: &CouponId, count: usize) -> Vec<Entry> {
    let requests: Vec<_> = (0..count).map(|user| request(&format!("u{user}"), coupon)).collect();
    let answers = bench.reserve(&requests).await;
    assert!(answers.iter().all(|answer| matches!(answer, Reserved::Accepted(_))), "{answers:?}");
    bench.deliver(count).await
}

#[tokio::test]
async fn of_a_full_batch_exactly_as_many_are_accepted_as_there_are_units() {
    let bench = ScriptBench::start().await;
    let coupon = bench.coupon("c", 100, 1).await;
    let requests: Vec<_> = (0..128).map(|user| request(&format!("u{user}"), &coupon)).collect();
    let answers = bench.reserve(&requests).await;
    let (first, rest) = answers.split_at(100);
    assert!(first.iter().all(|answer| matches!(answer, Reserved::Accepted(_))), "{first:?}");
    assert_eq!(rest, vec![Reserved::SoldOut; 28]);
    let ids: Vec<_> = requests[..100].iter().map(|request| request.id).collect();
    let serials: BTreeSet<_> = bench.serials(&ids).await.into_iter().flatten().collect();
    assert_eq!(serials, (1..=100).map(native).collect());
    assert_eq!(bench.queue().await, (100, 0, 100));
    let stock = Stock { total: 100, remaining: 0, reserved: 100, issued: 0 };
    assert_eq!(bench.stocks(&[coupon]).await, [Some(stock)]);
}

#[tokio::test]
async fn when_memory_has_run_out_nothing_is_reserved_and_what_is_queued_is_settled() {
    let bench = ScriptBench::start().await;
    let coupon = bench.coupon("c", 5, 1).await;
    let entries = queued(&bench, &coupon, 3).await;
    bench.run::<()>("CONFIG", &["SET", "maxmemory", "1"]).await;

    let before = bench.everything().await;
    let refused =
        reserve(bench.partition(), &[request("late", &coupon)], NO_BACKLOG_MAX, QueueEntries::OfOne).await;
    let failure = refused.expect_err("it needs memory");
    assert!(matches!(failure, Failure::Redis { operation: "reserve", .. }), "{failure:?}");
    assert_eq!(bench.everything().await, before);

    assert_eq!(bench.serials(&[entries[0].id]).await, [Some(native(1))]);
    let (keys, lost) = (bench.keys(), &entries[2]);
    let fresh = reassign(bench.partition(), &keys, &coupon, lost.id, &lost.entry, lost.unit).await;
    assert_eq!(fresh.expect("an answer"), Reassigned::To(native(4)));
    let outcomes = [issued(&entries[0], 1), given_back(&entries[1]), issued(lost, 4)];
    let settled = settle(bench.partition(), &keys, &outcomes).await.expect("answers");
    assert_eq!(settled, [Settled::Now; 3]);
    assert_eq!(bench.queue().await, (0, 0, 0));
    // Another issuance has unit 3; unit 2 is free again.
    let stock = Stock { total: 5, remaining: 2, reserved: 1, issued: 2 };
    assert_eq!(bench.stocks(std::slice::from_ref(&coupon)).await, [Some(stock)]);

    bench.run::<()>("CONFIG", &["SET", "maxmemory", "0"]).await;
    let answers = bench.reserve(&[request("late", &coupon)]).await;
    assert!(matches!(answers[..], [Reserved::Accepted(_)]), "{answers:?}");
}

/// Calls every script. Returns how each failed.
async fn failures(
    bench: &ScriptBench,
    coupon: &CouponId,
    entry: &Entry,
) -> Vec<(&'static str, Option<Failure>)> {
    let (partition, keys) = (bench.partition(), bench.keys());
    let unloaded = Offer::new("another".parse().expect("an id"), 1, 1).record();
    let old = entry.unit;
    vec![
        (
            "reserve",
            reserve(partition, &[request("late", coupon)], NO_BACKLOG_MAX, QueueEntries::OfOne).await.err(),
        ),
        ("settle", settle(partition, &keys, &[given_back(entry)]).await.err()),
        ("reassign", reassign(partition, &keys, coupon, entry.id, &entry.entry, old).await.err()),
        ("look up", read_in_flight(partition, &[entry.id]).await.err()),
        ("stock", stock::read(partition, std::slice::from_ref(coupon)).await.err()),
        ("load", bench.backends.loaders().first().load(&unloaded.id).await.err()),
    ]
}

#[tokio::test]
async fn without_a_certificate_that_fits_every_script_refuses_and_writes_nothing() {
    let bench = ScriptBench::start().await;
    let certificate = certificate(bench.partition().id());
    let nobody = "f".repeat(40);
    let spoilers: [(&str, Vec<&str>); 4] = [
        ("HSET", vec![&certificate, "state", "closed"]),
        ("HSET", vec![&certificate, "run_id", &nobody]),
        ("HSET", vec![&certificate, "replid", &nobody]),
        ("DEL", vec![&certificate]),
    ];
    for (command, args) in spoilers {
        bench.empty().await;
        let coupon = bench.coupon("c", 5, 1).await;
        let entries = queued(&bench, &coupon, 1).await;
        bench.run::<()>(command, &args).await;
        let before = bench.everything().await;
        for (script, failure) in failures(&bench, &coupon, &entries[0]).await {
            let failure = failure.as_ref().map(Failure::root);
            assert!(matches!(failure, Some(Failure::Uncertified)), "{script} after {args:?}: {failure:?}");
        }
        assert_eq!(bench.everything().await, before, "after {args:?}");
    }
}

#[tokio::test]
async fn what_was_read_under_an_older_epoch_changes_nothing_under_the_open_one() {
    let bench = ScriptBench::start().await;
    let (coupon, entries, old) = rebuilt_elsewhere(&bench).await;
    let entry = &entries[0];
    let before = bench.everything().await;
    let settled = settle(bench.partition(), &old, &[given_back(entry)]).await.expect("an answer");
    assert_eq!(settled, [Settled::AnotherEpoch]);
    let moved = reassign(bench.partition(), &old, &coupon, entry.id, &entry.entry, entry.unit).await;
    assert_eq!(moved.expect("an answer"), Reassigned::Gone);
    // Under the open epoch it is another entry that the issuance is in flight with.
    let settled = settle(bench.partition(), &bench.keys(), &[given_back(entry)]).await.expect("an answer");
    assert_eq!(settled, [Settled::GuardedOff]);
    assert_eq!(bench.everything().await, before);
}

#[tokio::test]
async fn reserve_follows_to_the_open_epoch() {
    let bench = ScriptBench::start().await;
    let (coupon, entries, old) = rebuilt_elsewhere(&bench).await;
    let again = Request {
        id: new_id(),
        coupon: coupon.clone(),
        user: entries[0].user.clone(),
        key: None,
        trace: None,
    };
    let answers = bench.reserve(&[again, request("late", &coupon)]).await;
    assert!(matches!(&answers[0], Reserved::Replayed(queued) if queued.id == entries[0].id), "{answers:?}");
    assert!(matches!(&answers[1], Reserved::Accepted(_)), "{answers:?}");
    assert_nothing_under(&bench, &old).await;
    assert_eq!(bench.queue().await, (2, 0, 2));
}

#[tokio::test]
async fn readers_follow_to_the_open_epoch() {
    for look_up_first in [true, false] {
        let bench = ScriptBench::start().await;
        let (coupon, entries, old) = rebuilt_elsewhere(&bench).await;
        let before = bench.everything().await;
        if look_up_first {
            assert_eq!(bench.serials(&[entries[0].id]).await, [entries[0].unit]);
        } else {
            let stock = Stock { total: 5, remaining: 4, reserved: 1, issued: 0 };
            assert_eq!(bench.stocks(&[coupon]).await, [Some(stock)]);
        }
        assert_ne!(bench.keys(), old);
        assert_eq!(bench.everything().await, before);
    }
}

#[tokio::test]
async fn a_load_that_begins_under_an_older_epoch_writes_only_under_the_open_one() {
    let bench = ScriptBench::start().await;
    let (_, _, old) = rebuilt_elsewhere(&bench).await;
    let unloaded = Offer::new("another".parse().expect("an id"), 1, 1).record();
    assert_eq!(bench.load(&unloaded).await, LoadOutcome::Now);
    assert_nothing_under(&bench, &old).await;
}

/// Puts one issuance in flight, and lets another process open a new epoch. Returns the keys of the older epoch, which
/// this process knows.
async fn rebuilt_elsewhere(bench: &ScriptBench) -> (CouponId, Vec<Entry>, EpochKeys) {
    let coupon = bench.coupon("c", 5, 1).await;
    let entries = queued(bench, &coupon, 1).await;
    let old = bench.keys();
    let another = bench.another_process().await;
    let recovered = another
        .recovery_supervisors()
        .next()
        .expect("that of partition 0")
        .recover(RecoveryMode::Rebuild, &ignore_progress(), &CancellationToken::new())
        .await;
    assert!(
        matches!(recovered, Ok(CertifyOutcome::Recovered(RecoveryOutcome::Rebuilt { .. }))),
        "{recovered:?}"
    );
    assert_eq!(bench.keys(), old);
    assert_ne!(another.partitions.first().keys(), old);
    assert_nothing_under(bench, &old).await;
    (coupon, entries, old)
}

async fn assert_nothing_under(bench: &ScriptBench, keys: &EpochKeys) {
    let held = bench.everything().await;
    let old: Vec<_> = held.keys().filter(|key| key.starts_with(keys.prefix())).collect();
    assert!(old.is_empty(), "{old:?}");
}

/// The keys that a script touches, by name.
fn key(keys: &EpochKeys, coupon: &CouponId, name: &str) -> String {
    match name {
        "stream" => keys.stream(),
        "in flight" => keys.in_flight(),
        "dead" => keys.dead(),
        "counters" => keys.counters(),
        "coupon" => keys.coupon(coupon),
        "holders" => keys.holders(coupon),
        "free" => keys.free(coupon),
        other => panic!("no key is called {other}"),
    }
}

/// Three in flight, the first of them settled as rejected; and one of the keys is a string now.
async fn with_a_string_for(bench: &ScriptBench, name: &str) -> (CouponId, Vec<Entry>) {
    bench.empty().await;
    let coupon = bench.coupon("c", 5, 1).await;
    let mut entries = queued(bench, &coupon, 3).await;
    let first = entries.remove(0);
    let settled = settle(bench.partition(), &bench.keys(), &[given_back(&first)]).await.expect("an answer");
    assert_eq!(settled, [Settled::Now]);
    let key = key(&bench.keys(), &coupon, name);
    bench.run::<()>("SET", &[&key, "something else"]).await;
    (coupon, entries)
}

#[tokio::test]
async fn reserve_fails_before_its_first_write_when_a_key_is_of_a_wrong_type() {
    let bench = ScriptBench::start().await;
    for name in ["stream", "in flight", "dead", "counters"] {
        let (coupon, _) = with_a_string_for(&bench, name).await;
        let before = bench.everything().await;
        // More units than were given back, so that the script takes some from each place.
        let requests = ["a", "b"].map(|user| request(user, &coupon));
        let answered = reserve(bench.partition(), &requests, NO_BACKLOG_MAX, QueueEntries::OfOne).await;
        assert!(matches!(answered, Err(Failure::Damaged { .. })), "{name}: {answered:?}");
        assert_eq!(bench.everything().await, before, "{name}");
    }
    for name in ["coupon", "holders", "free"] {
        let (coupon, _) = with_a_string_for(&bench, name).await;
        let before = bench.everything().await;
        let answered = bench.reserve(&["a", "b"].map(|user| request(user, &coupon))).await;
        assert!(matches!(answered[..], [Reserved::Damaged(_), Reserved::Damaged(_)]), "{name}: {answered:?}");
        assert_eq!(bench.everything().await, before, "{name}");
    }
}

#[tokio::test]
async fn reassign_fails_before_its_first_write_when_a_key_is_of_a_wrong_type() {
    let bench = ScriptBench::start().await;
    for name in ["in flight", "coupon", "free"] {
        let (coupon, entries) = with_a_string_for(&bench, name).await;
        let before = bench.everything().await;
        let Entry { id, entry, unit: serial, .. } = &entries[0];
        let answered = reassign(bench.partition(), &bench.keys(), &coupon, *id, entry, *serial).await;
        assert!(matches!(answered, Err(Failure::Damaged { .. })), "{name}: {answered:?}");
        assert_eq!(bench.everything().await, before, "{name}");
    }
}

#[tokio::test]
async fn settle_fails_before_its_first_write_when_a_key_is_of_a_wrong_type() {
    let bench = ScriptBench::start().await;
    for name in ["stream", "in flight", "dead", "counters"] {
        let (_, entries) = with_a_string_for(&bench, name).await;
        let before = bench.everything().await;
        let outcomes =
            [issued(&entries[0], entries[0].unit.expect("a unit").serial()), given_back(&entries[1])];
        let answered = settle(bench.partition(), &bench.keys(), &outcomes).await;
        assert!(matches!(answered, Err(Failure::Damaged { .. })), "{name}: {answered:?}");
        assert_eq!(bench.everything().await, before, "{name}");
    }
}

#[tokio::test]
async fn what_is_decided_of_a_coupon_whose_keys_are_of_a_wrong_type_is_settled_and_its_accounts_are_left_alone()
 {
    let bench = ScriptBench::start().await;
    for name in ["coupon", "holders", "free"] {
        let (coupon, entries) = with_a_string_for(&bench, name).await;
        let keys = bench.keys();
        let of_coupon = async || {
            let mut held = bench.everything().await;
            held.retain(|key, _| key.ends_with(&format!(":{coupon}")));
            held
        };
        let before = of_coupon().await;
        let outcomes =
            [issued(&entries[0], entries[0].unit.expect("a unit").serial()), given_back(&entries[1])];
        let answered = settle(bench.partition(), &keys, &outcomes).await.expect("answers");
        assert_eq!(answered, [Settled::Now; 2], "{name}");
        assert_eq!(bench.queue().await, (0, 0, 0), "{name}");
        assert_eq!(of_coupon().await, before, "{name}");
    }
}

#[tokio::test]
async fn a_unit_that_the_ledger_issued_is_taken_though_it_was_never_handed_out() {
    let bench = ScriptBench::start().await;
    let coupon = bench.coupon("c", 2, 1).await;
    let entries = queued(&bench, &coupon, 1).await;
    // An insert of an epoch whose data was lost gave it unit 2 in the ledger, not unit 1.
    let settled =
        settle(bench.partition(), &bench.keys(), &[issued(&entries[0], 2)]).await.expect("an answer");
    assert_eq!(settled, [Settled::Now]);
    assert_eq!(bench.free(&coupon).await, BTreeSet::from([native(1)]));
    let stock = Stock { total: 2, remaining: 1, reserved: 0, issued: 1 };
    assert_eq!(bench.stocks(&[coupon]).await, [Some(stock)]);
}

#[tokio::test]
async fn what_is_in_flight_for_a_coupon_that_is_not_loaded_is_settled_and_its_coupon_stays_away() {
    let bench = ScriptBench::start().await;
    let coupon = bench.coupon("c", 3, 1).await;
    let keyed = made_of("c", "u9", OperationId::Key("k"));
    assert!(matches!(bench.reserve(&[keyed]).await[..], [Reserved::Accepted(_)]));
    let entries = [bench.deliver(1).await, queued(&bench, &coupon, 1).await].concat();
    let keys = bench.keys();
    let of_coupon = [keys.coupon(&coupon), keys.holders(&coupon), keys.free(&coupon)];
    let of_coupon: Vec<_> = of_coupon.iter().map(String::as_str).collect();
    bench.run::<()>("DEL", &of_coupon).await;

    let outcomes = [given_back(&entries[0]), issued(&entries[1], 2)];
    let settled = settle(bench.partition(), &keys, &outcomes).await.expect("answers");
    assert_eq!(settled, [Settled::Now; 2]);
    assert_eq!(bench.queue().await, (0, 0, 0));
    assert_eq!(bench.run::<usize>("EXISTS", &of_coupon).await, 0);
}

#[tokio::test]
async fn a_key_is_remembered_until_as_many_requests_were_accepted_as_is_promised_and_not_for_ever() {
    let bench = ScriptBench::start().await;
    for coupon in ["a", "b"] {
        bench.coupon(coupon, 100, 10).await;
    }
    let keys = bench.keys();
    let accept = async |coupon: &str, user: &str, key| {
        let answer = bench.reserve(&[made_of(coupon, user, OperationId::Key(key))]).await.remove(0);
        matches!(answer, Reserved::Accepted(_))
    };
    let refuses = async |user: &str, key| {
        let answer = bench.reserve(&[made_of("b", user, OperationId::Key(key))]).await.remove(0);
        answer == Reserved::KeyReused
    };
    let skip_to = async |accepted: u64| {
        bench.run::<()>("HSET", &[&keys.counters(), "accepted", &accepted.to_string()]).await;
    };
    assert!(accept("a", "u0", "k0").await && refuses("u0", "k0").await);
    // The same holds within one batch.
    let both = bench.reserve(&["a", "b"].map(|coupon| made_of(coupon, "u3", OperationId::Key("k0")))).await;
    assert!(matches!(both[..], [Reserved::Accepted(_), Reserved::KeyReused]), "{both:?}");
    skip_to(KEYS_REMEMBERED - 1).await;
    assert!(accept("a", "u1", "k0").await, "the last one of this turn");
    assert!(accept("a", "u2", "k0").await, "the first one of the next");
    assert!(refuses("u0", "k0").await && refuses("u1", "k0").await && refuses("u2", "k0").await);
    skip_to(2 * KEYS_REMEMBERED - 1).await;
    assert!(refuses("u1", "k0").await, "as many as is promised came after it");
    assert!(accept("a", "u0", "k1").await, "the last one of that turn");
    assert!(refuses("u2", "k0").await && refuses("u0", "k1").await);
    assert!(accept("b", "u1", "k0").await, "it is forgotten");
    assert_eq!(bench.run::<usize>("HLEN", &[&keys.used_keys()[0]]).await, 1);
}

#[tokio::test]
async fn where_used_keys_cannot_be_remembered_requests_are_accepted_all_the_same() {
    let bench = ScriptBench::start().await;
    bench.coupon("a", 100, 10).await;
    for key in bench.keys().used_keys() {
        bench.run::<()>("SET", &[&key, "x"]).await;
    }
    let answer = bench.reserve(&[made_of("a", "u0", OperationId::Key("k0"))]).await.remove(0);
    assert!(matches!(answer, Reserved::Accepted(_)), "{answer:?}");
}

#[tokio::test]
async fn outcomes_are_announced_together_each_once_and_what_is_guarded_off_is_not() {
    let bench = ScriptBench::start().await;
    let coupon = bench.coupon("c", 3, 1).await;
    let entries = queued(&bench, &coupon, 2).await;
    let channel = bench.partition().outcome_channel();
    let mut feed = bench.partition().client().subscribe(&channel).await.expect("it listens");

    let (issued, rejected) = (issued(&entries[0], 1), given_back(&entries[1]));
    let stale = Settlement { entry: "0-1".to_owned(), ..issued.clone() };
    let batch = [stale, issued.clone(), rejected, issued];
    let settled = settle(bench.partition(), &bench.keys(), &batch).await.expect("answers");
    assert_eq!(settled, [Settled::GuardedOff, Settled::Now, Settled::Now, Settled::GuardedOff]);
    bench.run::<()>("PUBLISH", &[&channel, "end"]).await;

    let mut announced: Vec<String> = Vec::new();
    while announced.last().is_none_or(|text| text != "end") {
        announced.push(feed.next().await.expect("a message").get_payload().expect("text"));
    }
    announced.pop();
    let at = |entry: &Entry| entry.accepted_at.as_millisecond();
    let line = |entry: &Entry, outcome: &str| {
        let (id, at) = (entry.id, at(entry));
        format!("{id} {outcome} {at} {at} c {}", entry.user)
    };
    assert_eq!(announced, [line(&entries[0], "I 1 1") + "\n" + &line(&entries[1], "R discarded 2 0")]);
}

#[tokio::test]
async fn an_issuance_that_never_was_is_found_nowhere() {
    let bench = ScriptBench::start().await;
    let nobodys: Vec<IssuanceId> = (0..256).map(|_| new_id()).collect();
    let found = read_in_flight(bench.partition(), &nobodys).await.expect("a look");
    assert!(found.iter().all(|one| matches!(one, Ok(None))));
}
