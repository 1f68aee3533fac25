//! An API stops under load, behind a balancer that notices late.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinSet;

use super::api;
use crate::helpers::{Client, System, send};

/// Between two requests, however the ones before them fare.
const REQUEST_EVERY: Duration = Duration::from_millis(10);
/// Requests before the API is asked to stop.
const CALM: usize = 200;
/// How late the balancer notices.
const NOTICED_AFTER: Duration = Duration::from_secs(3);
/// From when on the API ends each connection with its next answer, with room for a busy machine: clients that keep their
/// connections come to another API in time.
const ENDING_AFTER: Duration = Duration::from_secs(2);
/// How long the API serves on, with room for a busy machine.
const DELAY_SECONDS: &str = "8";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_stops_fails_no_request_of_a_balancer_that_notices_three_seconds_late() {
    let system = System::start().await;
    let users = system.users("u", 100).await;
    system.coupon("c", 10_000, 100).await;
    let (mut stopping, address) = api(&system, &["--shutdown-delay", DELAY_SECONDS]).await;
    let (_other, other) = api(&system, &[]).await;
    // Each has clients that keep their connections, and such that open one for each request. A refused connection, or
    // one that breaks, panics in them.
    let keeping = [Client::new(address), Client::new(other)];
    let closing = [Client::new(address), Client::new(other)];

    let mut requests = JoinSet::new();
    let mut asked: Option<Instant> = None;
    let mut ticks = tokio::time::interval(REQUEST_EVERY);
    for number in 0.. {
        ticks.tick().await;
        let since_asked = asked.map(|at| at.elapsed());
        let to = if since_asked.is_some_and(|since| since >= NOTICED_AFTER) { 1 } else { number % 2 };
        let is_ending = to == 0 && since_asked.is_some_and(|since| since >= ENDING_AFTER);
        let (clients, connection) =
            if number % 4 < 2 { (&keeping, "keep-alive") } else { (&closing, "close") };
        let client = clients[to].clone();
        let body = json!({"userId": users[number % users.len()], "couponId": "c"});
        let request = client.request("POST", "/user-coupons").header("connection", connection);
        let request = request.header("idempotency-key", number.to_string()).json(&body);
        requests.spawn(async move {
            let answer = client.send(request).await;
            (answer.status, is_ending, answer.header("connection") == "close")
        });
        if number == CALM {
            send(&stopping, Signal::TERM);
            asked = Some(Instant::now());
        }
        if stopping.try_wait().expect("its state").is_some() {
            break;
        }
    }
    let ended = stopping.wait().await.expect("it ends");
    assert_eq!(ended.code(), Some(0));
    let answers = requests.join_all().await;
    assert!(answers.len() > CALM + 300, "{}", answers.len());
    assert!(answers.iter().all(|(status, ..)| *status == 202), "{answers:?}");
    let mut ending = answers.iter().filter(|(_, is_ending, _)| *is_ending).peekable();
    assert!(ending.peek().is_some() && ending.all(|(_, _, ends)| *ends), "{answers:?}");
    system.drain().await;
}
