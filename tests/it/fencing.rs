//! One ledger is served by one Redis, wherever addresses lead: a failover under living connections, a second
//! Redis, an old primary that comes back, two deployments in one Redis. And the probes tell when Redis refuses
//! what a request needs.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use coupon_system::config::ApiCommand;
use coupon_system::dev::servers::{RedisOptions, RedisServer};
use coupon_system::ids::{IssuanceId, PartitionId};
use coupon_system::issuance::reserve::Reserved;
use coupon_system::process;
use coupon_system::recovery::{
    CertifyOutcome, ProgressCallback, RecoveryMode, RecoveryOutcome, RecoveryStep, ignore_progress,
};
use coupon_system::redis::keys::certificate;
use coupon_system::service::ServiceStore;
use jiff::Timestamp;
use mongodb::bson::{DateTime, Document, doc};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::helpers::{
    API, Answer, CTL, Client, System, WORKER, at, database, eventually, mongodb, recovered, redis,
};

/// An address that can be made to lead elsewhere. What was connected before stays so, until it is cut.
struct MovableAddress {
    listen: SocketAddr,
    target: Arc<Mutex<String>>,
    connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl MovableAddress {
    async fn of(server: &RedisServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let listen = listener.local_addr().expect("an address");
        let (target, connections) = (Arc::new(Mutex::new(place(server))), Arc::default());
        let address = MovableAddress { listen, target, connections };
        let (target, connections) = (Arc::clone(&address.target), Arc::clone(&address.connections));
        tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                let target = target.lock().expect("no panic").clone();
                let connection = tokio::spawn(async move {
                    if let Ok(mut there) = TcpStream::connect(target).await {
                        let _ = copy_bidirectional(&mut here, &mut there).await;
                    }
                });
                connections.lock().expect("no panic").push(connection);
            }
        });
        address
    }

    fn url(&self) -> String {
        format!("redis://{}", self.listen)
    }

    fn leads_to(&self, server: &RedisServer) {
        *self.target.lock().expect("no panic") = place(server);
    }

    fn cut(&self) {
        self.connections.lock().expect("no panic").drain(..).for_each(|connection| connection.abort());
    }
}

fn place(server: &RedisServer) -> String {
    format!("127.0.0.1:{}", server.port())
}

/// One MongoDB database, and programs that use it with the Redis that each is told of.
struct Deployment {
    mongodb_uri: String,
    database: String,
}

/// A program that serves, and what it has logged.
struct RunningProgram {
    client: Client,
    log: Arc<Mutex<Vec<String>>>,
    child: Child,
}

impl RunningProgram {
    fn said(&self, words: &str) -> usize {
        self.log.lock().expect("no panic").iter().filter(|line| line.contains(words)).count()
    }

    async fn dies(mut self) {
        self.child.kill().await.expect("it is killed");
    }
}

impl Deployment {
    async fn new() -> Self {
        Deployment { mongodb_uri: mongodb().await, database: database() }
    }

    fn program(&self, path: &str, redis_url: &str) -> Command {
        let mut command = Command::new(path);
        command.args(["--redis-url", redis_url, "--mongodb-uri", &self.mongodb_uri]);
        command.args(["--mongodb-database", &self.database]).kill_on_drop(true);
        command
    }

    async fn api(&self, redis_url: &str) -> RunningProgram {
        let mut command = self.program(API, redis_url);
        command.args(["--open", "--listen", "127.0.0.1:0", "--require-registered-users", "false"]);
        running(command).await
    }

    async fn worker(&self, redis_url: &str) -> RunningProgram {
        let mut command = self.program(WORKER, redis_url);
        command.args(["--metrics-listen", "127.0.0.1:0"]);
        running(command).await
    }

