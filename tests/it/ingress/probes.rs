//! Probes: what they tell, and how rarely they ask the servers.

use std::time::{Duration, Instant};

use coupon_system::metrics::names;
use mongodb::bson::doc;
use serde_json::json;

use crate::helpers::{Client, System, WORKER, eventually, obedient_mongodb, program_as_it_is, serving};

use super::{api, raw_answer, ready};

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

/// The number of pings that the MongoDB has answered.
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
    // Probes that give up leave the others an answer, and the answer stays fresh.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_is_ready_as_long_as_requests_are_accepted_and_names_the_part_that_is_away() {
    let (mut mongod, _folder) = obedient_mongodb().await;
    // With this delay the API trusts its user cache for a quarter of an hour.
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

    // This API no longer knows which users were deleted meanwhile, so that it serves none.
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
