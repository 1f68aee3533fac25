//! What stands between a client and a handler: connections, hosts, limits, media types, links, probes, and
//! the end of a process.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::CommandFactory;
use coupon_system::access::Role;
use coupon_system::config::{ApiCommand, WorkerCommand};
use coupon_system::metrics::names;
use futures::future::join_all;
use mongodb::bson::doc;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::access::{token, token_flags};
use crate::helpers::{
    API, Answer, CTL, Client, RawAnswer, RawConnection, System, WORKER, eventually, fail, obedient_mongodb,
    program, program_as_it_is, send, serving,
};

const LIVEZ: &str = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";

async fn api(system: &System, flags: &[&str]) -> (Child, SocketAddr) {
    let mut api = program(API, system);
    api.args(["--listen", "127.0.0.1:0", "--audit-every", "0"]).args(flags);
    serving(api).await
}

/// An API that may have so few files open that it serves 64 connections.
async fn small_api(system: &System) -> (Child, SocketAddr) {
    let api = program(API, system);
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"ulimit -n 320; exec "$0" "$@""#, API, "--listen", "127.0.0.1:0"]);
    shell.args(api.as_std().get_args()).kill_on_drop(true).stderr(Stdio::piped());
    serving(shell).await
}

/// A connection that has had an answer, and idles.
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
    // With so few places left they may idle for seconds only.
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
        // Longer than buffers are kept for: the next wave fits into what this one gives back, and stays open.
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let each = (resident() - before) / held.len() as f64;
    eprintln!("{each:.0} bytes for each that idles");
    assert!(each < EACH_MAX_BYTES, "{each:.0} bytes");
    // Each is served on.
    for raw in &mut held {
        raw.send(LIVEZ).await.expect("it is taken");
        assert_eq!(raw.answer().await.status, 200);
    }
}

/// Whole requests, and how the answers to them end.
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
    // Its rest in time, it is served.
    let in_time = before_a_partial_head().into_iter().map(|(name, whole)| async move {
        let mut raw = RawConnection::connect(address).await;
        raw.send(format!("{whole}{partial}")).await.expect("it is taken");
        // Longer than buffers are kept for.
        tokio::time::sleep(Duration::from_secs(4)).await;
        raw.send("st: localhost\r\nconnection: close\r\n\r\n").await.expect("it is taken");
        let answers = raw.answers().await;
        assert_eq!(answers.last().map(|answer| answer.status), Some(200), "{name}: {answers:?}");
    });
    let idle = async {
        let mut raw = RawConnection::connect(address).await;
        // Empty lines behind a request are no head.
        raw.send(format!("{LIVEZ}\r\n\r\n")).await.expect("it is taken");
        assert_eq!(raw.answer().await.status, 200);
        tokio::time::sleep(Duration::from_secs(20)).await;
        raw.send(LIVEZ).await.expect("it is taken");
        assert_eq!(raw.answer().await.status, 200);
    };
    tokio::join!(join_all(ended), join_all(in_time), idle);
}

/// The one answer to a request for `target` with these lines in its head.
async fn raw_answer(address: SocketAddr, method: &str, target: &str, lines: &str) -> RawAnswer {
    let mut raw = RawConnection::connect(address).await;
    raw.send(format!("{method} {target} HTTP/1.1\r\n{lines}connection: close\r\n\r\n")).await.expect("taken");
    raw.answers().await.remove(0)
}

