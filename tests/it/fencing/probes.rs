//! The probes and the metric tell that Redis refuses writes.

use std::time::Duration;

use serde_json::json;

use crate::helpers::{System, eventually, recovered};

use super::deployment::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probes_tell_when_redis_refuses_what_a_request_needs() {
    let system = System::builder().flags(&["--require-registered-users", "false"]).start().await;
    let coupon = system.coupon("c", 9, 1).await;
    let dump = system.redis.spec().data_dir.join("dump.rdb");
    std::fs::create_dir_all(dump.join("in the way of a snapshot")).expect("a folder");
    type Words<'a> = &'a [&'a [&'a str]];
    let troubles: [(&str, Words, Words); 4] = [
        ("READONLY", &[&["REPLICAOF", "127.0.0.1", "1"]], &[&["REPLICAOF", "NO", "ONE"]]),
        ("OOM", &[&["CONFIG", "SET", "maxmemory", "1"]], &[&["CONFIG", "SET", "maxmemory", "0"]]),
        (
            "NOREPLICAS",
            &[&["CONFIG", "SET", "min-replicas-to-write", "1"]],
            &[&["CONFIG", "SET", "min-replicas-to-write", "0"]],
        ),
        (
            "MISCONF",
            &[&["CONFIG", "SET", "save", "3600 1000000"], &["BGSAVE"]],
            &[&["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]],
        ),
    ];
    let writable = async |figure: &str| {
        let text = system.client.request("GET", "/metrics").send().await.expect("an answer").text().await;
        text.expect("a text").lines().any(|line| line == format!("coupon_redis_writable {figure}"))
    };
    for (number, (trouble, begin, end)) in troubles.into_iter().enumerate() {
        ready(&system.client).await;
        for words in begin {
            let _: ::redis::Value = system.command(words).await;
        }
        let refused = eventually(&format!("the probe tells of {trouble}"), async || {
            let answer = system.client.get("/readyz").await;
            (answer.status == 503).then_some(answer)
        })
        .await;
        assert_eq!(refused.body["redis"], json!("refusesWrites"), "{trouble}: {refused:?}");
        let request = system.client.issue(&format!("u{number}"), coupon.as_str(), None).await;
        assert_eq!(request.status, 503, "{trouble}: {request:?}");
        eventually(&format!("the metric tells of {trouble}"), async || writable("0").await.then_some(()))
            .await;
        for words in end {
            let _: ::redis::Value = system.command(words).await;
        }
        eventually(&format!("{trouble} is over"), async || writable("1").await.then_some(())).await;
    }
    ready(&system.client).await;
    // Redis refused writes and lost no data.
    tokio::time::timeout(Duration::from_secs(60), async {
        recovered(&system).await;
        assert_eq!(system.stock(&coupon).await.remaining, 9);
    })
    .await
    .expect("in time");
}
