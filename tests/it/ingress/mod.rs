//! Ingress: everything between a client and a handler (connections, hosts, media types, rate limits, links, probes), and
//! the end of a process.

mod connections;
mod probes;
mod processes;
mod rates;
mod refusals;
mod requests;
mod stopping;

use std::net::SocketAddr;

use tokio::process::Child;

use crate::helpers::{API, Answer, RawAnswer, RawConnection, System, program, serving};

const LIVEZ: &str = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";

async fn api(system: &System, flags: &[&str]) -> (Child, SocketAddr) {
    let mut api = program(API, system);
    api.args(["--listen", "127.0.0.1:0", "--audit-every", "0"]).args(flags);
    serving(api).await
}

/// The answer to a request for `target` with these header lines.
async fn raw_answer(address: SocketAddr, method: &str, target: &str, lines: &str) -> RawAnswer {
    let mut raw = RawConnection::connect(address).await;
    raw.send(format!("{method} {target} HTTP/1.1\r\n{lines}connection: close\r\n\r\n")).await.expect("taken");
    raw.answers().await.remove(0)
}

async fn ready(system: &System) -> Answer {
    system.client.get("/readyz").await
}
