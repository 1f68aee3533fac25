//! The servers and processes, and the faults that the bench can inject into them.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use coupon_system::dev::servers::{
    MongoOptions, RedisOptions, RedisServer, Server, ServerProgram, ServerSpec,
};
use mongodb::bson::{Document, doc};
use mongodb::options::{ClientOptions, ServerAddress};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use super::instance::{Instance, free_port};

/// The longest time that a server or process may take to return.
pub const BACK_MAX: Duration = Duration::from_secs(60);
pub const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A server that takes longer to answer counts as ended.
const PING_MAX: Duration = Duration::from_secs(5);
const DATABASE: &str = "chaos";
/// Room of each server whose disk is filled up, in MiB.
const DISK_MIB: u32 = 512;

/// A member of a replica set of several. It is ready when it answers, whichever member is the primary.
pub struct ReplicaMember(MongoOptions);

impl ServerSpec for ReplicaMember {
    const READY_WAIT_MAX: Duration = MongoOptions::READY_WAIT_MAX;

    fn program(&self) -> ServerProgram {
        self.0.program()
    }

    fn data_dir(&self) -> &Path {
        self.0.data_dir()
    }

    fn port(&self) -> Option<u16> {
        self.0.port()
    }

    fn arguments(&self, port: u16) -> Vec<OsString> {
        self.0.arguments(port)
    }

    fn url(port: u16) -> String {
        format!("mongodb://127.0.0.1:{port}/?directConnection=true")
    }

