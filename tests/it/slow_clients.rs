//! Slow clients: the server drops them in time, and they delay no other client meanwhile.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use coupon_system::metrics::names;
use futures::future::join_all;
use tokio::process::Child;
use tokio_util::sync::CancellationToken;

use crate::helpers::{API, Client, RawConnection, System, eventually, program, serving};

/// Slow clients of each kind.
const HEADS: usize = 334;
const BODIES: usize = 333;
const READERS: usize = 333;
/// The server has dropped every slow client by then. Its longest bound is 15 s.
const GONE_MAX: Duration = Duration::from_secs(35);
/// Nine of ten answers to a normal client take no longer. One may: a busy machine stops for seconds now and then.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Connections that a normal client opens and does not need, since another was free first: no head arrives on them.
const SPARE_MAX: usize = 2;
const GROWTH_MAX_BYTES: f64 = 128.0 * 1024.0 * 1024.0;

async fn api(system: &System, flags: &[&str]) -> (Child, SocketAddr) {
    let mut api = program(API, system);
    api.args(["--listen", "127.0.0.1:0", "--audit-every", "0"]).args(flags);
    serving(api).await
}

/// A metric of the API, named with its labels.
async fn figure(client: &Client, name: &str) -> f64 {
    let text = client.request("GET", "/metrics").send().await.expect("an answer").text().await;
    let text = text.expect("a text");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

fn dropped(reason: &str) -> String {
    format!("{}{{reason=\"{reason}\"}}", names::DROPPED)
}

/// Sends a head that never ends; every second time after a whole request.
async fn slow_head(address: SocketAddr, is_second: bool) {
    let mut raw = RawConnection::connect(address).await;
    if is_second {
        raw.send("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("it is taken");
        assert_eq!(raw.answer().await.status, 200);
    }
    raw.drip(&[b"GET /healthz HTTP/1.1\r\nx: ".as_slice(), &[b'y'; 60]].concat()).await;
    assert!(raw.answers().await.is_empty(), "no request, no answer");
}

/// Sends a body that never ends.
async fn slow_body(address: SocketAddr) {
    let mut raw = RawConnection::connect(address).await;
    let head = "POST /user-coupons HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n";
    raw.send(head).await.expect("it is taken");
    raw.drip(&[b' '; 60]).await;
    let answers = raw.answers().await;
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!((answers[0].status, answers[0].code().as_str()), (408, "timeout"));
    assert!(answers[0].head.contains("connection: close"));
}

/// Requests much, and reads nothing.
async fn slow_reader(address: SocketAddr, end: CancellationToken) {
    let mut raw = RawConnection::connect(address).await;
    raw.send("GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(20))
        .await
        .expect("it is taken");
    end.cancelled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_slow_clients_hold_nobody_up_and_are_dropped() {
    let system = System::start().await;
    system.users("u", 1).await;
    system.coupon("c", 1, 1).await;
    let (_api, address) = api(&system, &["--user-rate", "0"]).await;
    let client = Client::new(address);
    assert_eq!(client.issue("u0", "c", None).await.status, 202);
    let before = figure(&client, names::RESIDENT_BYTES).await;

    let (started, end) = (Instant::now(), CancellationToken::new());
    let heads = (0..HEADS).map(|number| tokio::spawn(slow_head(address, number % 2 == 0)));
    let bodies = (0..BODIES).map(|_| tokio::spawn(slow_body(address)));
    let asking: Vec<_> = heads.chain(bodies).collect();
    let readers: Vec<_> = (0..READERS).map(|_| tokio::spawn(slow_reader(address, end.clone()))).collect();
    eventually("all are connected", async || {
        (figure(&client, names::CONNECTIONS).await > (HEADS + BODIES + READERS) as f64).then_some(())
    })
    .await;

    let (mut waits, mut most) = (Vec::new(), before);
    let gone = dropped("slow-reader");
    while asking.iter().any(|task| !task.is_finished()) || figure(&client, &gone).await < READERS as f64 {
        let asked = Instant::now();
        let answer = client.issue("u0", "c", None).await;
        assert_eq!((answer.status, answer.is_replay()), (202, true), "{answer:?}");
        waits.push(asked.elapsed());
        most = most.max(figure(&client, names::RESIDENT_BYTES).await);
        assert!(started.elapsed() < GONE_MAX, "some are not dropped");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    waits.sort_unstable();
    let (slow, worst) = (waits[waits.len() * 9 / 10], waits[waits.len() - 1]);
    let growth = most - before;
    println!(
        "{} answers, nine of ten in {slow:?}, the last in {worst:?}, grown by {growth} bytes",
        waits.len()
    );
    assert!(slow < ANSWER_MAX, "a normal client waited for {slow:?}");
    assert!(growth < GROWTH_MAX_BYTES, "grown by {growth} bytes");
    for ended in join_all(asking).await {
        ended.expect("it went as it should");
    }
    let late = figure(&client, &dropped("slow-head")).await;
    assert!((HEADS as f64..=(HEADS + SPARE_MAX) as f64).contains(&late), "{late} heads were late");
    end.cancel();
    join_all(readers).await;
    eventually("no connection is left but the client's", async || {
        (figure(&client, names::CONNECTIONS).await <= 2.0).then_some(())
    })
    .await;
    system.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_or_idles_for_long_is_no_slow_client() {
    let system = System::start().await;
    system.users("u", 1).await;
    system.coupon("c", 1, 1).await;
    let address = system.client.address();
    let mut idle = RawConnection::connect(address).await;
    idle.send("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("it is taken");
    assert_eq!(idle.answer().await.status, 200);

    // The body comes after the head, so that bytes arrive while the API has the request. No worker runs, so it waits.
    let mut waiting = RawConnection::connect(address).await;
    let body = r#"{"userId":"u0","couponId":"c"}"#;
    let head = format!(
        "POST /user-coupons?wait=18 HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         expect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    waiting.send(head).await.expect("it is taken");
    assert_eq!(waiting.answer().await.status, 100);
    let asked = Instant::now();
    waiting.send(body).await.expect("it is taken");
    assert_eq!(waiting.answer().await.status, 202);
    assert!(asked.elapsed() >= Duration::from_secs(18), "it did wait");

    idle.send("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("it is taken");
    assert_eq!(idle.answer().await.status, 200, "for longer than a head may take");
    system.drain().await;
}
