//! What the server refuses: too large, too many, and what is not HTTP.

use std::time::Duration;

use crate::helpers::{API, Client, RawAnswer, RawConnection, System, program, serving};

/// All answers to these bytes. The server must close the connection itself.
async fn answers(system: &System, bytes: impl AsRef<[u8]>) -> Vec<RawAnswer> {
    let mut raw = RawConnection::connect(system.client.address()).await;
    // The server may close the connection before it has read everything.
    let _ = raw.send(bytes).await;
    raw.answers().await
}

/// The status and the problem's code of the only answer.
async fn refusal(system: &System, bytes: impl AsRef<[u8]>) -> (u16, String) {
    let answers = answers(system, bytes).await;
    assert_eq!(answers.len(), 1, "{answers:?}");
    (answers[0].status, answers[0].code())
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test]
async fn a_head_that_is_too_much_is_refused_with_a_problem() {
    let system = System::start().await;
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let many = refusal(&system, format!("GET /coupons HTTP/1.1\r\nhost: localhost\r\n{many}\r\n")).await;
    assert_eq!(many, refused(431, "head-too-large"));
    for size in [40 * 1024, 70 * 1024, 1024 * 1024] {
        let large = format!("GET /coupons HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(size));
        assert_eq!(refusal(&system, large).await, refused(431, "head-too-large"), "{size}");
    }
    let close = "host: localhost\r\nconnection: close\r\n\r\n";
    for (size, status, code) in [(9 * 1024, 414, "uri-too-long"), (40 * 1024, 431, "head-too-large")] {
        let long = format!("GET /coupons?cursor={} HTTP/1.1\r\n{close}", "y".repeat(size));
        assert_eq!(refusal(&system, long).await, refused(status, code), "{size}");
    }
    let fits = format!("GET /?x={} HTTP/1.1\r\nx: {}\r\n{close}", "y".repeat(8_000), "y".repeat(16_000));
    assert_eq!(answers(&system, fits).await[0].status, 200);
}

#[tokio::test]
async fn a_body_of_ten_megabytes_is_refused_and_its_sender_reads_why() {
    let system = System::start().await;
    let body = "y".repeat(10 * 1024 * 1024);
    let head = "POST /user-coupons HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let whole = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    assert_eq!(refusal(&system, whole).await, refused(413, "too-large"));
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    assert_eq!(refusal(&system, chunked).await, refused(413, "too-large"));
}

#[tokio::test]
async fn garbage_behind_good_requests_gets_a_problem_and_ends_the_connection() {
    let system = System::start().await;
    let good = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for garbage in
        ["\u{1}\u{2}garbage\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "G\u{e9}T / HTTP/1.1\r\n\r\n"]
    {
        let answers = answers(&system, good.repeat(3) + garbage + &good.repeat(3)).await;
        let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [200, 200, 200, 400], "{garbage:?}");
        assert_eq!(answers[3].code(), "malformed");
    }
    // Two lengths, or a length and chunks: where proxies and servers disagree, requests are smuggled.
    for smuggled in [
        "POST /user-coupons HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "POST /user-coupons HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ] {
        assert_eq!(refusal(&system, smuggled).await, refused(400, "malformed"), "{smuggled:?}");
    }
    let prior_knowledge = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0";
    assert!(answers(&system, prior_knowledge).await.is_empty(), "HTTP/2 is not spoken");
    assert_eq!(system.client.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn connections_from_one_address_are_bounded_where_it_is_asked_for() {
    let system = System::builder().flags(&["--connections-per-address", "3"]).start().await;
    let good = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut raw = RawConnection::connect(system.client.address()).await;
        raw.send(good).await.expect("it is taken");
        assert_eq!(raw.answer().await.status, 200);
        held.push(raw);
    }
    assert!(answers(&system, good).await.is_empty(), "the fourth");
    held.pop();
    crate::helpers::eventually("there is room again", async || {
        let mut raw = RawConnection::connect(system.client.address()).await;
        raw.send(good).await.ok()?;
        let mut first = [0];
        let read = tokio::time::timeout(Duration::from_secs(1), raw.0.peek(&mut first)).await;
        (read.ok()?.ok()? > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_api_raises_its_limit_of_open_files() {
    let system = System::start().await;
    let api = program(API, &system);
    let mut shell = tokio::process::Command::new("sh");
    // As a service manager starts it.
    shell.args([
        "-c",
        r#"ulimit -S -n 256; ulimit -H -n 2000; exec "$0" "$@""#,
        API,
        "--listen",
        "127.0.0.1:0",
    ]);
    shell.args(api.as_std().get_args()).kill_on_drop(true).stderr(std::process::Stdio::piped());
    let (child, address) = serving(shell).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id().expect("it runs")));
    let limits = limits.expect("Linux tells");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    assert_eq!(files.split_whitespace().nth(3), Some("2000"), "{files}");
    let raws = futures::future::join_all((0..500).map(|_| RawConnection::connect(address))).await;
    assert_eq!(raws.len(), 500);
    assert_eq!(Client::new(address).get("/healthz").await.status, 200, "beyond the limit it was given");
}