#[tokio::test]
async fn where_nobody_is_asked_only_a_host_that_no_other_site_can_have_is_served() {
    let flags = ["--public-url", "https://coupons.example/shop", "--allowed-hosts", "api,coupons.internal"];
    let system = System::builder().flags(&flags).start().await;
    let closed = System::builder().closed(&[Role::Operator]).start().await;
    let (open, closed) = (system.client.address(), closed.client.address());
    for (lines, in_open, in_closed) in [
        ("host: evil.example\r\norigin: http://evil.example\r\n", 403, 401),
        ("host: evil.example\r\nx-forwarded-host: localhost\r\n", 403, 401),
        ("host: localhost.evil.example\r\n", 403, 401),
        ("host: coupons.example\r\n", 200, 401),
        ("host: coupons.internal:3000\r\n", 200, 401),
        ("host: API:3000\r\n", 200, 401),
        ("host: localhost\r\n", 200, 401),
        ("host: x.localhost:1\r\n", 200, 401),
        ("host: 192.0.2.1:3000\r\n", 200, 401),
        ("host: [::1]:3000\r\n", 200, 401),
        ("", 400, 400),
        ("host:\r\n", 400, 400),
        ("host: localhost\r\nhost: localhost\r\n", 400, 400),
        ("host: a b\r\n", 400, 400),
    ] {
        for (address, expected) in [(open, in_open), (closed, in_closed)] {
            let answer = raw_answer(address, "POST", "/pause", lines).await;
            assert_eq!(answer.status, expected, "{lines:?}: {answer:?}");
        }
        let read = raw_answer(open, "GET", "/users", lines).await;
        assert_eq!(read.status, in_open, "{lines:?}: to read is no better");
        if in_open == 403 {
            assert!(read.body.contains("--allowed-hosts"), "{read:?}");
        }
    }
    let absolute = raw_answer(open, "GET", "http://evil.example/users", "host: localhost\r\n").await;
    assert_eq!(absolute.status, 400, "{absolute:?}");
    let absolute = raw_answer(open, "GET", "http://evil.example/users", "host: evil.example\r\n").await;
    assert_eq!(absolute.status, 403, "{absolute:?}");
    let absolute = raw_answer(open, "GET", "http://localhost:1/users", "host: localhost:1\r\n").await;
    assert_eq!(absolute.status, 200, "{absolute:?}");
}

#[tokio::test]
async fn every_answer_to_an_address_counts_and_a_key_never_does() {
    let flags = ["--address-rate", "0.01", "--address-burst", "8"];
    let system = System::builder().closed(&[Role::Service]).flags(&flags).start().await;
    let keys = system.api_keys.clone();
    // Everything that is answered before a handler is.
    let long = format!("/coupons?cursor={}", "y".repeat(9 * 1024));
    for (path, status) in
        [("/coupons?unknown=1", 422), (&*long, 414), ("/nowhere", 404), ("/queue", 401), ("/readyz", 200)]
    {
        assert_eq!(system.client.get(path).await.status, status, "{path}");
    }
    let post = system.client.request("POST", "/coupons").json(&json!({}));
    assert_eq!(system.client.send(post).await.status, 401);
    assert_eq!(system.client.send(system.client.request("PUT", "/problems")).await.status, 405);
    // What hyper refuses by itself.
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let lines = format!("host: localhost\r\n{many}");
    assert_eq!(raw_answer(system.client.address(), "GET", "/coupons", &lines).await.status, 431);
    for path in ["/coupons", "/coupons?unknown=1", &*long, "/nowhere", "/queue", "/readyz", "/problems"] {
        let answer = system.client.get(path).await;
        assert_eq!((answer.status, answer.code()), (429, "rate-limited"), "{path}");
    }
    let service = system.client.with(&keys[0]);
    for path in ["/coupons", "/coupons?unknown=1", "/readyz", "/queue", "/problems"] {
        for _ in 0..10 {
            assert_ne!(service.get(path).await.status, 429, "{path}");
        }
    }
    let unknown = system.client.with(&format!("cpn_nobody_{}", "0".repeat(64)));
    assert_eq!(unknown.get("/coupons").await.status, 429, "a key that is none");
    assert_eq!(system.client.get("/livez").await.status, 200);
}