    /// `couponctl`: its exit code, and all that it said.
    async fn ctl(&self, words: &[&str], redis_url: &str) -> (Option<i32>, String) {
        let mut command = Command::new(CTL);
        command.args(words).args(["--redis-url", redis_url, "--mongodb-uri", &self.mongodb_uri]);
        let output = command.args(["--mongodb-database", &self.database]).output().await.expect("it runs");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).expect("UTF-8"))
    }

    async fn leases(&self) -> mongodb::Collection<Document> {
        let connected = coupon_system::mongo::connect(&self.mongodb_uri, &self.database).await;
        connected.expect("a URI").collection("recovery")
    }
}

async fn running(mut command: Command) -> RunningProgram {
    command.args(["--log-format", "json"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
    let log = Arc::new(Mutex::new(Vec::new()));
    let address = loop {
        let line = lines.next_line().await.expect("a line").expect("it serves before it ends");
        let told: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
        log.lock().expect("no panic").push(line);
        if let Some(listen) = told["listen"].as_str() {
            break listen.parse().expect("an address");
        }
    };
    let logged = Arc::clone(&log);
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            logged.lock().expect("no panic").push(line);
        }
    });
    RunningProgram { client: Client::new(address), log, child }
}

/// A replica of a server, which has all of its data.
async fn replica(of: &RedisServer) -> (RedisServer, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut options = RedisOptions::new(folder.path().join("replica"));
    options.extra_args = vec!["--replicaof".into(), format!("127.0.0.1 {}", of.port()).into()];
    let server = RedisServer::start(options).await.expect("it starts");
    follows(&server, of).await;
    (server, folder)
}

/// Waits until a replica has all that its primary has.
async fn follows(replica: &RedisServer, of: &RedisServer) {
    let offset = |info: &str, name: &str| -> Option<u64> {
        info.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
    };
    eventually("the replica has everything", async || {
        let (there, here) = (info(replica).await, info(of).await);
        let up = there.contains("master_link_status:up");
        (up && offset(&there, "slave_repl_offset:")? == offset(&here, "master_repl_offset:")?).then_some(())
    })
    .await;
}

async fn info(server: &RedisServer) -> String {
    tell(server, &["INFO", "replication"]).await
}

async fn tell<T: ::redis::FromRedisValue>(server: &RedisServer, words: &[&str]) -> T {
    let client = ::redis::Client::open(server.url()).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("it answers");
    let mut command = ::redis::cmd(words[0]);
    command.arg(&words[1..]).query_async(&mut connection).await.expect("it does it")
}

async fn make_coupon(api: &Client, total: u32) {
    let coupon = json!({
        "id": "c", "name": "c", "total": total, "startsAt": at(-3600).to_string(), "endsAt": at(3600).to_string(),
    });
    eventually("the API is certified", async || {
        // Where it was made and could not be loaded yet, it is there.
        [201, 409].contains(&api.post("/coupons", coupon.clone()).await.status).then_some(())
    })
    .await;
}

/// Requests until it is answered otherwise than that it is to be repeated.
async fn issued_soon(api: &Client, user: &str) -> Answer {
    eventually("a request is accepted", async || {
        let answer = api.issue(user, "c", None).await;
        (![429, 503].contains(&answer.status)).then_some(answer)
    })
    .await
}

async fn ready(api: &Client) {
    eventually("it is ready", async || (api.get("/readyz").await.status == 200).then_some(())).await;
}

