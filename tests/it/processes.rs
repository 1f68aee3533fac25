//! The three programs as an operator runs them.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Barrier;

use crate::helpers::{
    API, CTL, Client, System, WORKER, database, eventually, mongodb, program, program_as_it_is, serving,
    stopped,
};

async fn run(mut command: Command) -> Output {
    command.output().await.expect("it runs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_api_and_two_worker_processes_issue_a_hundred_units_to_five_hundred_users() {
    let system = System::start().await;
    let coupon = system.coupon("summer", 100, 1).await;
    let users = system.users("u", 500).await;
    let mut api = program(API, &system);
    api.args(["--listen", "127.0.0.1:0"]);
    let (api, address) = serving(api).await;
    let mut workers = Vec::new();
    for _ in 0..2 {
        let mut worker = program(WORKER, &system);
        worker.args(["--metrics-listen", "127.0.0.1:0"]);
        let (worker, health) = serving(worker).await;
        assert_eq!(Client::new(health).get("/readyz").await.status, 200);
        workers.push(worker);
    }

    let client = Client::new(address);
    let barrier = Arc::new(Barrier::new(users.len()));
    let requests = users.into_iter().map(|user| {
        let (client, barrier) = (client.clone(), Arc::clone(&barrier));
        tokio::spawn(async move {
            barrier.wait().await;
            client.issue(&user, "summer", None).await
        })
    });
    let mut serials = HashSet::new();
    for answer in join_all(requests).await {
        let answer = answer.expect("no panic");
        if answer.status == 202 {
            let decided = client.decided(&answer.id()).await;
            assert_eq!(decided.state(), "issued");
            assert!(serials.insert(decided.body["serial"].as_u64().expect("a serial")));
        } else {
            assert_eq!(answer.code(), "sold-out");
        }
    }
    assert_eq!(serials, (1..=100).collect());
    let stock = eventually("everything is settled", async || {
        let shown = client.get("/coupons/summer").await.body["stock"].clone();
        (shown["reserved"] == 0).then_some(shown)
    })
    .await;
    assert_eq!(stock, json!({"total": 100, "remaining": 0, "reserved": 0, "issued": 100}));
    assert_eq!(system.issued_serials(&coupon).await, (1..=100).collect::<Vec<_>>());

    for worker in workers {
        assert_eq!(stopped(worker).await.code(), Some(0));
    }
    assert_eq!(stopped(api).await.code(), Some(0));
}

#[tokio::test]
async fn a_program_on_a_taken_port_says_so_and_ends_with_5() {
    let system = System::start().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let mut dev = Command::new(CTL);
    dev.args(["dev", "--listen", &address]);
    let mut api = program(API, &system);
    api.args(["--listen", &address]);
    for command in [dev, api] {
        let output = run(command).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{said}");
        assert!(said.contains(&address) && said.contains("--listen"), "{said}");
    }
}

#[tokio::test]
async fn wrong_flags_end_with_2_and_help_teaches() {
    for (path, flag) in [(API, "--listen"), (WORKER, "--concurrency")] {
        let mut wrong = Command::new(path);
        wrong.args([flag, "nonsense"]);
        assert_eq!(run(wrong).await.status.code(), Some(2));
        let mut help = Command::new(path);
        help.arg("--help");
        let help = run(help).await;
        assert!(String::from_utf8_lossy(&help.stdout).contains("COUPON_REDIS_URL"));
    }
}

#[tokio::test]
async fn redis_that_does_not_fsync_always_is_refused_with_what_to_do() {
    let system = System::start().await;
    let set: redis::RedisResult<()> = redis::cmd("CONFIG")
        .arg(&["SET", "appendfsync", "everysec"])
        .query_async(&mut system.partition().connection())
        .await;
    set.expect("it is set");
    let mut api = program(API, &system);
    api.args(["--listen", "127.0.0.1:0"]);
    let output = run(api).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(
        said.contains("appendfsync everysec") && said.contains("config set appendfsync always"),
        "{said}"
    );

    let mut lowered = program(API, &system);
    lowered.args(["--listen", "127.0.0.1:0", "--redis-durability", "everysec"]);
    let (api, address) = serving(lowered).await;
    assert_eq!(Client::new(address).get("/healthz").await.status, 200);
    assert_eq!(stopped(api).await.code(), Some(0));
}

#[tokio::test]
async fn a_missing_unique_index_is_refused_with_what_to_do_and_check_names_it() {
    let system = System::start().await;
    let coupon = system.coupon("c", 1, 1).await;
    system.accepted("u0", &coupon).await;
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries).await.expect("it is decided");
    let ledger = system.backends.database.collection::<mongodb::bson::Document>("user_coupons");
    ledger.drop_index("unit_occupied_once").await.expect("it is dropped");

    let mut worker = program(WORKER, &system);
    worker.args(["--metrics-listen", "127.0.0.1:0"]);
    let mut check = Command::new(CTL);
    check.args(["check", "--redis-url", &system.redis.url(), "--mongodb-uri", &system.mongodb_uri]);
    check.args(["--mongodb-database", &system.database]);
    for command in [worker, check] {
        let output = run(command).await;
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert_eq!(output.status.code(), Some(5), "{said}");
        assert!(said.contains("unit_occupied_once") && said.contains("createIndex"), "{said}");
    }
}

