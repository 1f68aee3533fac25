//! mongod as a replica set of one, which is what majority writes and reads need.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use mongodb::{
    Client, Database,
    bson::{Document, doc},
    error::ErrorKind,
    options::{ClientOptions, ServerAddress},
};
use tokio::{net::TcpStream, time::sleep};

use super::{
    POLL_INTERVAL,
    find::ServerProgram,
    server::{Server, ServerSpec},
};

const REPLICA_SET: &str = "rs0";
/// Enough for development, and small beside everything else on the machine.
const CACHE_GB_DEFAULT: f64 = 0.25;
/// The smallest size that helps: no member replicates from it.
const OPLOG_MB: u32 = 64;
/// How long one probe may wait for a usable connection, and to connect.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(2);
/// mongod's code for "no replica set was ever set up here".
const NOT_YET_INITIALIZED: i32 = 94;

/// A mongod as a child process, the primary of its own replica set `rs0`.
pub type MongoServer = Server<MongoOptions>;

/// What a mongod is started with.
#[derive(Clone, Debug)]
pub struct MongoOptions {
    /// The folder of its data and its log; created if missing. It may have been written on another port.
    pub data_dir: PathBuf,
    /// The port to listen on; any free one if `None`.
    pub port: Option<u16>,
    /// Memory for its cache, in GB; mongod takes no less than 0.25.
    pub cache_gb: f64,
    /// More arguments.
    pub extra_args: Vec<OsString>,
}

impl MongoOptions {
    /// A small cache, on a free port.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into(), port: None, cache_gb: CACHE_GB_DEFAULT, extra_args: Vec::new() }
    }
}

impl ServerSpec for MongoOptions {
    const READY_WAIT_MAX: Duration = Duration::from_secs(60);

    fn program(&self) -> ServerProgram {
        ServerProgram::Mongod
    }

    fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    fn port(&self) -> Option<u16> {
        self.port
    }

    fn arguments(&self, port: u16) -> Vec<OsString> {
        let port = port.to_string();
        let cache_gb = self.cache_gb.to_string();
        let oplog_mb = OPLOG_MB.to_string();
        let settings = [
            ("--dbpath", "."),
            ("--bind_ip", "127.0.0.1"),
            ("--port", &port),
            ("--replSet", REPLICA_SET),
            ("--oplogSize", &oplog_mb),
            ("--wiredTigerCacheSizeGB", &cache_gb),
            // 100 MB of journal instead of 300 MB.
            ("--wiredTigerEngineConfigString", "log=(prealloc=false)"),
            ("--setParameter", "diagnosticDataCollectionEnabled=false"),
        ];
        let flags = ["--quiet", "--nounixsocket"];
        settings
            .into_iter()
            .flat_map(|(name, value)| [name.into(), value.into()])
            .chain(flags.map(OsString::from))
            .chain(self.extra_args.iter().cloned())
            .collect()
    }

    fn url(port: u16) -> String {
        format!("mongodb://127.0.0.1:{port}/?replicaSet={REPLICA_SET}")
    }

    async fn ready(&self, port: u16, pid: u32) -> anyhow::Result<()> {
        // The driver waits half a second after a refused connection, so it comes second.
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            sleep(POLL_INTERVAL).await;
        }
        let client = direct_client(port).context("could not make a MongoDB client")?;
        let admin = client.database("admin");
        loop {
            match step_to_primary(&admin, &format!("127.0.0.1:{port}"), pid).await {
                Ok(InitiateStep::Primary) => break,
                Ok(InitiateStep::NotYet) => {}
                Err(error) => tracing::trace!(port, %error, "mongod is not the primary yet"),
            }
            sleep(POLL_INTERVAL).await;
        }
        client.shutdown().immediate(true).await;
        Ok(())
    }
}

/// A client for this one server, whatever its replica set says.
fn direct_client(port: u16) -> mongodb::error::Result<Client> {
    let address = ServerAddress::Tcp { host: "127.0.0.1".to_owned(), port: Some(port) };
    let options = ClientOptions::builder()
        .hosts(vec![address])
        .direct_connection(true)
        .max_pool_size(1)
        .connect_timeout(PROBE_WAIT_MAX)
        .server_selection_timeout(PROBE_WAIT_MAX)
        .build();
    Client::with_options(options)
}

enum InitiateStep {
    Primary,
    NotYet,
}

/// Brings the server one step nearer to being the writable primary at the address `host`.
async fn step_to_primary(admin: &Database, host: &str, pid: u32) -> mongodb::error::Result<InitiateStep> {
    let status = admin.run_command(doc! { "serverStatus": 1 }).await?;
    let answers_as = status.get_i64("pid").unwrap_or_default();
    if answers_as != i64::from(pid) {
        // Another server, which is not ours to configure. Ours is about to find the port taken.
        return Ok(InitiateStep::NotYet);
    }
    let hello = admin.run_command(doc! { "hello": 1 }).await?;
    if hello.get_bool("isWritablePrimary").unwrap_or(false) && hello.get_str("me").is_ok_and(|me| me == host)
    {
        return Ok(InitiateStep::Primary);
    }
    match admin.run_command(doc! { "replSetGetConfig": 1 }).await {
        Ok(reply) => move_to(admin, host, reply).await?,
        Err(error) if is_not_yet_initialized(&error) => {
            let config = doc! { "_id": REPLICA_SET, "members": [{ "_id": 0, "host": host }] };
            admin.run_command(doc! { "replSetInitiate": config }).await?;
        }
        Err(error) => return Err(error),
    }
    Ok(InitiateStep::NotYet)
}

/// Tells the replica set its new address. Data that was written on another port knows only the old
/// one, and the server does not recognise itself; force is the way out of that.
async fn move_to(admin: &Database, host: &str, reply: Document) -> mongodb::error::Result<()> {
    let mut config = reply.get_document("config").cloned().unwrap_or_default();
    let version = config.get_i32("version").unwrap_or_default();
    let members = config.get_array_mut("members");
    let Some(member) = members.ok().and_then(|all| all.first_mut()?.as_document_mut()) else {
        return Ok(());
    };
    if member.get_str("host").is_ok_and(|old| old == host) {
        return Ok(());
    }
    member.insert("host", host);
    config.insert("version", version + 1);
    admin.run_command(doc! { "replSetReconfig": config, "force": true }).await?;
    Ok(())
}

fn is_not_yet_initialized(error: &mongodb::error::Error) -> bool {
    matches!(&*error.kind, ErrorKind::Command(command) if command.code == NOT_YET_INITIALIZED)
}
