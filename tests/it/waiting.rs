//! Waiting for an outcome: `?wait`, server-sent events, and the feed that wakes those who wait.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use coupon_system::ids::IssuanceId;
use coupon_system::issuance::settle::{Settlement, settle};
use coupon_system::queue::{Entry, dead};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::helpers::{Answer, System, discarded, eventually};

/// Much longer than a woken waiter takes, much shorter than the longest wait.
const PROMPTLY: Duration = Duration::from_secs(10);

fn spawn_get(system: &System, path: String) -> JoinHandle<(Answer, Instant)> {
    let client = system.client.clone();
    tokio::spawn(async move { (client.get(&path).await, Instant::now()) })
}

fn spawn_post(system: &System, path: &'static str, user: &str, coupon: &str) -> JoinHandle<Answer> {
    let (client, body) = (system.client.clone(), json!({"userId": user, "couponId": coupon}));
    tokio::spawn(async move { client.post(path, body).await })
}

async fn promptly<T>(task: JoinHandle<T>) -> T {
    timeout(PROMPTLY, task).await.expect("it is not held until its deadline").expect("no panic")
}

async fn until_waiting(system: &System, count: usize) {
    eventually(&format!("{count} wait"), async || (system.app.waiting() == count).then_some(())).await;
}

/// Decides what is queued, and settles nothing yet.
async fn decide(system: &System) -> Vec<Settlement> {
    let (keys, entries) = (system.keys(), system.take_entries().await);
    system.decider().decide(&keys, &entries).await.expect("decided").settlements
}

/// Settles this many at once. Returns when each was settled.
async fn settle_all(system: &System, decided: Vec<Settlement>, batch: usize) -> HashMap<IssuanceId, Instant> {
    let mut settled_at = HashMap::new();
    for batch in decided.chunks(batch) {
        settle(system.partition(), &system.keys(), batch).await.expect("settled");
        let now = Instant::now();
        settled_at.extend(batch.iter().map(|settlement| (settlement.decision.id, now)));
    }
    settled_at
}

async fn decide_all(system: &System, batch: usize) -> HashMap<IssuanceId, Instant> {
    let decided = decide(system).await;
    settle_all(system, decided, batch).await
}

/// Writes an operator's rejection of an entry, and settles it.
async fn discard(system: &System, entry: &Entry) {
    system.write(&[discarded(entry)]).await;
    let entries = std::slice::from_ref(entry);
    system.decider().process(&system.keys(), entries).await.expect("it is settled");
}