#[tokio::test]
async fn a_key_that_is_made_before_the_first_start_does_not_prevent_it() {
    let system = System::start().await;
    let mut create = Command::new(CTL);
    create.args(["key", "create", "--name", "first", "--role", "operator"]);
    create.args(["--mongodb-uri", &system.mongodb_uri, "--mongodb-database", &system.database]);
    assert_eq!(run(create).await.status.code(), Some(0));
    // No process has created the indexes before the first start.
    let actions = system.backends.database.collection::<mongodb::bson::Document>("operator_actions");
    actions.drop_index("about_user").await.expect("it is dropped");

    let mut api = program_as_it_is(API, &system);
    api.args(["--listen", "127.0.0.1:0"]);
    let (api, address) = serving(api).await;
    assert_eq!(Client::new(address).get("/livez").await.status, 200);
    assert!(actions.list_index_names().await.expect("names").iter().any(|name| name == "about_user"));
    assert_eq!(stopped(api).await.code(), Some(0));
}

#[tokio::test]
async fn check_finds_nothing_wrong_with_a_system_that_runs() {
    let system = System::start().await;
    let (code, lines) = checked(&system, &system.redis_url).await;
    assert_eq!(code, Some(0));
    assert!(lines.len() >= 5 && lines.iter().all(|line| line["ok"] == true), "{lines:?}");
}

#[tokio::test]
async fn check_says_what_a_redis_lacks_that_the_system_needs() {
    let system = System::start().await;
    for (lacks, says) in [
        ("-evalsha", "runs no scripts"),
        ("-info", "no permissions to run the 'info' command"),
        ("-publish", "PUBLISH inside a script"),
        ("-subscribe", "SUBSCRIBE"),
    ] {
        let user = format!("lacks{lacks}");
        let _: String =
            system.command(&["ACL", "SETUSER", &user, "on", "nopass", "~*", "&*", "+@all", lacks]).await;
        let url = system.redis_url.replace("redis://", &format!("redis://{user}:any@"));
        let (code, lines) = checked(&system, &url).await;
        assert_eq!(code, Some(5), "{lines:?}");
        let told = |line: &serde_json::Value| {
            line["ok"] == false && line["says"].as_str().is_some_and(|text| text.contains(says))
        };
        assert!(lines.iter().any(told), "{lacks}: {lines:?}");
    }
}