/// Opens a stream, and keeps it if it is one.
async fn open_stream(client: &Client, path: &str) -> Result<reqwest::Response, u16> {
    let response = client.request("GET", path).send().await.expect("an answer");
    if response.status() == 200 { Ok(response) } else { Err(response.status().as_u16()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_user_holds_few_streams_and_waiting_requests_and_hinders_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = token_flags(&folder);
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    flags.extend(["--user-rate", "0", "--user-held", "3"]);
    let closed = System::builder().closed(&[Role::Service, Role::Viewer]).flags(&flags).start().await;
    let keys = closed.api_keys.clone();
    let open = System::builder()
        .flags(&["--user-rate", "0", "--user-held", "3", "--address-streams", "5"])
        .start()
        .await;
    for system in [&closed, &open] {
        let coupon = system.coupon("c", 9, 1).await;
        system.users("u", 3).await;
        let is_open = std::ptr::eq(system, &open);
        let client =
            |user: &str| if is_open { system.client.clone() } else { system.client.with(&token(user)) };
        let [one, other] = [system.accepted("u0", &coupon).await, system.accepted("u1", &coupon).await];
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(
                open_stream(&client("u0"), &format!("/issuances/{one}/events")).await.expect("a stream"),
            );
        }
        let path = format!("/issuances/{one}/events");
        let asking = client("u0");
        let events = tokio::time::timeout(Duration::from_secs(60), asking.get(&path)).await;
        let events = events.expect("a fourth stream is refused");
        let held_poll = client("u0").get(&format!("/issuances/{one}?wait=20")).await;
        let held_request = client("u0").request("POST", "/user-coupons?wait=20");
        let held_request = held_request.json(&json!({"userId": "u0", "couponId": "c"}));
        let held_request = client("u0").send(held_request).await;
        for refused in [events, held_poll, held_request] {
            assert_eq!((refused.status, refused.code()), (429, "rate-limited"), "{refused:?}");
            assert_eq!(refused.body["limit"], "user-held");
        }
        assert_eq!(client("u0").get(&format!("/issuances/{one}")).await.status, 200, "to poll is no matter");
        held.push(
            open_stream(&client("u1"), &format!("/issuances/{other}/events")).await.expect("another's"),
        );
        held.remove(0);
        let stream = eventually("there is room again", async || {
            open_stream(&client("u0"), &format!("/issuances/{one}/events")).await.ok()
        })
        .await;
        held.push(stream);
        if is_open {
            held.push(
                open_stream(&client("u1"), &format!("/issuances/{other}/events")).await.expect("a fifth"),
            );
            let sixth = open_stream(&client("u1"), &format!("/issuances/{other}/events")).await;
            assert_eq!(sixth.err(), Some(429), "one address");
        } else {
            // The shop's own systems wait for many.
            let service = system.client.with(&keys[0]);
            for _ in 0..5 {
                let path = format!("/issuances/{one}/events");
                held.push(open_stream(&service, &path).await.expect("a service's"));
            }
            let viewer = system.client.with(&keys[1]);
            for _ in 0..10 {
                held.push(open_stream(&viewer, "/events").await.expect("live figures"));
            }
            assert_eq!(open_stream(&viewer, "/events").await.err(), Some(429), "one key");
        }
        system.drain().await;
    }
}

#[tokio::test]
async fn a_body_that_says_it_is_something_else_than_utf_8_json_is_refused() {
    let system = System::start().await;
    let euc_kr = b"{\"name\":\"\xc8\xab\"}".to_vec();
    let utf_8 = br#"{"name":"x"}"#.to_vec();
    for (number, (header, value, body, status)) in [
        ("content-type", "application/json;charset=euc-kr", &euc_kr, 415),
        ("content-type", "application/json; charset=\"UTF-8\"", &utf_8, 201),
        ("content-type", "application/json; charset=utf-8; charset=euc-kr", &utf_8, 415),
        ("content-type", "application/json; version=2", &utf_8, 415),
        ("content-encoding", "gzip", &utf_8, 415),
        ("content-encoding", "identity", &utf_8, 201),
    ]
    .into_iter()
    .enumerate()
    {
        let mut request = system.client.request("POST", "/users").body(body.clone());
        if header != "content-type" {
            request = request.header("content-type", "application/json");
        }
        let answer = system.client.send(request.header(header, value)).await;
        assert_eq!(answer.status, status, "{number} {value}: {answer:?}");
        if status == 415 {
            assert_eq!(answer.code(), "unsupported-media-type");
        }
    }
}

/// Every path of ours in a document, found by what it leads to.
fn links(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::String(text) if text.starts_with('/') => found.push(text.clone()),
        serde_json::Value::Array(items) => items.iter().for_each(|item| links(item, found)),
        serde_json::Value::Object(members) => members.values().for_each(|member| links(member, found)),
        _ => {}
    }
}

