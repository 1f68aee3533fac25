//! redis-server, or valkey-server in its place, with the settings that the system ships with.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use redis::{AsyncConnectionConfig, InfoDict};
use tokio::time::sleep;

use super::{
    POLL_INTERVAL,
    find::ServerProgram,
    server::{Server, ServerSpec},
};

/// How long one probe may take to connect, and to be answered.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(1);

/// A redis-server as a child process, or a valkey-server.
pub type RedisServer = Server<RedisOptions>;

/// How much a redis-server keeps when it or its machine is killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Persistence {
    /// Everything it acknowledged: an append-only file, synced before it answers. As shipped.
    #[default]
    FsyncAlways,
    /// Nothing.
    None,
}

/// Which program serves as Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedisEngine {
    /// redis-server
    #[default]
    Redis,
    /// valkey-server, which moves slots of a cluster from one node to another at once
    Valkey,
}

/// What a redis-server is started with.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// The program.
    pub engine: RedisEngine,
    /// The folder of its append-only file and its log; created if missing.
    pub data_dir: PathBuf,
    /// The port to listen on; any free one if `None`.
    pub port: Option<u16>,
    /// What it keeps.
    pub persistence: Persistence,
    /// Memory above which it refuses writes that need more, in bytes; no bound if `None`.
    pub maxmemory_bytes: Option<u64>,
    /// More arguments, e.g. `["--replicaof", "127.0.0.1 7000"]`. The server must still answer without
    /// a password, or it never counts as ready.
    pub extra_args: Vec<OsString>,
}

impl RedisOptions {
    /// The settings that the system ships with, on a free port.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            engine: RedisEngine::default(),
            data_dir: data_dir.into(),
            port: None,
            persistence: Persistence::default(),
            maxmemory_bytes: None,
            extra_args: Vec::new(),
        }
    }
}

impl ServerSpec for RedisOptions {
    const READY_WAIT_MAX: Duration = Duration::from_secs(60);

    fn program(&self) -> ServerProgram {
        match self.engine {
            RedisEngine::Redis => ServerProgram::Redis,
            RedisEngine::Valkey => ServerProgram::Valkey,
        }
    }

    fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    fn port(&self) -> Option<u16> {
        self.port
    }

    fn arguments(&self, port: u16) -> Vec<OsString> {
        let (append_only, append_fsync) = match self.persistence {
            Persistence::FsyncAlways => ("yes", "always"),
            Persistence::None => ("no", "no"),
        };
        let port = port.to_string();
        let settings = [
            ("--bind", "127.0.0.1"),
            ("--port", port.as_str()),
            // The working folder is the data folder; an absolute path could hold spaces, which
            // redis-server takes for the end of the value.
            ("--dir", "."),
            ("--daemonize", "no"),
            ("--appendonly", append_only),
            ("--appendfsync", append_fsync),
            // Rewrites are asked for at quiet times; this is for want of them.
            ("--auto-aof-rewrite-percentage", "100"),
            ("--auto-aof-rewrite-min-size", "4gb"),
            ("--save", ""),
            ("--maxmemory-policy", "noeviction"),
        ];
        let mut arguments: Vec<OsString> =
            settings.into_iter().flat_map(|(name, value)| [name.into(), value.into()]).collect();
        if let Some(bytes) = self.maxmemory_bytes {
            arguments.extend(["--maxmemory".into(), bytes.to_string().into()]);
        }
        arguments.extend(self.extra_args.iter().cloned());
        arguments
    }

    fn url(port: u16) -> String {
        format!("redis://127.0.0.1:{port}")
    }

    async fn ready(&self, port: u16, pid: u32) -> anyhow::Result<()> {
        let client = redis::Client::open(Self::url(port)).context("could not make a Redis client")?;
        loop {
            match is_serving(&client, pid).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => tracing::trace!(port, %error, "redis-server does not answer yet"),
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// Whether the process `pid` answers, with all its data read back.
async fn is_serving(client: &redis::Client, pid: u32) -> redis::RedisResult<bool> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PROBE_WAIT_MAX))
        .set_response_timeout(Some(PROBE_WAIT_MAX));
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let info: InfoDict = redis::cmd("INFO").query_async(&mut connection).await?;
    Ok(info.get("process_id") == Some(pid) && info.get("loading") == Some(0_u8))
}
