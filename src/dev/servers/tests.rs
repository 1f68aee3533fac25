//! The launcher against real servers.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use mongodb::{
    Client,
    bson::{Document, doc},
};
use redis::aio::MultiplexedConnection;
use tempfile::{TempDir, tempdir};
use tokio::time::{Instant, sleep};

use super::{MongoOptions, MongoServer, POLL_INTERVAL, Persistence, RedisOptions, RedisServer, port};

/// How long anything here may take to happen that is not instant.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// How long a paused server is listened to.
const SILENCE: Duration = Duration::from_millis(200);

async fn redis_in(folder: &TempDir) -> RedisServer {
    RedisServer::start(RedisOptions::new(folder.path())).await.unwrap()
}

async fn connect(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

async fn set(server: &RedisServer, key: &str, value: &str) {
    let mut connection = connect(server).await;
    let set = redis::cmd("SET").arg(key).arg(value).to_owned();
    set.exec_async(&mut connection).await.unwrap();
}

async fn get(server: &RedisServer, key: &str) -> Option<String> {
    let mut connection = connect(server).await;
    let get = redis::cmd("GET").arg(key).to_owned();
    get.query_async(&mut connection).await.unwrap()
}

async fn setting(server: &RedisServer, name: &str) -> String {
    let mut connection = connect(server).await;
    let config_get = redis::cmd("CONFIG").arg("GET").arg(name).to_owned();
    let (_, value): (String, String) = config_get.query_async(&mut connection).await.unwrap();
    value
}

async fn insert(server: &MongoServer, id: i32) {
    let client = Client::with_uri_str(server.url()).await.unwrap();
    let coupons = client.database("test").collection::<Document>("coupons");
    coupons.insert_one(doc! { "_id": id }).await.unwrap();
}

async fn count(server: &MongoServer) -> u64 {
    let client = Client::with_uri_str(server.url()).await.unwrap();
    let coupons = client.database("test").collection::<Document>("coupons");
    coupons.count_documents(doc! {}).await.unwrap()
}

fn listens(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[tokio::test]
async fn redis_runs_with_the_shipped_settings() {
    let folder = tempdir().unwrap();
    let server = redis_in(&folder).await;

    let shipped = [
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("maxmemory-policy", "noeviction"),
        ("auto-aof-rewrite-percentage", "100"),
        ("auto-aof-rewrite-min-size", "4294967296"),
        ("save", ""),
        ("bind", "127.0.0.1"),
        ("maxmemory", "0"),
    ];
    for (name, value) in shipped {
        assert_eq!(setting(&server, name).await, value, "{name}");
    }
    let data_dir = setting(&server, "dir").await;
    assert_eq!(Path::new(&data_dir), folder.path().canonicalize().unwrap());
}

#[tokio::test]
async fn redis_runs_with_other_settings_if_told() {
    let folder = tempdir().unwrap();
    let options = RedisOptions {
        persistence: Persistence::None,
        maxmemory_bytes: Some(64 << 20),
        extra_args: vec!["--databases 4".into()],
        ..RedisOptions::new(folder.path().join("a folder"))
    };
    let server = RedisServer::start(options).await.unwrap();

    for (name, value) in [("appendonly", "no"), ("maxmemory", "67108864"), ("databases", "4")] {
        assert_eq!(setting(&server, name).await, value, "{name}");
    }
}

#[tokio::test]
async fn redis_keeps_its_data_when_killed_or_stopped_and_started_again() {
    let folder = tempdir().unwrap();
    let mut server = redis_in(&folder).await;
    let (port, first_pid) = (server.port(), server.pid());

    set(&server, "acknowledged", "before the kill").await;
    server.kill().await.unwrap();
    assert_eq!(server.pid(), None);
    assert!(!listens(port));
    server.restart().await.unwrap();
    assert_eq!(server.port(), port);
    assert_ne!(server.pid(), first_pid);
    let kept = get(&server, "acknowledged").await;
    assert_eq!(kept.as_deref(), Some("before the kill"));

    set(&server, "acknowledged", "before the stop").await;
    server.restart().await.unwrap();
    let kept = get(&server, "acknowledged").await;
    assert_eq!(kept.as_deref(), Some("before the stop"));
}

#[tokio::test]
async fn a_server_that_somebody_else_killed_can_be_started_again() {
    let folder = tempdir().unwrap();
    let mut server = redis_in(&folder).await;
    let pid = server.pid().unwrap().to_string();

    let kill = Command::new("kill").args(["-9", &pid]).status().unwrap();
    assert!(kill.success());
    let deadline = Instant::now() + WAIT_MAX;
    while listens(server.port()) && Instant::now() < deadline {
        sleep(POLL_INTERVAL).await;
    }
    server.restart().await.unwrap();
    assert!(listens(server.port()));
}

#[tokio::test]
async fn a_stopped_or_dropped_server_is_gone() {
    let folder = tempdir().unwrap();
    let mut server = redis_in(&folder).await;
    let port = server.port();
    server.stop().await.unwrap();
    assert!(!listens(port));
    server.stop().await.unwrap();
    server.kill().await.unwrap();
    drop(server);

    let server = redis_in(&folder).await;
    let port = server.port();
    drop(server);
    assert!(!listens(port));
}

#[tokio::test]
async fn a_paused_server_answers_nothing_until_it_is_resumed() {
    let folder = tempdir().unwrap();
    let mut server = redis_in(&folder).await;
    let mut connection = connect(&server).await;
    let ping = redis::cmd("PING");

    server.pause().await.unwrap();
    let silence = tokio::time::timeout(SILENCE, ping.exec_async(&mut connection)).await;
    assert!(silence.is_err(), "{silence:?}");
    server.resume().unwrap();
    let mut connection = connect(&server).await;
    ping.exec_async(&mut connection).await.unwrap();

    server.pause().await.unwrap();
    server.stop().await.unwrap();
    assert!(server.pause().await.is_err());
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let folder = tempdir().unwrap();

    let redis = RedisServer::start(RedisOptions { port: Some(port), ..RedisOptions::new(folder.path()) });
    let error = redis.await.unwrap_err().to_string();
    assert!(error.contains(&format!("port {port} is taken")), "{error}");

    let mongod = MongoServer::start(MongoOptions { port: Some(port), ..MongoOptions::new(folder.path()) });
    let error = mongod.await.unwrap_err().to_string();
    assert!(error.contains(&format!("port {port} is taken")), "{error}");
}

#[tokio::test]
async fn another_redis_on_the_port_is_not_taken_for_ours() {
    let (ours, theirs) = (tempdir().unwrap(), tempdir().unwrap());
    let theirs = redis_in(&theirs).await;
    let options = RedisOptions { port: Some(theirs.port()), ..RedisOptions::new(ours.path()) };
    let error = RedisServer::start(options).await.unwrap_err().to_string();
    assert!(error.contains("is taken"), "{error}");
}

#[tokio::test]
async fn a_data_folder_has_one_server_at_a_time() {
    let folder = tempdir().unwrap();
    let _first = redis_in(&folder).await;
    let second = RedisServer::start(RedisOptions::new(folder.path())).await;
    let error = second.unwrap_err().to_string();
    assert!(error.contains("another redis-server is running"), "{error}");
}

#[tokio::test]
async fn an_argument_that_redis_refuses_is_shown() {
    let folder = tempdir().unwrap();
    let options = RedisOptions {
        extra_args: vec!["--no-such-setting".into(), "1".into()],
        ..RedisOptions::new(folder.path())
    };
    let error = RedisServer::start(options).await.unwrap_err().to_string();
    assert!(error.contains("no-such-setting"), "{error}");
}

#[test]
fn a_server_outlives_the_thread_that_started_it() {
    let folder = tempdir().unwrap();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = std::thread::scope(|threads| {
        let start = || runtime().block_on(redis_in(&folder));
        threads.spawn(start).join().unwrap()
    });
    // The kernel would have sent its signal before the thread could be joined; the rest is dying.
    runtime().block_on(async {
        sleep(SILENCE).await;
        set(&server, "still", "here").await;
    });
}

#[tokio::test]
async fn mongod_keeps_its_data_when_killed_or_moved_to_another_port() {
    let folder = tempdir().unwrap();
    let mut server = MongoServer::start(MongoOptions::new(folder.path())).await.unwrap();
    insert(&server, 1).await;
    server.kill().await.unwrap();
    server.restart().await.unwrap();
    assert_eq!(count(&server).await, 1);
    insert(&server, 2).await;
    let first_port = server.port();
    server.stop().await.unwrap();
    drop(server);

    let other_port = std::iter::repeat_with(|| port::free().unwrap()).find(|&p| p != first_port);
    let options = MongoOptions { port: other_port, ..MongoOptions::new(folder.path()) };
    let mut server = MongoServer::start(options).await.unwrap();
    assert_eq!(count(&server).await, 2);
    insert(&server, 3).await;
    server.stop().await.unwrap();
}

/// Where the test below tells its child process to start its servers.
const ORPHAN_FOLDER_VARIABLE: &str = "COUPON_TEST_ORPHAN_FOLDER";
const ORPHAN_TEST: &str = "dev::servers::tests::starts_servers_and_waits_to_be_killed";

#[tokio::test]
async fn servers_die_with_the_process_that_started_them() {
    let folder = tempdir().unwrap();
    let ports_file = folder.path().join("ports");
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", ORPHAN_TEST, "--ignored"])
        .env(ORPHAN_FOLDER_VARIABLE, folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + WAIT_MAX;
    while !ports_file.exists() {
        assert!(Instant::now() < deadline, "the servers did not start");
        sleep(POLL_INTERVAL).await;
    }
    let ports: Vec<u16> = std::fs::read_to_string(&ports_file)
        .unwrap()
        .split_whitespace()
        .map(|port| port.parse().unwrap())
        .collect();
    assert!(ports.len() == 2 && ports.iter().all(|&port| listens(port)));

    parent.kill().unwrap();
    parent.wait().unwrap();
    while ports.iter().any(|&port| listens(port)) {
        assert!(Instant::now() < deadline, "a server was left behind");
        sleep(POLL_INTERVAL).await;
    }
    // Nor do they hold on to their folder.
    redis_in(&folder).await;
}

#[tokio::test]
#[ignore = "the part of the killed process in servers_die_with_the_process_that_started_them"]
async fn starts_servers_and_waits_to_be_killed() {
    let Some(folder) = std::env::var_os(ORPHAN_FOLDER_VARIABLE) else {
        return;
    };
    let folder = Path::new(&folder);
    let redis = RedisServer::start(RedisOptions::new(folder)).await.unwrap();
    let mongod = MongoServer::start(MongoOptions::new(folder)).await.unwrap();
    let ports = format!("{} {}", redis.port(), mongod.port());
    let unfinished = folder.join("ports.part");
    std::fs::write(&unfinished, ports).unwrap();
    std::fs::rename(unfinished, folder.join("ports")).unwrap();
    sleep(2 * WAIT_MAX).await;
}
