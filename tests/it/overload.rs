//! More requests come at once than one API process can serve; then all clients try again until they are served.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use coupon_system::runtime::fd_limit;
use futures::future::join_all;
use rustix::process::Signal;

use crate::helpers::{API, Client, RawAnswer, RawConnection, System, accounts_hold, program, send, serving};

/// Each client has a connection, and all requests wait at once: one thread needs longer for them than the queue bound.
/// Each client has sent several requests in advance, so that the queue stays long however slow this process is.
const PEOPLE: usize = 4_000;
const ASKED: usize = 8;
/// The longest time on a busy machine.
const CALM_MAX: Duration = Duration::from_secs(60);

fn request(user: &str, connection: &str) -> String {
    let body = format!(r#"{{"userId":"{user}","couponId":"c"}}"#);
    format!(
        "POST /user-coupons HTTP/1.1\r\nhost: localhost\r\nconnection: {connection}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// How many answers were refusals, of how many.
fn refusals(answers: &[RawAnswer]) -> usize {
    let refused = |answer: &&RawAnswer| match answer.status {
        202 => false,
        503 => {
            assert_eq!(answer.code(), "overloaded");
            assert!(answer.head.contains("\r\nretry-after: "), "{answer:?}");
            true
        }
        _ => panic!("{answer:?}"),
    };
    answers.iter().filter(refused).count()
}

/// One client that sends requests until it is served.
async fn until_let_in(address: SocketAddr, user: String, deadline: Instant) {
    let mut raw = RawConnection::connect(address).await;
    loop {
        raw.send(request(&user, "keep-alive")).await.expect("the connection is kept");
        if refusals(&[raw.answer().await]) == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{user} is not let in when it is calm again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_are_turned_away_others_let_in_and_everyone_once_it_is_calm() {
    fd_limit::raise_limit();
    let system = System::start().await;
    let users = system.users("u", PEOPLE).await;
    let coupon = system.coupon("c", PEOPLE as u32, 1).await;
    let mut api = program(API, &system);
    api.args(["--listen", "127.0.0.1:0", "--audit-every", "0", "--user-rate", "0"]);
    api.env("TOKIO_WORKER_THREADS", "1");
    let (api, address) = serving(api).await;

    let mut people = join_all(users.iter().map(|_| RawConnection::connect(address))).await;
    send(&api, Signal::STOP);
    for (raw, user) in people.iter_mut().zip(&users) {
        let asks = request(user, "keep-alive").repeat(ASKED - 1) + &request(user, "close");
        raw.send(asks).await.expect("the system takes it for the API");
    }
    send(&api, Signal::CONT);
    let storm = tokio::spawn(join_all(people.into_iter().map(RawConnection::answers)));
    let client = Client::new(address);
    let mut looks = 0;
    while !storm.is_finished() {
        assert_eq!(client.get("/coupons/c").await.status, 200, "whoever only looks is never turned away");
        looks += 1;
    }
    let answers = storm.await.expect("it went well");
    assert!(answers.iter().all(|answers| answers.len() == ASKED), "everyone is answered");
    let refused: usize = answers.iter().map(|answers| refusals(answers)).sum();
    let asked = PEOPLE * ASKED;
    eprintln!("{refused} of {asked} turned away; {looks} looks meanwhile");
    assert!(refused > 0, "nobody was turned away: this was no storm");
    assert!(refused < asked, "nobody was let in while it lasted");

    let calm = Instant::now() + CALM_MAX;
    let trying: Vec<_> =
        users.into_iter().map(|user| tokio::spawn(until_let_in(address, user, calm))).collect();
    join_all(trying).await.into_iter().for_each(|task| task.expect("they are let in"));
    system.worker();
    assert_eq!(system.settled(&coupon).await.issued, PEOPLE as u32, "whoever was accepted has it");
    accounts_hold(&system, &coupon).await;
}
