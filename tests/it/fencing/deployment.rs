//! Programs of one deployment, an address that can lead to another Redis, and replicas.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use coupon_system::dev::servers::{RedisOptions, RedisServer};
use mongodb::bson::Document;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::helpers::{API, Answer, CTL, Client, WORKER, at, database, eventually, mongodb};

/// An address that a test can point at another server. Open connections stay with their server until the test cuts them.
pub struct MovableAddress {
    pub listen: SocketAddr,
    pub target: Arc<Mutex<String>>,
    pub connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl MovableAddress {
    pub async fn of(server: &RedisServer) -> Self {
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

    pub fn url(&self) -> String {
        format!("redis://{}", self.listen)
    }

    pub fn leads_to(&self, server: &RedisServer) {
        *self.target.lock().expect("no panic") = place(server);
    }

    pub fn cut(&self) {
        self.connections.lock().expect("no panic").drain(..).for_each(|connection| connection.abort());
    }
}

pub fn place(server: &RedisServer) -> String {
    format!("127.0.0.1:{}", server.port())
}

/// One MongoDB database, and programs that use it, each with the Redis that it is given.
pub struct Deployment {
    pub mongodb_uri: String,
    pub database: String,
}

/// A running program, and the lines that it has logged.
pub struct RunningProgram {
    pub client: Client,
    pub log: Arc<Mutex<Vec<String>>>,
    pub child: Child,
}

impl RunningProgram {
    pub fn said(&self, words: &str) -> usize {
        self.log.lock().expect("no panic").iter().filter(|line| line.contains(words)).count()
    }

    pub async fn dies(mut self) {
        self.child.kill().await.expect("it is killed");
    }
}

impl Deployment {
    pub async fn new() -> Self {
        Deployment { mongodb_uri: mongodb().await, database: database() }
    }

    pub fn program(&self, path: &str, redis_url: &str) -> Command {
        let mut command = Command::new(path);
        command.args(["--redis-url", redis_url, "--mongodb-uri", &self.mongodb_uri]);
        command.args(["--mongodb-database", &self.database]).kill_on_drop(true);
        command
    }

    pub async fn api(&self, redis_url: &str) -> RunningProgram {
        let mut command = self.program(API, redis_url);
        command.args(["--open", "--listen", "127.0.0.1:0", "--require-registered-users", "false"]);
        running(command).await
    }

    pub async fn worker(&self, redis_url: &str) -> RunningProgram {
        let mut command = self.program(WORKER, redis_url);
        command.args(["--metrics-listen", "127.0.0.1:0"]);
        running(command).await
    }

    /// Runs `couponctl`. Returns its exit code, and its standard output and error.
    pub async fn ctl(&self, words: &[&str], redis_url: &str) -> (Option<i32>, String) {
        let mut command = Command::new(CTL);
        command.args(words).args(["--redis-url", redis_url, "--mongodb-uri", &self.mongodb_uri]);
        let output = command.args(["--mongodb-database", &self.database]).output().await.expect("it runs");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).expect("UTF-8"))
    }

    pub async fn leases(&self) -> mongodb::Collection<Document> {
        let connected = coupon_system::mongo::connect(&self.mongodb_uri, &self.database).await;
        connected.expect("a URI").collection("recovery")
    }
}

pub async fn running(mut command: Command) -> RunningProgram {
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

/// Starts a replica of a server, and waits until it has all of the server's data.
pub async fn replica(of: &RedisServer) -> (RedisServer, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut options = RedisOptions::new(folder.path().join("replica"));
    options.extra_args = vec!["--replicaof".into(), format!("127.0.0.1 {}", of.port()).into()];
    let server = RedisServer::start(options).await.expect("it starts");
    follows(&server, of).await;
    (server, folder)
}

/// Waits until a replica has all that its primary has.
pub async fn follows(replica: &RedisServer, of: &RedisServer) {
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

pub async fn info(server: &RedisServer) -> String {
    tell(server, &["INFO", "replication"]).await
}

pub async fn tell<T: ::redis::FromRedisValue>(server: &RedisServer, words: &[&str]) -> T {
    let client = ::redis::Client::open(server.url()).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("it answers");
    let mut command = ::redis::cmd(words[0]);
    command.arg(&words[1..]).query_async(&mut connection).await.expect("it does it")
}

pub async fn make_coupon(api: &Client, total: u32) {
    let coupon = json!({
        "id": "c", "name": "c", "total": total, "startsAt": at(-3600).to_string(), "endsAt": at(3600).to_string(),
    });
    eventually("the API is certified", async || {
        // 409: an attempt before created the coupon, and could not load it yet.
        [201, 409].contains(&api.post("/coupons", coupon.clone()).await.status).then_some(())
    })
    .await;
}

/// Repeats a request until the answer is neither 429 nor 503.
pub async fn issued_soon(api: &Client, user: &str) -> Answer {
    eventually("a request is accepted", async || {
        let answer = api.issue(user, "c", None).await;
        (![429, 503].contains(&answer.status)).then_some(answer)
    })
    .await
}

pub async fn ready(api: &Client) {
    eventually("it is ready", async || (api.get("/readyz").await.status == 200).then_some(())).await;
}

/// Asserts an answer about an issuance that was lost with a Redis: 503, or a 404 that names the recovery.
pub fn keeps_its_word(answer: &Answer) {
    let told = answer.status == 404 && answer.body["redisRecoveredAt"].is_string();
    assert!(answer.status == 503 || told, "{answer:?}");
}
