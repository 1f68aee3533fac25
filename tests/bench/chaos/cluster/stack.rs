//! The cluster, MongoDB, and the processes.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use coupon_system::coupon::CouponStore;
use coupon_system::dev::servers::{
    ClusterOptions, MongoOptions, MongoServer, RedisCluster, RedisEngine, RedisServer, are_agreed, join,
    slot_owners,
};
use coupon_system::ids::slot_of;
use tokio::process::Command;

use crate::instance::{Instance, free_port};
use crate::stack::{BACK_MAX, LOOK_EVERY};

const DATABASE: &str = "chaos";
/// API processes, and worker processes.
const PROCESSES: usize = 2;
/// Replicas of each primary.
const REPLICAS: usize = 1;
/// How long a node may be silent until the others take it for dead.
const NODE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a node that runs may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// All servers and processes.
pub struct ClusterStack {
    /// Whatever their roles are now.
    pub nodes: Vec<RedisServer>,
    options: ClusterOptions,
    mongodb: MongoServer,
    pub database: mongodb::Database,
    apis: Vec<Instance>,
    workers: Vec<Instance>,
    pub addresses: Vec<SocketAddr>,
    redis_url: String,
}

impl ClusterStack {
    /// Starts so many primaries, each with a replica, and everything else.
    pub async fn start(folder: &Path, primaries: usize) -> anyhow::Result<Self> {
        let mut options = ClusterOptions::new(folder.join("redis"), primaries);
        options.replicas = REPLICAS;
        options.node_timeout = NODE_TIMEOUT;
        options.engine = RedisEngine::Valkey;
        let cluster = RedisCluster::start(&options).await?;
        let mongodb = MongoServer::start(MongoOptions::new(folder.join("mongodb"))).await?;
        let database = mongodb::Client::with_uri_str(mongodb.url()).await?.database(DATABASE);
        let redis_url = cluster.url();
        let mut stack = ClusterStack {
            nodes: cluster.nodes,
            options,
            mongodb,
            database,
            apis: Vec::new(),
            workers: Vec::new(),
            addresses: Vec::new(),
            redis_url,
        };
        for number in 0..PROCESSES {
            let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
            stack.addresses.push(address);
            let mut arguments = stack.backends();
            arguments
                .extend(["--open", "--user-rate", "0", "--audit-every", "5", "--listen"].map(String::from));
            arguments.push(address.to_string());
            let (name, api) = (format!("api-{number}"), env!("CARGO_BIN_EXE_coupon-api"));
            stack.apis.push(Instance::new(folder, &name, api, None, arguments));
            let mut arguments = stack.backends();
            arguments.extend(["--metrics-listen".into(), format!("127.0.0.1:{}", free_port()?)]);
            let (name, worker) = (format!("worker-{number}"), env!("CARGO_BIN_EXE_coupon-worker"));
            stack.workers.push(Instance::new(folder, &name, worker, None, arguments));
        }
        for instance in stack.apis.iter_mut().chain(&mut stack.workers) {
            instance.run_on()?;
        }
        Ok(stack)
    }

    fn backends(&self) -> Vec<String> {
        let flags = ["--redis-url", &self.redis_url, "--mongodb-uri", &self.mongodb.url()];
        flags.into_iter().chain(["--mongodb-database", DATABASE]).map(str::to_owned).collect()
    }

    /// Restarts one process after another, which then have every replica acknowledge what they accept.
    pub async fn acknowledge(&mut self) -> anyhow::Result<()> {
        for instance in self.workers.iter_mut().chain(&mut self.apis) {
            instance.end().await?;
            instance.add_flags(["--redis-acknowledged-by".into(), REPLICAS.to_string()]);
            instance.run_on()?;
        }
        Ok(())
    }

    /// Whether no process has ended by itself.
    pub fn all_run(&mut self) -> anyhow::Result<()> {
        self.apis.iter_mut().chain(&mut self.workers).try_for_each(Instance::run_on)
    }

    /// The place among the nodes of the primary of each slot, as the node at the place `asked` tells it.
    pub async fn owners(&self, asked: usize) -> anyhow::Result<SlotOwners> {
        let mut owners = SlotOwners(Vec::new());
        for range in slot_owners(&self.nodes[asked]).await? {
            let place = self.place(range.port)?;
            owners.0.push((range.slots, place));
        }
        Ok(owners)
    }

    fn place(&self, port: u16) -> anyhow::Result<usize> {
        let place = self.nodes.iter().position(|node| node.port() == port);
        place.with_context(|| format!("no node of ours has port {port}"))
    }