/// Waits until the API listens to the outcomes.
async fn until_subscribed(system: &System) {
    let channel = system.partition().outcome_channel();
    eventually("the API listens", async || {
        let (_, count): (String, u64) = system.command(&["PUBSUB", "NUMSUB", &channel]).await;
        (count > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_that_waits_is_answered_with_the_user_coupon() {
    let system = System::start().await;
    system.users("u", 1).await;
    system.coupon("c", 5, 1).await;
    system.worker();
    let request = system.client.request("POST", "/user-coupons?wait=20").header("idempotency-key", "k");
    let request = request.json(&json!({"userId": "u0", "couponId": "c"}));
    let again = request.try_clone().expect("it can be repeated");
    let issued = system.client.send(request).await;
    assert_eq!((issued.status, issued.state(), issued.is_replay()), (201, "issued", false), "{issued:?}");
    assert_eq!(issued.header("location"), format!("/user-coupons/u0/{}", issued.id()));
    assert_eq!(issued.body["userCoupon"], issued.header("location"));
    let held = system.client.get(issued.header("location")).await;
    assert_eq!((held.status, &held.body["serial"]), (200, &issued.body["serial"]));
    let repeated = system.client.send(again).await;
    assert_eq!((repeated.status, repeated.is_replay(), &repeated.body), (200, true, &issued.body));
    assert_eq!(system.app.waiting(), 0);
}

#[tokio::test]
async fn a_request_that_waits_and_is_rejected_is_answered_with_the_reason() {
    let system = System::start().await;
    system.users("u", 1).await;
    system.coupon("c", 5, 1).await;
    let waits = spawn_post(&system, "/user-coupons?wait=30", "u0", "c");
    until_waiting(&system, 1).await;
    let polls = spawn_get(&system, format!("/issuances/{}?wait=30", system.take_and_discard().await));
    let (rejected, (polled, _)) = (promptly(waits).await, promptly(polls).await);
    assert_eq!((rejected.status, rejected.code()), (409, "discarded"), "{rejected:?}");
    let link = rejected.body["issuance"].as_str().expect("a link");
    assert_eq!(link, format!("/issuances/{}", polled.id()));
    assert_eq!((polled.status, polled.state()), (200, "rejected"), "reading it is no error");
    assert_eq!(polled.body["problem"]["code"], "discarded");
}

impl System {
    async fn take_and_discard(&self) -> IssuanceId {
        let entries = self.take_entries().await;
        discard(self, &entries[0]).await;
        entries[0].id
    }
}

#[tokio::test]
async fn at_its_deadline_a_request_is_answered_as_if_it_had_not_waited() {
    let system = System::start().await;
    system.users("u", 1).await;
    system.coupon("c", 5, 1).await;
    let started = Instant::now();
    let accepted = promptly(spawn_post(&system, "/user-coupons?wait=1", "u0", "c")).await;
    assert!(started.elapsed() >= Duration::from_secs(1), "it waited");
    assert_eq!((accepted.status, accepted.state(), accepted.is_replay()), (202, "queued", false));
    assert_eq!(accepted.header("location"), format!("/issuances/{}", accepted.id()));
    assert!(!accepted.header("retry-after").is_empty());

    let (polled, _) = promptly(spawn_get(&system, format!("/issuances/{}?wait=1", accepted.id()))).await;
    assert_eq!((polled.status, polled.state()), (200, "queued"));
    assert!(!polled.header("retry-after").is_empty());
    assert_eq!(system.app.waiting(), 0);
    system.drain().await;
}

#[tokio::test]
async fn a_replay_that_waits_is_answered_with_the_outcome_of_the_first_request() {
    let system = System::start().await;
    system.users("u", 1).await;
    system.coupon("c", 5, 1).await;
    let first = system.client.issue("u0", "c", None).await;
    let waits = spawn_post(&system, "/user-coupons?wait=30", "u0", "c");
    until_waiting(&system, 1).await;
    decide_all(&system, 1).await;
    let issued = promptly(waits).await;
    assert_eq!((issued.status, issued.is_replay(), issued.id()), (201, true, first.id()));
}

#[tokio::test]
async fn a_wait_is_a_number_of_seconds_and_a_longer_one_is_brought_down() {
    let system = System::start().await;
    system.users("u", 1).await;
    let coupon = system.coupon("c", 5, 1).await;
    let id = system.accepted("u0", &coupon).await;
    for (method, path) in [("GET", format!("/issuances/{id}")), ("POST", "/user-coupons".to_owned())] {
        for query in ["wait=x", "wait=", "wait=-1", "wait=1.5", "wait=1&wait=1", "wait=1&more=1"] {
            let request = system.client.request(method, &format!("{path}?{query}"));
            let refused = system.client.send(request.json(&json!({"userId": "u0", "couponId": "c"}))).await;
            assert_eq!((refused.status, refused.code()), (422, "invalid"), "{method} {query}");
            let parameter = if query.contains("more") { "more" } else { "wait" };
            assert_eq!(refused.body["errors"][0]["parameter"], parameter, "{method} {query}");
        }
    }
    assert_eq!(system.client.get(&format!("/issuances/{id}?wait=0")).await.state(), "queued");
    decide_all(&system, 1).await;
    for wait in ["31", "99999999999999999999999"] {
        let (polled, _) = promptly(spawn_get(&system, format!("/issuances/{id}?wait={wait}"))).await;
        assert_eq!((polled.status, polled.state()), (200, "issued"));
    }
}

#[tokio::test]
async fn nobody_waits_for_what_was_never_accepted() {
    let system = System::start().await;
    let id = IssuanceId::generate(system.partition().id());
    for path in [format!("/issuances/{id}?wait=30"), format!("/issuances/{id}/events")] {
        let (missing, _) = promptly(spawn_get(&system, path)).await;
        assert_eq!((missing.status, missing.code()), (404, "issuance-not-found"));
    }
    let nonsense = system.client.get("/issuances/nonsense/events").await;
    assert_eq!((nonsense.status, nonsense.code()), (404, "issuance-not-found"));
}

/// Waiting polls for that many issuances, all registered.
async fn waiting_polls(system: &System, count: usize) -> HashMap<IssuanceId, JoinHandle<(Answer, Instant)>> {
    let coupon = system.coupon("c", 1_000_000, 1).await;
    let mut polls = HashMap::new();
    for user in 0..count {
        let id = system.accepted(&format!("u{user}"), &coupon).await;
        polls.insert(id, spawn_get(system, format!("/issuances/{id}?wait=30")));
    }
    until_waiting(system, count).await;
    polls
}

/// How long each poll took from the settling of its issuance to its answer, shortest first.
async fn delays(
    polls: HashMap<IssuanceId, JoinHandle<(Answer, Instant)>>,
    settled_at: &HashMap<IssuanceId, Instant>,
) -> Vec<Duration> {
    let mut delays = Vec::new();
    for (id, poll) in polls {
        let (answer, answered_at) = promptly(poll).await;
        assert_eq!((answer.status, answer.state()), (200, "issued"), "{answer:?}");
        delays.push(answered_at.saturating_duration_since(settled_at[&id]));
    }
    delays.sort_unstable();
    delays
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_waiting_polls_wake_within_fifty_milliseconds_of_the_decision() {
    const POLLS: usize = 1_000;
    /// Small, so that the test measures waking, and not how fast this process, which is also the thousand clients,
    /// handles five hundred answers at once.
    const BATCH: usize = 50;
    let system = System::start().await;
    until_subscribed(&system).await;
    let polls = waiting_polls(&system, POLLS).await;
    let settled_at = decide_all(&system, BATCH).await;
    let delays = delays(polls, &settled_at).await;
    let (median, longest) = (delays[POLLS / 2], delays[POLLS - 1]);
    eprintln!(
        "{POLLS} waiting polls: median {median:?}, p99 {:?}, longest {longest:?}",
        delays[POLLS * 99 / 100]
    );
    assert!(median <= Duration::from_millis(50), "median {median:?}, longest {longest:?}");
    assert_eq!(system.app.waiting(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_feed_delays_those_who_wait_by_about_a_second_at_most() {
    let system = System::start().await;
    until_subscribed(&system).await;
    let polls = waiting_polls(&system, 100).await;
    let decided = decide(&system).await;
    system.command::<redis::Value>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    let delays = delays(polls, &settle_all(&system, decided, 50).await).await;
    eprintln!("the feed lost: median {:?}, longest {:?}", delays[50], delays[99]);
    assert!(delays[99] < Duration::from_secs(2), "longest {:?}", delays[99]);
    until_subscribed(&system).await;
    assert_eq!(system.app.waiting(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_feed_those_who_wait_are_found_by_a_few_calls_a_second() {
    const POLLS: usize = 500;
    let system = System::start().await;
    until_subscribed(&system).await;
    system.command::<redis::Value>(&["ACL", "SETUSER", "default", "-subscribe"]).await;
    system.command::<redis::Value>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    let polls = waiting_polls(&system, POLLS).await;

    let before = system.scripts_run().await;
    let looks = Duration::from_millis(2_500);
    let settled = timeout(looks, std::future::pending::<()>()).await;
    assert!(settled.is_err() && system.app.waiting() == POLLS);
    let calls = system.scripts_run().await - before;
    assert!(calls < 50, "{calls} calls for two or three looks and the keeper's");

    let decided = decide(&system).await;
    let delays = delays(polls, &settle_all(&system, decided, 50).await).await;
    eprintln!("no feed: median {:?}, longest {:?}", delays[POLLS / 2], delays[POLLS - 1]);
    assert!(delays[POLLS - 1] < Duration::from_secs(2), "longest {:?}", delays[POLLS - 1]);
}

#[tokio::test]
async fn garbage_on_the_channel_harms_nothing() {
    let system = System::start().await;
    until_subscribed(&system).await;
    let mut polls = waiting_polls(&system, 1).await;
    let (id, poll) = polls.drain().next().expect("one");
    let channel = system.partition().outcome_channel();
    let halves = format!("{id} I 1");
    let other_way = format!("{id} I 01 1 1 1 c u0");
    let long = "x".repeat(100_000);
    let lines = format!("garbage\n\n{halves}\nepoch of");
    for garbage in ["", "garbage", "\0\u{1}", &halves, &other_way, &lines, &long] {
        system.command::<redis::Value>(&["PUBLISH", &channel, garbage]).await;
    }
    assert_eq!(system.client.get(&format!("/issuances/{id}")).await.state(), "queued");
    assert_eq!(system.app.waiting(), 1, "it waits on");
    decide_all(&system, 1).await;
    assert_eq!(promptly(poll).await.0.state(), "issued");
}

#[tokio::test]
async fn what_waits_for_an_issuance_that_redis_lost_is_told_so() {
    let system = System::start().await;
    let mut polls = waiting_polls(&system, 1).await;
    let (id, poll) = polls.drain().next().expect("one");
    let mut stream = EventStream::open(&system, id).await;
    assert_eq!(stream.next().await.expect("an event").0, "queued");
    system.command::<redis::Value>(&["FLUSHALL"]).await;
    let (lost, _) = promptly(poll).await;
    assert_eq!((lost.status, lost.code()), (404, "issuance-not-found"), "{lost:?}");
    assert_eq!(stream.next().await, None);
}

/// Server-sent events, read one by one.
struct EventStream {
    response: reqwest::Response,
    read: String,
}

impl EventStream {
    async fn open(system: &System, id: IssuanceId) -> Self {
        let request = system.client.request("GET", &format!("/issuances/{id}/events"));
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        EventStream { response, read: String::new() }
    }

    /// The name and the data of the next event; `None` at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.read.split_once("\n\n") {
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name));
                    line.map(|value| value.trim_start().to_owned())
                };
                let told = field("event:").zip(field("data:"));
                self.read = rest.to_owned();
                if let Some((name, data)) = told {
                    return Some((name, serde_json::from_str(&data).expect("JSON")));
                }
                continue;
            }
            let chunk =
                timeout(PROMPTLY, self.response.chunk()).await.expect("something").expect("no error")?;
            self.read.push_str(std::str::from_utf8(&chunk).expect("text"));
        }
    }
}

#[tokio::test]
async fn a_stream_tells_that_it_is_queued_then_the_outcome_and_ends() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    let (issued, rejected) = (system.accepted("u0", &coupon).await, system.accepted("u1", &coupon).await);
    let (mut first, mut second) =
        (EventStream::open(&system, issued).await, EventStream::open(&system, rejected).await);
    for (stream, id, ahead) in [(&mut first, issued, 0), (&mut second, rejected, 1)] {
        let (name, told) = stream.next().await.expect("an event");
        assert_eq!((name.as_str(), told["state"].as_str()), ("queued", Some("queued")));
        assert_eq!((told["id"].as_str(), &told["ahead"]), (Some(&*id.to_string()), &json!(ahead)));
        assert!(told["pollAfterMs"].is_u64() && told["estimatedWaitMs"].is_u64());
    }
    let entries = system.take_entries().await;
    discard(&system, &entries[1]).await;
    system.decider().process(&system.keys(), &entries[..1]).await.expect("it is decided");
    for (mut stream, id, state) in [(first, issued, "issued"), (second, rejected, "rejected")] {
        let told = loop {
            let (name, told) = stream.next().await.expect("an event");
            if name != "queued" {
                assert_eq!((name.as_str(), told["state"].as_str()), (state, Some(state)));
                break told;
            }
        };
        let mut polled = system.client.get(&format!("/issuances/{id}")).await.body;
        if state == "rejected" {
            polled["problem"]["requestId"] = told["problem"]["requestId"].clone();
        }
        assert_eq!(told, polled, "the same as a poll tells");
        assert_eq!(stream.next().await, None, "it ends");
        // A late client receives only the outcome.
        let mut late = EventStream::open(&system, id).await;
        assert_eq!(late.next().await.expect("an event").0, state);
        assert_eq!(late.next().await, None);
    }
    until_waiting(&system, 0).await;
}

#[tokio::test]
async fn what_a_stream_says_to_be_ahead_never_grows() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    for user in ["u0", "u1"] {
        system.accepted(user, &coupon).await;
    }
    let id = system.accepted("u2", &coupon).await;
    let mut stream = EventStream::open(&system, id).await;
    assert_eq!(stream.next().await.expect("an event").1["ahead"], 2);
    // The count is one less while the issuance is set aside, and one more once it is redriven.
    let (keys, entries) = (system.keys(), system.take_entries().await);
    let first = &entries[0];
    assert!(
        dead::set_aside(system.partition(), &keys, &first.entry, first.id, 3, "a test").await.expect("it is")
    );
    assert_eq!(stream.next().await.expect("an event").1["ahead"], 1);
    assert!(dead::redrive(system.partition(), first.id).await.expect("it is"));
    assert_eq!(system.client.get(&format!("/issuances/{id}")).await.body["ahead"], 2, "it grew");
    let looks = Duration::from_millis(2_500);
    assert!(timeout(looks, stream.next()).await.is_err(), "the stream says nothing of it");
    system.decider().process(&keys, &entries[..2]).await.expect("decided");
    assert_eq!(stream.next().await.expect("an event").1["ahead"], 0);
    system.decider().process(&keys, &entries[2..]).await.expect("decided");
    assert_eq!(stream.next().await.expect("an event").0, "issued");
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn an_api_that_stops_wakes_its_waiters_at_once() {
    let mut system = System::start().await;
    system.leaves_in_flight();
    system.users("u", 1).await;
    let coupon = system.coupon("c", 5, 1).await;
    let id = system.accepted("other", &coupon).await;
    let posts = spawn_post(&system, "/user-coupons?wait=30", "u0", "c");
    let polls = spawn_get(&system, format!("/issuances/{id}?wait=30"));
    let mut stream = EventStream::open(&system, id).await;
    assert_eq!(stream.next().await.expect("an event").0, "queued");
    until_waiting(&system, 3).await;
    let started = Instant::now();
    system.stop().await;
    assert!(started.elapsed() < Duration::from_secs(3), "it took {:?}", started.elapsed());
    let accepted = promptly(posts).await;
    assert_eq!((accepted.status, accepted.state()), (202, "queued"));
    let (polled, _) = promptly(polls).await;
    assert_eq!((polled.status, polled.state()), (200, "queued"));
    assert_eq!(stream.next().await, None);
    assert_eq!(system.app.waiting(), 0);
}

#[tokio::test]
async fn a_client_that_goes_leaves_no_waiter_behind() {
    let system = System::start().await;
    let polls = waiting_polls(&system, 20).await;
    let streamed = *polls.keys().next().expect("one");
    let mut stream = EventStream::open(&system, streamed).await;
    stream.next().await.expect("an event");
    until_waiting(&system, 21).await;
    for poll in polls.into_values() {
        poll.abort();
    }
    drop(stream);
    until_waiting(&system, 0).await;
    system.drain().await;
}