#[tokio::test]
async fn every_link_lives_under_the_path_of_the_public_url() {
    let flags = ["--public-url", "https://shop.example/coupons", "--user-held", "1", "--user-rate", "0"];
    let system = System::builder().flags(&flags).start().await;
    system.coupon("c", 2, 1).await;
    system.coupon("gone", 1, 1).await;
    system.users("u", 2).await;
    let queued = system.client.issue("u0", "c", None).await;
    let mut answers = vec![
        queued.clone(),
        system.client.get("/nowhere").await,
        system.client.get("/coupons?unknown=1").await,
        system.client.get("/problems").await,
        system.client.get("/problems/ended").await,
        system.client.post("/user-coupons", json!({})).await,
        system.client.post("/users", json!({"id": "new"})).await,
        system.client.get(&format!("/coupons?cursor={}", "y".repeat(9 * 1024))).await,
    ];
    system.worker();
    answers.push(system.client.decided(&queued.id()).await);
    answers.push(system.client.issue("u0", "c", None).await);
    for answer in &answers {
        let mut found = Vec::new();
        links(&answer.body, &mut found);
        found.extend(Some(answer.header("location").to_owned()).filter(|link| !link.is_empty()));
        assert!(!found.is_empty(), "{answer:?}");
        for link in found {
            assert!(link.starts_with("/coupons/"), "{link} in {answer:?}");
            let under = link.trim_start_matches("/coupons");
            let read = system.client.get(under).await;
            assert_eq!(read.status, 200, "{link} leads nowhere");
        }
    }
    // So does every path in words.
    for language in ["en", "ko"] {
        let request = system.client.request("GET", "/problems").header("accept-language", language);
        let kinds = system.client.send(request).await;
        let texts = kinds.body.as_array().expect("a list").iter();
        let texts: Vec<&str> =
            texts.flat_map(|kind| [&kind["detail"], &kind["advice"]]).filter_map(Value::as_str).collect();
        let paths: Vec<&str> = texts
            .iter()
            .flat_map(|text| text.split([' ', '(']))
            .filter(|word| word.starts_with('/') && word.len() > 1)
            .collect();
        assert!(paths.len() >= 6, "{paths:?}");
        for path in paths {
            let under = path.strip_prefix("/coupons/");
            assert!(under.is_some_and(|under| !under.starts_with('{')), "{path} in {language}");
        }
    }
    for path in ["/nowhere", "/dead-letters/none"] {
        let detail = system.client.get(path).await.body["detail"].to_string();
        assert!(detail.contains(" /coupons/"), "{detail}");
    }
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let lines = format!("host: localhost\r\n{many}");
    let refused = raw_answer(system.client.address(), "GET", "/coupons", &lines).await;
    assert!(refused.body.contains(r#""type":"/coupons/problems/head-too-large""#), "{refused:?}");
}

/// Every variable of a program, set and empty.
fn with_empty_variables(command: &mut Command, of: &clap::Command) {
    for variable in of.get_arguments().filter_map(|argument| argument.get_env()) {
        command.env(variable, "");
    }
    of.get_subcommands().for_each(|verb| with_empty_variables(command, verb));
}

#[tokio::test]
async fn an_empty_variable_is_as_if_it_were_not_set() {
    let system = System::start().await;
    for (path, of, listen) in
        [(API, ApiCommand::command(), "--listen"), (WORKER, WorkerCommand::command(), "--metrics-listen")]
    {
        let mut command = program(path, &system);
        command.args([listen, "127.0.0.1:0"]);
        with_empty_variables(&mut command, &of);
        // That it logs where it listens is what an empty COUPON_LOG would silence.
        let (_child, address) =
            tokio::time::timeout(Duration::from_secs(60), serving(command)).await.expect("it logs");
        eventually("it is ready", async || {
            (Client::new(address).get("/readyz").await.status == 200).then_some(())
        })
        .await;
    }
    let mut list = Command::new(CTL);
    with_empty_variables(&mut list, &coupon_system::cli::CtlCommand::command());
    list.args(["coupon", "list", "--json", "--api-url", system.client.base()]);
    let output = list.output().await.expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_asked_to_stop_says_so_at_once_and_serves_until_the_delay_is_over() {
    let system = System::start().await;
    system.users("u", 2).await;
    system.coupon("c", 9, 1).await;
    let (mut child, address) = api(&system, &["--shutdown-delay", "6"]).await;
    assert_eq!(Client::new(address).get("/readyz").await.status, 200);
    let asked = Instant::now();
    send(&child, Signal::TERM);
    // A client of its own each time: each makes a connection.
    let not_ready = eventually("it says that it is not ready", async || {
        let answer = Client::new(address).get("/readyz").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_eq!((not_ready.code(), &not_ready.body["stopping"]), ("unavailable", &json!(true)));
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    assert_eq!(Client::new(address).get("/livez").await.status, 200);
    assert_eq!(Client::new(address).issue("u0", "c", None).await.status, 202, "new connections are served");
    let ended = tokio::time::timeout(Duration::from_secs(40), child.wait()).await.expect("it ends");
    assert_eq!(ended.expect("it ends").code(), Some(0));
    assert!(asked.elapsed() >= Duration::from_secs(6), "{:?}", asked.elapsed());

    let (mut child, address) = api(&system, &["--shutdown-delay", "600"]).await;
    send(&child, Signal::TERM);
    eventually("it has heard", async || {
        (Client::new(address).get("/readyz").await.status == 503).then_some(())
    })
    .await;
    send(&child, Signal::TERM);
    let ended = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.expect("it ends at once");
    assert_eq!(ended.expect("it ends").code(), Some(1));
    system.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_answers_the_same_probes_and_asks_for_one_host() {
    let system = System::start().await;
    let mut command = program_as_it_is(WORKER, &system);
    command.args(["--metrics-listen", "127.0.0.1:0"]);
    let (_child, address) = serving(command).await;
    let client = Client::new(address);
    for path in ["/livez", "/healthz", "/readyz"] {
        assert_eq!(client.get(path).await.status, 200, "{path}");
    }
    let missing = raw_answer(address, "GET", "/metrics", "").await;
    assert_eq!(missing.status, 400, "{missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_asked_to_stop_is_not_ready_and_finishes_what_it_has() {
    let (mongod, _folder) = obedient_mongodb().await;
    let system = System::builder().mongodb(mongod.url()).start().await;
    system.users("u", 1).await;
    system.coupon("c", 9, 1).await;
    let mut command = program_as_it_is(WORKER, &system);
    command.args(["--metrics-listen", "127.0.0.1:0"]);
    let (mut child, address) = serving(command).await;
    let ledger = format!("{}.user_coupons", system.database);
    let slow =
        doc! {"failCommands": ["insert"], "namespace": ledger, "blockConnection": true, "blockTimeMS": 6_000};
    fail(&system, doc! {"times": 1}, slow).await;
    let accepted = system.client.issue("u0", "c", None).await;
    eventually("the worker has it in hand", async || (system.queue().await == (1, 1)).then_some(())).await;
    assert_eq!(Client::new(address).get("/readyz").await.status, 200);
    send(&child, Signal::TERM);
    let unready = eventually("it is not ready", async || {
        let answer = Client::new(address).get("/readyz").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_eq!((unready.code(), &unready.body["stopping"]), ("unavailable", &json!(true)), "{unready:?}");
    assert_eq!(Client::new(address).get("/livez").await.status, 200);
    assert_eq!(system.client.get(&format!("/issuances/{}", accepted.id())).await.state(), "queued");
    let ended = tokio::time::timeout(Duration::from_secs(40), child.wait()).await.expect("it ends");
    assert_eq!(ended.expect("it ends").code(), Some(0));
    assert_eq!(system.client.get(&format!("/issuances/{}", accepted.id())).await.state(), "issued");
}

/// How often a MongoDB was asked whether it answers.
async fn pings(system: &System) -> i64 {
    let status = system.backends.database.run_command(doc! {"serverStatus": 1}).await.expect("a status");
    let commands = status.get_document("metrics").and_then(|metrics| metrics.get_document("commands"));
    let ping = commands.and_then(|commands| commands.get_document("ping")).expect("a figure");
    ping.get_i64("total").expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_probe_the_servers_are_asked_once_a_second() {
    let (mut mongod, _folder) = obedient_mongodb().await;
    let system = System::builder().mongodb(mongod.url()).start().await;
    let (before, began) = (pings(&system).await, Instant::now());
    for _ in 0..4 {
        let probes = futures::future::join_all((0..100).map(|_| ready(&system))).await;
        assert!(probes.iter().all(|answer| answer.status == 200), "{probes:?}");
    }
    let (asked, seconds) = (pings(&system).await - before, began.elapsed().as_secs() as i64);
    assert!((1..=seconds + 1).contains(&asked), "{asked} times in {seconds} s");
    // Who goes away leaves the others an answer, and an answer is soon another.
    let abandoned = (0..100).map(|_| tokio::time::timeout(Duration::from_millis(1), ready(&system)));
    futures::future::join_all(abandoned).await;
    assert_eq!(ready(&system).await.status, 200);
    mongod.kill().await.expect("it is killed");
    let killed = Instant::now();
    eventually("MongoDB is missed", async || {
        (ready(&system).await.body["mongodb"] == "unavailable").then_some(())
    })
    .await;
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
}

async fn ready(system: &System) -> Answer {
    system.client.get("/readyz").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_is_ready_as_long_as_requests_are_accepted_and_names_the_part_that_is_away() {
    let (mut mongod, _folder) = obedient_mongodb().await;
    // Users are remembered for a quarter of an hour.
    let system =
        System::builder().mongodb(mongod.url()).flags(&["--user-deletion-delay", "1800"]).start().await;
    system.leaves_in_flight();
    let forgetful = ["--user-deletion-delay", "2"];
    let (_api, address) = api(&system, &forgetful).await;
    system.users("u", 2).await;
    system.coupon("c", 9, 1).await;
    for user in ["u0", "u1"] {
        assert_eq!(system.client.issue(user, "c", None).await.status, 202);
        assert_eq!(Client::new(address).issue(user, "c", None).await.status, 202);
    }
    let whole = ready(&system).await;
    assert_eq!((whole.status, &whole.body["degraded"]), (200, &json!([])));

    mongod.kill().await.expect("it is killed");
    let degraded = eventually("MongoDB is missed", async || {
        let answer = ready(&system).await;
        (answer.body["mongodb"] == "unavailable").then_some(answer)
    })
    .await;
    assert_eq!(system.client.issue("u0", "c", None).await.status, 202, "a user it remembers");
    assert_eq!((degraded.status, &degraded.body["ready"]), (200, &json!(true)), "{degraded:?}");
    assert_eq!(degraded.body["degraded"], json!(["mongodb"]));
    assert!(!degraded.body.to_string().contains("127.0.0.1"), "{degraded:?}");
    assert_eq!(system.client.get("/livez").await.status, 200);

    // It cannot tell any more who was deleted meanwhile, so it serves nobody.
    let unready = eventually("nothing is accepted any more", async || {
        let answer = Client::new(address).get("/readyz").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_eq!(Client::new(address).issue("u0", "c", None).await.status, 503);
    assert_eq!(unready.body["degraded"], json!(["mongodb"]));
}

#[tokio::test]
async fn processor_time_is_told_in_fractions_of_a_second() {
    let system = System::start().await;
    let text = eventually("it has a figure", async || {
        let text = system.client.request("GET", "/metrics").send().await.expect("an answer").text().await;
        let text = text.expect("a text");
        text.contains(&format!("\n{} ", names::CPU_SECONDS)).then_some(text)
    })
    .await;
    assert!(text.contains(&format!("# TYPE {} counter\n", names::CPU_SECONDS)));
    eventually("a part of a second", async || {
        let text = system.client.request("GET", "/metrics").send().await.expect("an answer").text().await;
        let text = text.expect("a text");
        let line = text.lines().find_map(|line| line.strip_prefix(names::CPU_SECONDS)?.strip_prefix(' '));
        let seconds: f64 = line.expect("a figure").parse().expect("a number");
        (seconds > 0.0 && seconds.fract() != 0.0).then_some(())
    })
    .await;
}
