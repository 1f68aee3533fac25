//! More than one API process can do comes at once, and does not stop.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use coupon_system::http::files;
use futures::future::join_all;

use crate::helpers::{API, Client, Raw, System, accounts_hold, program, serving};

/// Each has a connection, and asks again as soon as it is answered: far more than what one thread does
/// in the time for which a queue may be long.
const PEOPLE: usize = 4_000;
const STORM: Duration = Duration::from_secs(3);
/// On a machine that does other things too.
const CALM_MAX: Duration = Duration::from_secs(60);

/// What one person saw.
#[derive(Default)]
struct Seen {
    refused: usize,
    accepted: bool,
}

/// Asks while the storm lasts, and from then on until accepted.
async fn asks(address: SocketAddr, user: String, until: Instant) -> Seen {
    let mut raw = Raw::connect(address).await;
    let body = format!(r#"{{"userId":"{user}","couponId":"c"}}"#);
    let request = format!(
        "POST /user-coupons HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut seen = Seen::default();
    while Instant::now() < until || !seen.accepted {
        assert!(until.elapsed() < CALM_MAX, "{user} is not let in when it is calm again");
        raw.send(&request).await.expect("the connection is kept");
        let answer = raw.answer().await;
        match answer.status {
            202 => seen.accepted = true,
            503 => {
                assert_eq!(answer.code(), "overloaded");
                assert!(answer.head.contains("\r\nretry-after: "), "{answer:?}");
                seen.refused += 1;
            }
            _ => panic!("{answer:?}"),
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_are_turned_away_others_let_in_and_everyone_once_it_is_calm() {
    files::raise_limit();
    let system = System::start().await;
    let users = system.users("u", PEOPLE).await;
    let coupon = system.coupon("c", PEOPLE as u32, 1).await;
    let mut api = program(API, &system);
    api.args(["--listen", "127.0.0.1:0", "--audit-every", "0", "--user-rate", "0"]);
    api.env("TOKIO_WORKER_THREADS", "1");
    let (_api, address) = serving(api).await;

    let until = Instant::now() + STORM;
    let storm: Vec<_> = users.into_iter().map(|user| tokio::spawn(asks(address, user, until))).collect();
    let client = Client::new(address);
    let (mut looks, mut let_in_meanwhile) = (0, 0);
    while Instant::now() < until {
        let coupon = client.get("/coupons/c").await;
        assert_eq!(coupon.status, 200, "whoever only looks is never turned away");
        looks += 1;
        let stock = &coupon.body["stock"];
        // Null until the first request has loaded it.
        let_in_meanwhile = stock["remaining"].as_u64().map_or(0, |remaining| PEOPLE as u64 - remaining);
    }
    let seen: Vec<Seen> = join_all(storm).await.into_iter().map(|task| task.expect("it went well")).collect();
    let refused: usize = seen.iter().map(|seen| seen.refused).sum();
    eprintln!("{refused} turned away, {let_in_meanwhile} let in meanwhile, {looks} looks");
    assert!(refused > 0, "nobody was turned away: this was no storm");
    assert!(let_in_meanwhile > 0, "nobody was let in while it lasted");

    system.worker();
    assert_eq!(system.settled(&coupon).await.issued, PEOPLE as u32, "whoever was accepted has it");
    accounts_hold(&system, &coupon).await;
}
