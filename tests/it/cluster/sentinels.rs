//! Sentinels, which know the present primary.

use std::process::Stdio;

use coupon_system::dev::servers::{RedisOptions, RedisServer, ServerProgram, find};
use coupon_system::redis::RedisNodes;
use redis::cmd;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{replica_of, tell};
use crate::helpers::eventually;

/// A Sentinel as a child process, which decides alone.
struct Sentinel {
    _process: Child,
    port: u16,
}

impl Sentinel {
    async fn watching(primary: &RedisServer, folder: &TempDir) -> Self {
        let program = find(ServerProgram::Redis, |_| {}).await.expect("redis-server");
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("one").port();
        let file = folder.path().join("sentinel.conf");
        let settings = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor shop 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds shop 1000\nsentinel failover-timeout shop 3000\n",
            primary.port()
        );
        std::fs::write(&file, settings).expect("it is written");
        let mut command = Command::new(&program.path);
        command.arg(&file).arg("--sentinel").kill_on_drop(true).stdout(Stdio::null());
        if let Some(libraries) = &program.library_dir {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let sentinel = Sentinel { _process: command.spawn().expect("it starts"), port };
        eventually("the Sentinel knows the replica", async || {
            let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).expect("a URL");
            let mut connection = client.get_multiplexed_async_connection().await.ok()?;
            let replicas: Vec<redis::Value> =
                cmd("SENTINEL").arg(&["REPLICAS", "shop"]).query_async(&mut connection).await.ok()?;
            (!replicas.is_empty()).then_some(())
        })
        .await;
        sentinel
    }
}

#[tokio::test]
async fn a_failover_of_sentinels_is_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut primary =
        RedisServer::start(RedisOptions::new(folder.path().join("primary"))).await.expect("a primary");
    let replica = replica_of(&primary, &folder).await;
    let sentinel = Sentinel::watching(&primary, &folder).await;

    // One that does not answer, and one that does.
    let url = format!("redis+sentinel://127.0.0.1:1,127.0.0.1:{}/shop", sentinel.port);
    let nodes = RedisNodes::open(&url).expect("a URL");
    let client = nodes.client_of("0");
    let mut replacements = client.replacements();
    let set = async |value: u32| -> redis::RedisResult<()> {
        cmd("SET").arg("k").arg(value).query_async(&mut client.connection()).await
    };
    set(1).await.expect("the primary takes it");
    let there: u32 = tell(&primary, &["GET", "k"]).await;
    assert_eq!(there, 1);
    replacements.have_changed();

    primary.kill().await.expect("it dies");
    eventually("the replica is written to", async || set(2).await.ok()).await;
    let there: u32 = tell(&replica, &["GET", "k"]).await;
    assert_eq!(there, 2);
    assert!(replacements.have_changed());
    let unknown = RedisNodes::open(&url.replace("/shop", "/others")).expect("a URL");
    let refused: redis::RedisResult<()> =
        cmd("PING").query_async(&mut unknown.client_of("0").connection()).await;
    let refused = refused.expect_err("there is no such service").to_string();
    assert!(refused.contains("No such master"), "{refused}");
}