    async fn ready(&self, port: u16, _: u32) -> anyhow::Result<()> {
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        while admin(port, doc! {"ping": 1}).await.is_err() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

/// Runs a command on this one server, whatever its replica set says.
pub async fn admin(port: u16, command: Document) -> anyhow::Result<Document> {
    let options = ClientOptions::builder()
        .hosts(vec![ServerAddress::Tcp { host: "127.0.0.1".into(), port: Some(port) }])
        .direct_connection(true)
        .server_selection_timeout(Duration::from_secs(3))
        .build();
    let client = mongodb::Client::with_options(options)?;
    let answer = client.database("admin").run_command(command).await;
    client.shutdown().immediate(true).await;
    Ok(answer?)
}

/// One address for the primary Redis. Open connections stay with the server that they lead to.
struct PrimaryProxy {
    port: u16,
    target: Arc<AtomicU16>,
}

impl PrimaryProxy {
    async fn start(target: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let (port, target) = (listener.local_addr()?.port(), Arc::new(AtomicU16::new(target)));
        let leads_to = Arc::clone(&target);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let leads_to = leads_to.load(Ordering::Relaxed);
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(("127.0.0.1", leads_to)).await else { return };
                    let _ = (client.set_nodelay(true), server.set_nodelay(true));
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Ok(PrimaryProxy { port, target })
    }
}

/// All servers and processes.
pub struct Stack {
    pub redis: [RedisServer; 2],
    /// Which of the two Redis is the primary.
    pub primary: usize,
    switch: PrimaryProxy,
    pub members: Vec<Server<ReplicaMember>>,
    pub database: mongodb::Database,
    pub apis: Vec<Instance>,
    pub workers: Vec<Instance>,
    pub addresses: Vec<SocketAddr>,
    /// An operator's API key.
    pub token: String,
    mongodb_uri: String,
    /// Whether the servers have disks that can be filled up.
    pub has_disks: bool,
    disks: TmpfsMounts,
}

/// File systems of their own, which end with this.
#[derive(Default)]
struct TmpfsMounts(Vec<PathBuf>);

impl TmpfsMounts {
    /// Mounts one at the folder, if this process may.
    fn mount(&mut self, folder: &Path) -> anyhow::Result<bool> {
        std::fs::create_dir_all(folder)?;
        let size = format!("size={DISK_MIB}m");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(folder)
            .stderr(Stdio::null())
            .status();
        let mounted = mounted.is_ok_and(|status| status.success());
        if mounted {
            self.0.push(folder.to_owned());
        }
        Ok(mounted)
    }
}

impl Drop for TmpfsMounts {
    fn drop(&mut self) {
        for folder in &self.0 {
            let _ = std::process::Command::new("umount").arg("-l").arg(folder).status();
        }
    }
}

/// Fills the file system of a folder up; gives the room back when it is dropped.
pub struct DiskFiller(PathBuf);

impl DiskFiller {
    pub fn fill(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("filler");
        let mut file = std::fs::File::create(&path)?;
        let zeros = vec![0_u8; 1 << 20];
        let mut piece = zeros.len();
        while piece > 0 {
            match file.write(&zeros[..piece]) {
                Ok(0) | Err(_) => piece /= 2,
                Ok(_) => {}
            }
        }
        Ok(DiskFiller(path))
    }
}

impl Drop for DiskFiller {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Stack {
    pub async fn start(folder: &Path, other: Option<&Path>) -> anyhow::Result<Self> {
        let mut disks = TmpfsMounts::default();
        let folders: Vec<PathBuf> = ["redis-0", "redis-1", "mongodb-0", "mongodb-1", "mongodb-2"]
            .into_iter()
            .map(|name| folder.join(name))
            .collect();
        let mut has_disks = true;
        for folder in &folders {
            has_disks = disks.mount(folder)? && has_disks;
        }
        if !has_disks {
            println!("no disk is filled up in this run: it may not mount file systems (it would as root)");
        }

        let first = RedisServer::start(RedisOptions::new(&folders[0])).await?;
        let second = RedisServer::start(RedisOptions::new(&folders[1])).await?;
        let switch = PrimaryProxy::start(first.port()).await?;

        let mut members = Vec::new();
        for folder in &folders[2..] {
            members.push(Server::start(ReplicaMember(MongoOptions::new(folder))).await?);
        }
        let hosts: Vec<String> =
            members.iter().map(|member| format!("127.0.0.1:{}", member.port())).collect();
        let listed: Vec<Document> =
            (0_i32..).zip(&hosts).map(|(id, host)| doc! {"_id": id, "host": host}).collect();
        let settings = doc! {"electionTimeoutMillis": 2_000, "heartbeatIntervalMillis": 500};
        let config = doc! {"_id": "rs0", "members": listed, "settings": settings};
        admin(members[0].port(), doc! {"replSetInitiate": config}).await?;
        let mongodb_uri = format!("mongodb://{}/?replicaSet=rs0", hosts.join(","));
        let database = mongodb::Client::with_uri_str(&mongodb_uri).await?.database(DATABASE);

        let redis_url = format!("redis://127.0.0.1:{}", switch.port);
        let backends =
            ["--redis-url", &redis_url, "--mongodb-uri", &mongodb_uri, "--mongodb-database", DATABASE];
        let (mut apis, mut workers, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..2 {
            let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
            addresses.push(address);
            let mut arguments: Vec<String> = backends.map(str::to_owned).to_vec();
            arguments.extend(["--listen".into(), address.to_string()]);
            arguments.extend(["--audit-every".into(), "5".into(), "--user-rate".into(), "0".into()]);
            let api = env!("CARGO_BIN_EXE_coupon-api");
            apis.push(Instance::new(folder, &format!("api-{number}"), api, other, arguments));
            let mut arguments: Vec<String> = backends.map(str::to_owned).to_vec();
            arguments.extend(["--metrics-listen".into(), format!("127.0.0.1:{}", free_port()?)]);
            let worker = env!("CARGO_BIN_EXE_coupon-worker");
            workers.push(Instance::new(folder, &format!("worker-{number}"), worker, other, arguments));
        }
        let mut stack = Stack {
            redis: [first, second],
            primary: 0,
            switch,
            members,
            database,
            apis,
            workers,
            addresses,
            token: String::new(),
            mongodb_uri,
            has_disks,
            disks,
        };
        stack.mongodb_primary().await?;
        stack.token = stack.create_key(other).await?;
        stack.heal().await?;
        Ok(stack)
    }

    /// Resumes and restarts everything, and waits until the servers have their roles again.
    pub async fn heal(&mut self) -> anyhow::Result<()> {
        for number in 0..self.redis.len() {
            let _ = self.redis[number].resume();
            if !self.answers(number).await {
                self.redis[number].restart().await?;
            }
        }
        self.follow().await?;
        self.switch.target.store(self.redis[self.primary].port(), Ordering::Relaxed);
        for member in &mut self.members {
            let _ = member.resume();
            let ping = tokio::time::timeout(PING_MAX, admin(member.port(), doc! {"ping": 1}));
            if !matches!(ping.await, Ok(Ok(_))) {
                member.restart().await?;
            }
        }
        self.mongodb_primary().await?;
        for instance in self.apis.iter_mut().chain(&mut self.workers) {
            instance.run_on()?;
        }
        Ok(())
    }

    /// The member that is the primary, as soon as one is.
    pub async fn mongodb_primary(&self) -> anyhow::Result<usize> {
        let started = Instant::now();
        loop {
            for (number, member) in self.members.iter().enumerate() {
                let hello = admin(member.port(), doc! {"hello": 1});
                if let Ok(Ok(hello)) = tokio::time::timeout(Duration::from_secs(2), hello).await
                    && hello.get_bool("isWritablePrimary").unwrap_or(false)
                {
                    return Ok(number);
                }
            }
            if started.elapsed() > BACK_MAX {
                bail!("MongoDB has no primary");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn answers(&self, number: usize) -> bool {
        let ping = async {
            let mut connection = self.connection(number).await?;
            redis::cmd("PING").exec_async(&mut connection).await?;
            anyhow::Ok(())
        };
        matches!(tokio::time::timeout(PING_MAX, ping).await, Ok(Ok(())))
    }

    /// A connection to one Redis, past the switch.
    pub async fn connection(&self, number: usize) -> anyhow::Result<redis::aio::MultiplexedConnection> {
        let client = redis::Client::open(self.redis[number].url())?;
        Ok(client.get_multiplexed_async_connection().await?)
    }

    /// Has the other Redis follow the primary, and waits until it does.
    async fn follow(&self) -> anyhow::Result<()> {
        let port = self.redis[self.primary].port().to_string();
        let mut replica = self.connection(1 - self.primary).await?;
        redis::cmd("REPLICAOF").arg("127.0.0.1").arg(port).exec_async(&mut replica).await?;
        self.until(1 - self.primary, "the replica follows", "master_link_status:up").await
    }

    async fn until(&self, number: usize, what: &str, line: &str) -> anyhow::Result<()> {
        let started = Instant::now();
        while started.elapsed() < BACK_MAX {
            if let Ok(mut connection) = self.connection(number).await
                && let Ok(info) =
                    redis::cmd("INFO").arg("replication").query_async::<String>(&mut connection).await
                && info.contains(line)
            {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bail!("it never happened that {what}")
    }

    /// The replica takes the primary's place, with all that was acknowledged; the address follows after
    /// `late`. Connections that were made before lead to the old primary.
    pub async fn fail_over(&mut self, late: Duration) -> anyhow::Result<()> {
        let (old, new) = (self.primary, 1 - self.primary);
        let port = self.redis[new].port().to_string();
        let mut connection = self.connection(old).await?;
        redis::cmd("FAILOVER").arg(&["TO", "127.0.0.1", &port]).exec_async(&mut connection).await?;
        self.until(new, "the replica is promoted", "role:master").await?;
        self.primary = new;
        tokio::time::sleep(late).await;
        self.switch.target.store(self.redis[new].port(), Ordering::Relaxed);
        Ok(())
    }

    pub fn has_other_release(&self) -> bool {
        self.apis.iter().any(Instance::has_other)
    }

    pub fn redis_folder(&self) -> PathBuf {
        self.redis[self.primary].spec().data_dir.clone()
    }

    pub fn member_folder(&self, number: usize) -> PathBuf {
        self.members[number].spec().0.data_dir.clone()
    }

    /// Has MongoDB refuse every write of users, or take them again (its code 371).
    pub async fn block_writes(&self, blocked: bool) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let primary = self.members[self.mongodb_primary().await?].port();
            match admin(primary, doc! {"setUserWriteBlockMode": 1, "global": blocked}).await {
                Ok(_) => return Ok(()),
                Err(error) if started.elapsed() > BACK_MAX => return Err(error),
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Runs `couponctl` on this system.
    pub async fn couponctl(&self, words: &[&str]) -> anyhow::Result<std::process::Output> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_couponctl"));
        command.args(words).args(["--redis-url", &self.redis_url(), "--mongodb-uri", &self.mongodb_uri]);
        Ok(command.args(["--mongodb-database", DATABASE]).output().await?)
    }

    /// Ends what is left of the other release, and migrates its ledger, while users request coupons.
    pub async fn finish_upgrade(&mut self) -> anyhow::Result<()> {
        for instance in self.apis.iter_mut().chain(&mut self.workers).filter(|one| one.runs_other()) {
            instance.end().await?;
            instance.choose(false);
            instance.run_on()?;
        }
        let migrated = Command::new(env!("CARGO_BIN_EXE_couponctl"))
            .args(["ledger", "migrate", "--mongodb-uri", &self.mongodb_uri, "--mongodb-database", DATABASE])
            .output()
            .await?;
        if !migrated.status.success() {
            bail!("the ledger was not migrated: {}", String::from_utf8_lossy(&migrated.stderr));
        }
        println!("{}", String::from_utf8_lossy(&migrated.stdout).trim());
        Ok(())
    }

    /// Makes an operator's API key, as an operator does before the first API runs.
    async fn create_key(&self, other: Option<&Path>) -> anyhow::Result<String> {
        let own = PathBuf::from(env!("CARGO_BIN_EXE_couponctl"));
        let created = Command::new(other.map_or(own, |other| other.join("couponctl")))
            .args(["key", "create", "--name", "chaos", "--role", "operator"])
            .args(["--mongodb-uri", &self.mongodb_uri, "--mongodb-database", DATABASE])
            .output()
            .await?;
        if !created.status.success() {
            bail!("no API key could be made: {}", String::from_utf8_lossy(&created.stderr));
        }
        Ok(String::from_utf8(created.stdout)?.trim().to_owned())
    }

    /// The address that leads to the primary Redis.
    pub fn redis_url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.switch.port)
    }

    pub fn mongodb_uri(&self) -> String {
        self.mongodb_uri.clone()
    }

    /// Ends everything; the processes as an operator does.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        for instance in self.apis.iter_mut().chain(&mut self.workers) {
            instance.end().await?;
        }
        for server in &mut self.redis {
            server.kill().await?;
        }
        for member in &mut self.members {
            member.kill().await?;
        }
        drop(self.disks);
        Ok(())
    }
}
