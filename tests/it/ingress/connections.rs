//! Connections: how many, how long they may idle, what they cost, and how long a head may take.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::process::{Child, Command};

use crate::helpers::{API, RawConnection, System, eventually, program, serving};

use super::{LIVEZ, api};

/// Starts an API with so few file descriptors that it serves at most 64 connections.
async fn small_api(system: &System) -> (Child, SocketAddr) {
    let api = program(API, system);
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"ulimit -n 320; exec "$0" "$@""#, API, "--listen", "127.0.0.1:0"]);
    shell.args(api.as_std().get_args()).kill_on_drop(true).stderr(Stdio::piped());
    serving(shell).await
}

/// A connection that has received an answer and is idle.
async fn idle(address: SocketAddr) -> RawConnection {
    let mut raw = RawConnection::connect(address).await;
    raw.send(LIVEZ).await.expect("it is taken");
    assert_eq!(raw.answer().await.status, 200);
    raw
}

/// Whether the server has ended the connection.
async fn is_ended(raw: &RawConnection) -> bool {
    let mut byte = [0];
    let peeked = tokio::time::timeout(Duration::from_millis(1), raw.0.peek(&mut byte)).await;
    matches!(peeked, Ok(Ok(0) | Err(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_places_are_taken_the_connection_that_idles_longest_goes_and_probes_get_through() {
    const PLACES: usize = 64;
    let system = System::start().await;
    let (_api, address) = small_api(&system).await;
    let mut held = Vec::new();
    for _ in 0..PLACES {
        held.push(idle(address).await);
    }
    let asked = Instant::now();
    for probe in 0..4 {
        let mut raw = RawConnection::connect(address).await;
        raw.send("GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await
            .expect("taken");
        assert_eq!(raw.answers().await[0].status, 200, "probe {probe}");
    }
    assert!(asked.elapsed() < Duration::from_secs(5), "they waited for {:?}", asked.elapsed());
    eventually("the one that has idled longest has gone", async || is_ended(&held[0]).await.then_some(()))
        .await;
    let newest = held.last_mut().expect("one");
    newest.send(LIVEZ).await.expect("it is taken");
    assert_eq!(newest.answer().await.status, 200, "who idles least stays");
    // With so few places left, connections may idle for some seconds only.
    eventually("half of the places are free again", async || {
        let mut ended = 0;
        for raw in &held {
            ended += usize::from(is_ended(raw).await);
        }
        (ended >= PLACES / 2 - 4).then_some(())
    })
    .await;
    assert!(asked.elapsed() < Duration::from_secs(60), "they idled for {:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_idles_costs_little_however_large_its_last_request_was() {
    const WAVES: usize = 5;
    const WAVE: usize = 200;
    const EACH_MAX_BYTES: f64 = 24.0 * 1024.0;
    let system = System::start().await;
    let (api, address) = api(&system, &[]).await;
    let status = format!("/proc/{}/status", api.id().expect("it runs"));
    let resident = || {
        let text = std::fs::read_to_string(&status).expect("a file");
        let kibibytes = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
        kibibytes.expect("it is told").trim().parse::<f64>().expect("a number") * 1024.0
    };
    let large = format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(31 * 1024));
    let ask = async || {
        let mut raw = RawConnection::connect(address).await;
        raw.send(&large).await.expect("it is taken");
        assert_eq!(raw.answer().await.status, 200);
        raw
    };
    drop(ask().await);
    let before = resident();
    let mut held = Vec::new();
    for _ in 0..WAVES {
        held.extend(join_all((0..WAVE).map(|_| ask())).await);
        // Longer than the server keeps idle buffers: the next wave fits into what this one gives back, and stays open.
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let each = (resident() - before) / held.len() as f64;
    eprintln!("{each:.0} bytes for each that idles");
    assert!(each < EACH_MAX_BYTES, "{each:.0} bytes");
    // The API still serves each connection.
    for raw in &mut held {
        raw.send(LIVEZ).await.expect("it is taken");
        assert_eq!(raw.answer().await.status, 200);
    }
}

/// Whole requests of several kinds, each with its name.
fn before_a_partial_head() -> Vec<(&'static str, String)> {
    let json = "host: localhost\r\ncontent-type: application/json\r\n";
    let post = format!("POST /user-coupons HTTP/1.1\r\n{json}");
    vec![
        ("a request", LIVEZ.to_owned()),
        ("two requests", LIVEZ.repeat(2)),
        ("an error", "GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned()),
        ("a body", format!("{post}content-length: 2\r\n\r\n{{}}")),
        ("chunks", format!("{post}transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n")),
        ("a continued body", format!("{post}expect: 100-continue\r\ncontent-length: 2\r\n\r\n{{}}")),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_of_a_head_that_came_with_the_request_before_it_is_waited_for_no_longer_than_any() {
    const PATIENCE: Duration = Duration::from_secs(30);
    let system = System::start().await;
    let address = system.client.address();
    let partial = "GET /livez HTTP/1.1\r\nho";
    let ended = before_a_partial_head().into_iter().map(|(name, whole)| async move {
        let mut raw = RawConnection::connect(address).await;
        raw.send(format!("{whole}{partial}")).await.expect("it is taken");
        let asked = Instant::now();
        let answers = raw.answers().await;
        assert!(!answers.is_empty(), "{name}");
        assert!(asked.elapsed() < PATIENCE, "{name}: {:?}", asked.elapsed());
    });
    // A head whose rest arrives in time is served.
    let in_time = before_a_partial_head().into_iter().map(|(name, whole)| async move {
        let mut raw = RawConnection::connect(address).await;
        raw.send(format!("{whole}{partial}")).await.expect("it is taken");
        // Longer than the server keeps idle buffers.
        tokio::time::sleep(Duration::from_secs(4)).await;
        raw.send("st: localhost\r\nconnection: close\r\n\r\n").await.expect("it is taken");
        let answers = raw.answers().await;
        assert_eq!(answers.last().map(|answer| answer.status), Some(200), "{name}: {answers:?}");
    });
    let idle = async {
        let mut raw = RawConnection::connect(address).await;
        // Empty lines after a request do not begin a head.
        raw.send(format!("{LIVEZ}\r\n\r\n")).await.expect("it is taken");
        assert_eq!(raw.answer().await.status, 200);
        tokio::time::sleep(Duration::from_secs(20)).await;
        raw.send(LIVEZ).await.expect("it is taken");
        assert_eq!(raw.answer().await.status, 200);
    };
    tokio::join!(join_all(ended), join_all(in_time), idle);
}
