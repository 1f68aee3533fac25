//! No other spelling of a request evades its access rule.

use std::net::SocketAddr;

use coupon_system::access::Role;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::closed;

/// The status of the answer to a request of these bytes. The test reads only the head, so that HEAD works too.
async fn status(address: SocketAddr, method: &str, target: &str, key: Option<&str>) -> u16 {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let credentials = key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    let head =
        format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\n{credentials}connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("it is taken");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer);
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"))
}

/// Other spellings of a request.
fn spellings(method: &str, path: &str) -> Vec<(String, String)> {
    let (first, rest) = path[1..].split_at(1);
    let encoded = format!("/%{:02x}{rest}", first.as_bytes()[0]);
    let targets = [
        path.to_owned(),
        format!("{path}/"),
        format!("/{path}"),
        format!("/.{path}"),
        format!("/coupons/..{path}"),
        format!("/healthz/..{path}"),
        format!("{path};x=1"),
        format!("{path}%3f"),
        format!("{path}?"),
        format!("{path}#x"),
        format!("http://x{path}"),
        path.to_uppercase(),
        encoded,
    ];
    let mut all: Vec<_> = targets.into_iter().map(|target| (method.to_owned(), target)).collect();
    let others = ["HEAD", "OPTIONS", "TRACE", "PUT", "get", "post", "BREW"];
    all.extend(others.map(|other| (other.to_owned(), path.to_owned())));
    all
}

/// Whether an operation asks for credentials. One without has an empty list.
fn is_closed(operation: &serde_json::Value) -> bool {
    operation["security"].as_array().is_some_and(|security| !security.is_empty())
}

#[tokio::test]
async fn however_a_request_is_written_only_those_get_in_whom_it_is_for() {
    let (system, keys, _folder) = closed(&[Role::Viewer]).await;
    system.coupon("u1", 1, 1).await;
    let address = system.client.address();
    let document = system.client.get("/openapi.json").await.body;
    let mut let_in = Vec::new();
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        // Another test covers public operations.
        for (method, operation) in item.as_object().expect("operations") {
            if !is_closed(operation) {
                continue;
            }
            let filled = path.split('/').map(|part| if part.starts_with('{') { "u1" } else { part });
            let filled = filled.collect::<Vec<_>>().join("/");
            // Some of these paths have another method that is public, or that a viewer may use.
            let is_open = |method: &str| {
                let known = item.get(method.to_lowercase().replace("head", "get"));
                known.is_some_and(|known| !is_closed(known))
            };
            let changes = method != "get";
            for (method, target) in spellings(&method.to_uppercase(), &filled) {
                tried += 1;
                if !is_open(&method) && status(address, &method, &target, None).await < 400 {
                    let_in.push(format!("{method} {target}"));
                }
                // A viewer may change nothing.
                let looks = ["GET", "HEAD"].contains(&method.as_str());
                if changes && !looks && status(address, &method, &target, Some(&keys[0])).await < 400 {
                    let_in.push(format!("viewer: {method} {target}"));
                }
            }
        }
    }
    assert!(let_in.is_empty(), "{let_in:#?}");
    assert!(tried > 500, "{tried}");
    assert_eq!(
        system.client.with(&keys[0]).get("/operator-actions").await.body["items"],
        serde_json::json!([])
    );
}