/// The exit code and the lines of `couponctl check` on a system's servers, with Redis at this URL.
async fn checked(system: &System, redis_url: &str) -> (Option<i32>, Vec<serde_json::Value>) {
    let mut check = Command::new(CTL);
    check.args(["check", "--json", "--redis-url", redis_url, "--mongodb-uri", &system.mongodb_uri]);
    check.args(["--mongodb-database", &system.database]);
    let output = run(check).await;
    (output.status.code(), serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// Sends the request of a curl line of the banner, without needing curl.
async fn pasted(line: &str) -> crate::helpers::Answer {
    let url = line.split(' ').find(|word| word.starts_with("http://")).expect("a URL");
    let (address, path) = url.trim_start_matches("http://").split_once('/').expect("a path");
    let client = Client::new(address.parse().expect("an address"));
    let quoted: Vec<&str> = line.split('\'').collect();
    match quoted[..] {
        [_, header, data, body, ""] => {
            assert_eq!((header, data), ("content-type: application/json", " -d "));
            client.post(&format!("/{path}"), serde_json::from_str(body).expect("JSON")).await
        }
        _ => client.get(&format!("/{path}")).await,
    }
}

/// `couponctl dev` with a data folder and more flags; the curl lines of its banner, and the URL of its Redis.
async fn dev(folder: &Path, database: &str, flags: &[&str]) -> (Child, Vec<String>, String) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let mut dev = Command::new(CTL);
    dev.args(["dev", "--listen", &port.to_string(), "--mongodb-uri", &mongodb().await])
        .args(["--mongodb-database", database])
        .arg("--data-dir")
        .arg(folder)
        .args(flags)
        .kill_on_drop(true)
        .stdout(Stdio::piped());
    let mut dev = dev.spawn().expect("it starts");
    let mut lines = BufReader::new(dev.stdout.take().expect("its banner")).lines();
    let (mut curls, mut redis) = (Vec::new(), String::new());
    while curls.len() < 3 {
        let line = lines.next_line().await.expect("a line").expect("a whole banner");
        if let Some(url) = line.trim().strip_prefix("Redis") {
            redis = url.trim().to_owned();
        }
        if line.trim().starts_with("curl ") {
            curls.push(line.trim().to_owned());
        }
    }
    (dev, curls, redis)
}

/// Walks the curl lines of a banner for the first time.
async fn walks(curls: &[String]) {
    let accepted = pasted(&curls[0]).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    eventually("u1 holds the coupon", async || {
        (pasted(&curls[1]).await.body["items"][0]["serial"] == 1).then_some(())
    })
    .await;
    // MongoDB tells of a unit before Redis has heard of it: until then the request is a replay of the one in flight.
    let again = eventually("it is settled", async || {
        let again = pasted(&curls[2]).await;
        (again.status != 202).then_some(again)
    })
    .await;
    assert_eq!((again.status, again.code()), (409, "already-issued"));
}

#[tokio::test]
async fn dev_is_ready_walks_its_own_curl_lines_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let (dev, curls, redis) = dev(folder.path(), &database(), &[]).await;
    walks(&curls).await;
    assert_eq!(stopped(dev).await.code(), Some(0));
    assert!(redis::Client::open(redis).expect("a URL").get_connection().is_err(), "its Redis is gone");
}

#[tokio::test]
async fn dev_on_six_redis_nodes_finds_its_cluster_again() {
    let (folder, database) = (tempfile::tempdir().expect("a folder"), database());
    let (first, curls, redis) = dev(folder.path(), &database, &["--redis-nodes", "6"]).await;
    assert_eq!(redis.trim_start_matches("redis+cluster://").split(',').count(), 6, "{redis}");
    walks(&curls).await;
    assert_eq!(stopped(first).await.code(), Some(0));
    let (second, curls, _) = dev(folder.path(), &database, &["--redis-nodes", "6"]).await;
    let again = pasted(&curls[2]).await;
    assert_eq!((again.status, again.code()), (409, "already-issued"));
    assert_eq!(stopped(second).await.code(), Some(0));
}

#[tokio::test]
async fn a_process_whose_log_nobody_reads_stops_when_it_is_told_to() {
    let system = System::start().await;
    let mut api = program(API, &system);
    let mut child = api.args(["--listen", "127.0.0.1:0", "--log-format", "json"]).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
    while !lines.next_line().await.expect("a line").expect("it serves").contains("\"listen\"") {}
    drop(lines);
    let ended = tokio::time::timeout(Duration::from_secs(40), stopped(child)).await.expect("it ends");
    assert_eq!(ended.code(), Some(0));
}
