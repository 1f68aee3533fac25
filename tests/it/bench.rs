//! `couponctl bench` needs nothing but its programs, and its JSON has every documented member.

use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use crate::helpers::CTL;

async fn bench(words: &[&str]) -> std::process::Output {
    let mut command = Command::new(CTL);
    command.arg("bench").args(words).stdin(Stdio::null()).kill_on_drop(true);
    command.output().await.expect("it runs")
}

#[track_caller]
fn positive(figures: &Value, pointer: &str) -> f64 {
    let figure = figures.pointer(pointer).and_then(Value::as_f64);
    let figure = figure.unwrap_or_else(|| panic!("no number at {pointer} in {figures:#}"));
    assert!(figure > 0.0, "{pointer} is {figure}");
    figure
}

#[tokio::test]
async fn a_quick_bench_of_redis_tells_every_documented_figure() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().to_str().expect("a plain path");
    let output = bench(&["--quick", "--only", "redis", "--json", "--folder", place]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said.contains("figures mean nothing"), cfg!(debug_assertions), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");

    assert_eq!(report["build"], if cfg!(debug_assertions) { "debug" } else { "release" });
    assert_eq!(report["quick"], true);
    for name in ["/cores", "/fsyncMicros", "/redis/entries"] {
        positive(&report, name);
    }
    for section in ["accept", "drain", "latency", "overload", "rewrite", "ready"] {
        assert!(report.get(section).is_some_and(Value::is_null), "{section} was not asked for");
    }
    let per_issuance = positive(&report, "/redis/redisCpuMicrosPerIssuance");
    for cost in ["delivery", "settlement", "lookup"] {
        for server in ["fsyncAlways", "withoutAof"] {
            positive(&report, &format!("/redis/{cost}CpuMicros/{server}"));
        }
    }
    let by_batch = report["redis"]["reservationCpuMicros"].as_array().expect("a list");
    let batches: Vec<_> = by_batch.iter().map(|one| positive(one, "/batch")).collect();
    assert_eq!(batches, [1.0, 8.0, 32.0, 128.0]);
    let always: Vec<_> = by_batch.iter().map(|one| positive(one, "/fsyncAlways")).collect();
    by_batch.iter().for_each(|one| assert!(positive(one, "/withoutAof") > 0.0));
    let [delivery, settlement] = ["delivery", "settlement"]
        .map(|cost| positive(&report, &format!("/redis/{cost}CpuMicros/fsyncAlways")));
    let sum = always[3] + delivery + settlement;
    assert!((sum - per_issuance).abs() < 1e-6, "{sum}, {per_issuance}");
    assert!(always[3] < always[0], "a batch of 128 costs less than 128 calls: {always:?}");

    let [queued, pending, settled] = ["Queued", "Pending", "Settled"]
        .map(|what| positive(&report, &format!("/redis/redisBytesPer{what}")));
    assert!(pending > settled && queued > settled, "{pending}, {queued}, {settled}");
    // Memory does not depend on the build; `maxmemory` is computed from these.
    assert!(queued <= 450.0 && settled <= 120.0, "{queued}, {settled}");

    let targets = report["targets"].as_array().expect("a list");
    let named: Vec<_> = targets.iter().filter_map(|target| target["name"].as_str()).collect();
    assert_eq!(named, ["redisCpuMicrosPerIssuance", "redisBytesPerQueued", "redisBytesPerSettled"]);
    for target in targets {
        let (value, at_most) = (positive(target, "/value"), positive(target, "/atMost"));
        assert_eq!(target["ok"], value <= at_most);
    }
    let left = std::fs::read_dir(folder.path()).expect("the folder is there").count();
    assert_eq!(left, 0, "the bench cleans up");
}

#[tokio::test]
async fn an_overload_is_measured_and_ends_with_everything_decided() {
    // An accepted request that is not issued ends the bench with an error.
    let output = bench(&["--quick", "--only", "overload", "--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let capacity = positive(&report, "/overload/capacityPerSecond");
    assert_eq!(positive(&report, "/overload/atCapacity/offeredPerSecond"), capacity);
    let times = positive(&report, "/overload/overloaded/offeredPerSecond") / capacity;
    assert!((times - 5.0).abs() < 1e-6, "{times}");
    for name in ["accepted", "acceptP99Ms", "apiBytesMax"] {
        positive(&report, &format!("/overload/overloaded/{name}"));
    }
}

#[tokio::test]
async fn rewrites_of_the_append_only_file_are_measured() {
    let output = bench(&["--quick", "--only", "rewrite", "--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for name in ["stillAcceptP99Ms", "rewritingAcceptP99Ms", "rewriteSeconds", "forkMs"] {
        positive(&report, &format!("/rewrite/{name}/median"));
    }
    assert_eq!(report["targets"][0]["name"], "rewriteLatencyRatio");
}

#[tokio::test]
async fn a_debug_build_is_not_held_to_targets() {
    if cfg!(debug_assertions) {
        let output = bench(&["--quick", "--only", "redis", "--enforce"]).await;
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("cargo build --release"));
    }
}