    /// The place of the replica of a primary.
    pub async fn replica_of(&self, primary: usize) -> anyhow::Result<usize> {
        let port = self.nodes[primary].port().to_string();
        for (place, node) in self.nodes.iter().enumerate() {
            let mut connection = connection(node).await?;
            let replication: redis::InfoDict =
                redis::cmd("INFO").arg("replication").query_async(&mut connection).await?;
            if replication.get::<String>("master_port").as_deref() == Some(&port) {
                return Ok(place);
            }
        }
        bail!("the node on port {port} has no replica")
    }

    /// Tells one node to run a subcommand of CLUSTER.
    pub async fn tell(&self, node: usize, words: &[&str]) -> anyhow::Result<()> {
        let mut connection = connection(&self.nodes[node]).await?;
        redis::cmd("CLUSTER").arg(words).exec_async(&mut connection).await.context("a node refuses")
    }

    /// Waits until the node at the place `asked` tells that a slot lies on another node than `before`.
    pub async fn moved(&self, slot: u16, before: usize, asked: usize) -> anyhow::Result<()> {
        let started = Instant::now();
        while self.owners(asked).await?.of(slot).is_none_or(|now| now == before) {
            ensure!(
                started.elapsed() < BACK_MAX,
                "nobody took the place of node {before} within {BACK_MAX:?}"
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Waits until all nodes agree on their roles, and each primary has its replica.
    pub async fn whole(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        let nodes: Vec<&RedisServer> = self.nodes.iter().collect();
        while !are_agreed(&nodes, REPLICAS).await.unwrap_or(false) {
            ensure!(started.elapsed() < BACK_MAX, "the nodes do not agree within {BACK_MAX:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Adds a primary without slots, and its replica. Returns the primary's place.
    pub async fn add_primary(&mut self) -> anyhow::Result<usize> {
        let place = self.nodes.len();
        let known: Vec<&RedisServer> = self.nodes.iter().collect();
        let primary = join(&self.options, place, &known, None).await?;
        let known: Vec<&RedisServer> = known.into_iter().chain([&primary]).collect();
        let replica = join(&self.options, place + 1, &known, Some(&primary)).await?;
        self.nodes.extend([primary, replica]);
        Ok(place)
    }

    pub fn coupons(&self) -> CouponStore {
        CouponStore::new(&self.database)
    }

    /// Audits every coupon in full with `couponctl`. Returns its report.
    pub async fn audit(&self) -> anyhow::Result<serde_json::Value> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_couponctl"));
        let audited = command.args(["audit", "--full", "--json"]).args(self.backends()).output().await?;
        let report = serde_json::from_slice(&audited.stdout);
        report.with_context(|| String::from_utf8_lossy(&audited.stderr).into_owned())
    }

    /// Ends everything; the processes as an operator does.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        for instance in self.apis.iter_mut().chain(&mut self.workers) {
            instance.end().await?;
        }
        for node in &mut self.nodes {
            node.kill().await?;
        }
        self.mongodb.kill().await
    }
}

/// A connection that waits for answers of a node of a busy machine.
async fn connection(node: &RedisServer) -> anyhow::Result<redis::aio::MultiplexedConnection> {
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ANSWER_MAX))
        .set_response_timeout(Some(ANSWER_MAX));
    let client = redis::Client::open(node.url())?;
    Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
}

/// Which node, by its place, is the primary of which slots.
#[derive(Debug)]
pub struct SlotOwners(Vec<(std::ops::RangeInclusive<u16>, usize)>);

impl SlotOwners {
    pub fn of(&self, slot: u16) -> Option<usize> {
        self.0.iter().find(|(slots, _)| slots.contains(&slot)).map(|(_, place)| *place)
    }

    /// The slots of a node around one of them, of those that lie side by side at most so many in each direction.
    pub fn around(&self, slot: u16, reach: u16) -> std::ops::RangeInclusive<u16> {
        let range = self.0.iter().find(|(slots, _)| slots.contains(&slot));
        let (first, last) = range.map_or((slot, slot), |(slots, _)| (*slots.start(), *slots.end()));
        first.max(slot.saturating_sub(reach))..=last.min(slot.saturating_add(reach))
    }

    pub fn primaries(&self) -> Vec<usize> {
        let mut places: Vec<usize> = self.0.iter().map(|(_, place)| *place).collect();
        places.sort_unstable();
        places.dedup();
        places
    }
}

/// The slot of a partition.
pub fn slot(partition: coupon_system::ids::PartitionId) -> u16 {
    slot_of(partition.tag())
}