/// A's address leads to B, which was its replica, while every connection to A lives on.
async fn demoted(follow: impl Fn(&RedisServer) -> String) {
    let (a, _a) = redis().await;
    let (b, _b) = replica(&a).await;
    let (address, deployment) = (MovableAddress::of(&a).await, Deployment::new().await);
    let (api, worker) = (deployment.api(&address.url()).await, deployment.worker(&address.url()).await);
    make_coupon(&api.client, 5).await;
    let id = issued_soon(&api.client, "u0").await.id();
    assert_eq!(api.client.decided(&id).await.state(), "issued");
    follows(&b, &a).await;

    let _: ::redis::Value = tell(&b, &["REPLICAOF", "NO", "ONE"]).await;
    address.leads_to(&b);
    let port = follow(&b);
    let _: ::redis::Value = tell(&a, &["REPLICAOF", "127.0.0.1", &port]).await;
    let next = issued_soon(&api.client, "u1").await;
    assert_eq!(next.status, 202, "{next:?}");
    assert_eq!(api.client.decided(&next.id()).await.state(), "issued", "the worker is there too");
    ready(&api.client).await;
    ready(&worker.client).await;
    eventually("the outcome feed listens there", async || {
        let channels: Vec<String> = tell(&b, &["PUBSUB", "CHANNELS", "coupon:*"]).await;
        (channels.len() == 1).then_some(())
    })
    .await;
    // Nothing of ours is connected to A any more: its only client is the one that asks.
    eventually("A is left", async || {
        let clients: String = tell(&a, &["CLIENT", "LIST", "TYPE", "normal"]).await;
        let listeners: String = tell(&a, &["CLIENT", "LIST", "TYPE", "pubsub"]).await;
        (clients.trim().lines().count() <= 1 && listeners.trim().is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_became_a_replica_of_its_successor_is_left_on_every_connection() {
    demoted(|b| b.port().to_string()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_read_only_though_its_certificate_fits_is_left_on_every_connection() {
    // It follows a server that it never reaches, so nothing in it changes.
    demoted(|_| "1".to_owned()).await;
}

/// Two Redis at once for one ledger. The second is never opened beside the first.
async fn beside(one: &str, other: &str) {
    let deployment = Deployment::new().await;
    let api = deployment.api(one).await;
    make_coupon(&api.client, 2).await;
    let id = issued_soon(&api.client, "u0").await.id();

    let second = deployment.api(other).await;
    eventually("the second says why it is not certified, again and again", async || {
        (second.said("another Redis") >= 8).then_some(())
    })
    .await;
    for answer in [
        second.client.get(&format!("/issuances/{id}")).await,
        second.client.issue("u0", "c", None).await,
        second.client.get("/readyz").await,
    ] {
        assert_eq!((answer.status, answer.code()), (503, "warming-up"), "{answer:?}");
    }
    let (code, said) = deployment.ctl(&["audit", "--json"], other).await;
    assert!(code == Some(4) && said.contains("\"code\": \"another-redis\""), "{said}");
    for (words, exits) in [
        (&["check"] as &[&str], 5),
        (&["audit"], 4),
        (&["audit", "--full", "--repair"], 4),
        (&["recover"], 5),
    ] {
        let (code, said) = deployment.ctl(words, other).await;
        assert_eq!(code, Some(exits), "{words:?}: {said}");
        assert!(said.contains("another Redis") && said.contains("--redis-url"), "{words:?}: {said}");
    }
    for words in [&["check"] as &[&str], &["audit", "--full"], &["recover"]] {
        let (code, said) = deployment.ctl(words, one).await;
        assert_eq!(code, Some(0), "{words:?}: {said}");
    }
    let worker = deployment.worker(one).await;
    assert_eq!(api.client.decided(&id).await.state(), "issued", "the first goes on");

    // When nobody uses the first any more, the second takes its place by itself.
    worker.dies().await;
    api.dies().await;
    let next = issued_soon(&second.client, "u1").await;
    assert_eq!(next.status, 202, "{next:?}");
    assert_eq!(second.client.get(&format!("/issuances/{id}")).await.state(), "issued");
    let coupon = second.client.get("/coupons/c").await;
    assert_eq!(coupon.body["stock"]["issued"], json!(1), "{coupon:?}");
    // And the first does not take it back.
    let first = deployment.api(one).await;
    eventually("the first says so now", async || (first.said("another Redis") >= 2).then_some(())).await;
    assert_eq!(first.client.issue("u2", "c", None).await.code(), "warming-up");
    let (code, said) = deployment.ctl(&["check"], one).await;
    assert!(code == Some(5) && said.contains("another Redis"), "{said}");

    // By hand it does, and then it is the second that keeps out.
    let (code, said) = deployment.ctl(&["recover", "--rebuild"], one).await;
    assert_eq!(code, Some(0), "{said}");
    eventually("the second notices", async || {
        (second.client.issue("u2", "c", None).await.code() == "warming-up").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_redis_beside_one_that_serves_is_not_certified_and_says_why() {
    let ((one, _one), (other, _other)) = (redis().await, redis().await);
    beside(&one.url(), &other.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_database_of_the_same_redis_is_a_second_redis() {
    let (server, _folder) = redis().await;
    beside(&server.url(), &format!("{}/1", server.url())).await;
}

/// An answer about an issuance that was lost with a Redis: 503, or the truth and that it is.
fn keeps_its_word(answer: &Answer) {
    let told = answer.status == 404 && answer.body["redisRecoveredAt"].is_string();
    assert!(answer.status == 503 || told, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_primary_that_comes_back_with_a_certificate_that_fits_is_rebuilt_before_it_answers() {
    let (a, _a) = redis().await;
    let (mut b, _b) = replica(&a).await;
    let (address, deployment) = (MovableAddress::of(&a).await, Deployment::new().await);
    let api = deployment.api(&address.url()).await;
    make_coupon(&api.client, 3).await;
    let kept = issued_soon(&api.client, "u0").await.id();
    follows(&b, &a).await;
    let held = async |server: &RedisServer| -> (String, u64) {
        tell(server, &["HMGET", &certificate(PartitionId::ONE), "epoch", "term"]).await
    };
    let (first, _) = held(&a).await;

    // B takes over, while A is out of reach: it is not told.
    let _: ::redis::Value = tell(&b, &["REPLICAOF", "NO", "ONE"]).await;
    address.leads_to(&b);
    address.cut();
    let lost = issued_soon(&api.client, "u1").await;
    assert_eq!(lost.status, 202, "{lost:?}");
    let (_, term) = held(&b).await;

    // B dies, and A is back, as it was.
    b.kill().await.expect("it is killed");
    address.leads_to(&a);
    address.cut();
    let fresh = deployment.api(&address.url()).await;
    let poll = format!("/issuances/{}", lost.id());
    for client in [&fresh.client, &api.client] {
        eventually("the truth is told", async || {
            let answer = client.get(&poll).await;
            keeps_its_word(&answer);
            (answer.status == 404).then_some(())
        })
        .await;
    }
    let (epoch, later) = held(&a).await;
    assert!(epoch != first && later > term, "rebuilt: {first} {epoch}, {term} {later}");
    // What was accepted before, and is still there, is decided.
    assert_eq!(fresh.client.get(&format!("/issuances/{kept}")).await.state(), "queued");
    let _worker = deployment.worker(&address.url()).await;
    assert_eq!(api.client.decided(&kept).await.state(), "issued");
    let next = issued_soon(&fresh.client, "u2").await;
    assert_eq!(fresh.client.decided(&next.id()).await.state(), "issued");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_lives_on_beside_its_successor_accepts_nothing_that_the_other_does_not_know() {
    let (a, _a) = redis().await;
    let (b, _b) = replica(&a).await;
    let (address, deployment) = (MovableAddress::of(&a).await, Deployment::new().await);
    let api = deployment.api(&address.url()).await;
    make_coupon(&api.client, 10_000).await;
    issued_soon(&api.client, "u").await;
    follows(&b, &a).await;

    // B is promoted, and new connections go there; A is not told, and those to A live on.
    let _: ::redis::Value = tell(&b, &["REPLICAOF", "NO", "ONE"]).await;
    address.leads_to(&b);
    let started = std::time::Instant::now();
    let accepting = tokio::spawn({
        let client = api.client.clone();
        async move {
            let mut accepted = Vec::new();
            while started.elapsed() < Duration::from_secs(8) {
                let answer = client.issue(&format!("u{}", accepted.len()), "c", None).await;
                if answer.status == 202 {
                    accepted.push(answer.id());
                }
                // As people come.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            accepted
        }
    });
    let fresh = deployment.api(&address.url()).await;
    ready(&fresh.client).await;
    let accepted = accepting.await.expect("no panic");
    assert!(!accepted.is_empty());
    ready(&api.client).await;
    for id in accepted {
        for client in [&api.client, &fresh.client] {
            let answer = client.get(&format!("/issuances/{id}")).await;
            // What A accepted before B was opened went with it, and that is said.
            assert!(answer.status == 200 || answer.body["redisRecoveredAt"].is_string(), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn nothing_is_404_once_another_redis_was_opened() {
    let system = System::start().await;
    let leases = system.backends.database.collection::<Document>("recovery");
    let another = vec![doc! {"$set": {
        "opened": {"term": {"$add": ["$term", 1]}, "epoch": "", "instance": "another/0"}, "servedAt": "$$NOW",
    }}];
    leases.update_one(doc! {}, another).await.expect("it is written");
    let nobodys = IssuanceId::generate(PartitionId::ONE);
    let answer = system.client.get(&format!("/issuances/{nobodys}")).await;
    assert_eq!((answer.status, answer.code()), (503, "warming-up"), "{answer:?}");
    eventually("it takes the place of the one that serves no more", async || {
        let answer = system.client.get(&format!("/issuances/{nobodys}")).await;
        keeps_its_word(&answer);
        (answer.status == 404).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_program_that_does_not_know_of_openings_has_opened_is_remembered() {
    let deployment = Deployment::new().await;
    let (server, _folder) = redis().await;
    let api = deployment.api(&server.url()).await;
    make_coupon(&api.client, 1).await;
    let leases = deployment.leases().await;
    let before = leases.find_one(doc! {}).await.expect("a read").expect("a lease");
    let opened = before.get_document("opened").expect("it is remembered").clone();
    for forgotten in [
        doc! {"$unset": {"opened": "", "servedAt": ""}},
        doc! {"$set": {"opened": {"term": 0_i64, "epoch": "", "instance": "another/0"}}},
    ] {
        leases.update_one(doc! {}, forgotten).await.expect("it is forgotten");
        let (code, said) = deployment.ctl(&["check"], &server.url()).await;
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(api.client.get("/readyz").await.status, 200);
        eventually("it is remembered again", async || {
            let lease = leases.find_one(doc! {}).await.expect("a read").expect("a lease");
            (lease.get_document("opened").is_ok_and(|now| *now == opened)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_recovery_lease_that_ends_later_than_any_can_is_free() {
    let system = System::start().await;
    let leases = system.backends.database.collection::<Document>("recovery");
    let until = DateTime::from_millis(at(3600).as_millisecond());
    let held = doc! {"$set": {"holder": "of before the clock was put back", "until": until}};
    leases.update_one(doc! {}, held).await.expect("it is written");
    system.command::<::redis::Value>(&["DEL", &certificate(PartitionId::ONE)]).await;
    recovered(&system).await;
    assert_eq!(system.client.get("/readyz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_deployments_in_one_redis_do_not_hear_each_others_outcomes() {
    let (server, _folder) = redis().await;
    let (production, staging) = (Deployment::new().await, Deployment::new().await);
    let api = production.api(&server.url()).await;
    make_coupon(&api.client, 1).await;
    let listening = async |count: usize| {
        eventually("so many channels are listened to", async || {
            let channels: Vec<String> = tell(&server, &["PUBSUB", "CHANNELS", "coupon:*"]).await;
            (channels.len() == count).then_some(channels)
        })
        .await
    };
    let own = listening(1).await.remove(0);
    let other_api = staging.api(&format!("{}/1", server.url())).await;
    make_coupon(&other_api.client, 1).await;
    let others = listening(2).await.into_iter().find(|channel| *channel != own).expect("another");

    let id = issued_soon(&api.client, "u0").await.id();
    let now = Timestamp::now().as_millisecond();
    let announced = format!("{id} I 1 1 {now} {now} c u0");
    let heard: u64 = tell(&server, &["PUBLISH", &others, &announced]).await;
    assert_eq!(heard, 1, "by the other deployment alone");
    assert_eq!(api.client.get(&format!("/issuances/{id}?wait=1")).await.state(), "queued");
    let _: u64 = tell(&server, &["PUBLISH", &own, &announced]).await;
    eventually("what is announced on its own channel is heard", async || {
        (api.client.get(&format!("/issuances/{id}")).await.state() == "issued").then_some(())
    })
    .await;
    let lease = production.leases().await.find_one(doc! {}).await.expect("a read").expect("a lease");
    assert!(own.ends_with(lease.get_str("ledger").expect("its name")), "{own}");
}

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
        assert_eq!(refused.body["redis"], json!("refuses-writes"), "{trouble}: {refused:?}");
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
    // Whatever it refused, it lost nothing.
    tokio::time::timeout(Duration::from_secs(60), async {
        recovered(&system).await;
        assert_eq!(system.stock(&coupon).await.remaining, 9);
    })
    .await
    .expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_a_recoverer_found_out_of_date_is_not_certified_by_the_next_one_if_it_dies() {
    let mut system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 5, 1).await;
    system.accepted("u0", &coupon).await;
    system.stop().await;
    // Another Redis is opened, where the service is paused, and nobody uses it any more.
    let (other, _folder) = redis().await;
    let (other_url, uri) = (other.url(), system.mongodb_uri.clone());
    let command = ApiCommand::parse_from([
        "x",
        "--redis-url",
        &other_url,
        "--mongodb-uri",
        &uri,
        "--mongodb-database",
        &system.database,
    ]);
    let there = process::connect_to_any(&command.redis, &command.mongodb).await.expect("they fit");
    let opened = there
        .recovery_supervisor()
        .recover(RecoveryMode::Rebuild, &ignore_progress(), &CancellationToken::new())
        .await;
    assert!(matches!(opened, Ok(CertifyOutcome::Recovered(RecoveryOutcome::Rebuilt { .. }))), "{opened:?}");
    ServiceStore::new(&system.backends.database).set_paused(true).await.expect("it is paused");

    let stop = CancellationToken::new();
    let dies = stop.clone();
    let watch: ProgressCallback = Arc::new(move |step| {
        if matches!(step, RecoveryStep::Closed) {
            dies.cancel();
        }
    });
    let keeper = system.backends.recovery_supervisor();
    assert!(keeper.ensure().await.is_err(), "the other was seen to serve a moment ago");
    eventually("the first recoverer has closed it, and died", async || {
        let _ = keeper.recover(RecoveryMode::VerifyFirst, &watch, &stop).await;
        stop.is_cancelled().then_some(())
    })
    .await;
    let key = certificate(PartitionId::ONE);
    let held: (String, Option<String>, Option<String>) =
        system.command(&["HMGET", &key, "state", "epoch", "behind"]).await;
    assert!(matches!(&held, (state, None, Some(_)) if state == "closed"), "{held:?}");

    // The other serves again. By its term alone this one would be the later by now.
    assert!(there.recovery_supervisor().ensure().await.expect("it is certified"));
    let next = system.backends.recovery_supervisor();
    let kept = next.recover(RecoveryMode::VerifyFirst, &ignore_progress(), &CancellationToken::new()).await;
    assert!(kept.is_err(), "it keeps out: {kept:?}");
    let kept = eventually("the other is silent, and this one takes its place", async || {
        match next.recover(RecoveryMode::VerifyFirst, &ignore_progress(), &CancellationToken::new()).await {
            Ok(CertifyOutcome::Watching) | Err(_) => None,
            kept => Some(kept),
        }
    })
    .await;
    assert!(
        matches!(kept, Ok(CertifyOutcome::Recovered(RecoveryOutcome::Rebuilt { survivors: 1, .. }))),
        "{kept:?}"
    );
    assert_eq!(system.command::<Option<String>>(&["HGET", &key, "behind"]).await, None);
    let answer = system.reserve("u1", &coupon).await;
    assert!(matches!(answer, Reserved::Paused), "the pause that it missed holds: {answer:?}");
}
