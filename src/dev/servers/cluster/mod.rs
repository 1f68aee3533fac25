//! A Redis Cluster on this machine: several redis-servers, and what makes a cluster of them.
//!
//! # Layout
//!
//! - here: starting one
//! - `change`: nodes that join it, slots that move
//! - `link`: a connection to one node

mod change;
mod link;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use tokio::time::{sleep, timeout};

use super::{POLL_INTERVAL, Persistence, RedisEngine, RedisOptions, RedisServer};
use link::NodeLink;

pub use change::{are_agreed, join, migrate_slots, move_by_key};
pub use link::{SlotRange, slot_owners};

/// The slots of a cluster.
const SLOTS: usize = 16_384;
/// How long the nodes may take to know each other and to agree.
const FORMED_WAIT_MAX: Duration = Duration::from_secs(60);

/// What a cluster is started with.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The folder with a folder for each node; created if missing.
    pub data_dir: PathBuf,
    /// Primaries, between which the slots are divided evenly, in their order.
    pub primaries: usize,
    /// Replicas of each primary.
    pub replicas: usize,
    /// How long a node may be silent until the others take it for dead.
    pub node_timeout: Duration,
    /// What each node keeps.
    pub persistence: Persistence,
    /// The program of each node.
    pub engine: RedisEngine,
}

impl ClusterOptions {
    /// Primaries without replicas, with the settings that the system ships with.
    pub fn new(data_dir: impl Into<PathBuf>, primaries: usize) -> Self {
        ClusterOptions {
            data_dir: data_dir.into(),
            primaries,
            replicas: 0,
            node_timeout: Duration::from_secs(5),
            persistence: Persistence::default(),
            engine: RedisEngine::default(),
        }
    }
}

/// A Redis Cluster of child processes. They are killed when it is dropped, and when this process dies.
#[derive(Debug)]
pub struct RedisCluster {
    /// The primaries in the order of their slots, then the first replica of each, the second of each, and so on; as
    /// they were at the start.
    pub nodes: Vec<RedisServer>,
    /// How many of them were primaries at the start.
    pub primaries: usize,
}

impl RedisCluster {
    /// Starts the nodes and waits until each of them knows the others, and serves. A cluster that was stopped and has
    /// kept its data becomes what it was, on whatever ports.
    ///
    /// # Errors
    ///
    /// If a node does not start, or they do not agree in time.
    pub async fn start(options: &ClusterOptions) -> anyhow::Result<Self> {
        ensure!(options.primaries > 0, "a cluster needs at least one primary");
        let count = options.primaries * (1 + options.replicas);
        let nodes =
            try_join_all((0..count).map(|number| RedisServer::start(node_options(options, number)))).await?;
        let cluster = RedisCluster { nodes, primaries: options.primaries };
        timeout(FORMED_WAIT_MAX, cluster.form(options)).await.with_context(|| {
            format!(
                "the nodes in {} did not form a cluster within {FORMED_WAIT_MAX:?}; delete the folder",
                options.data_dir.display()
            )
        })??;
        Ok(cluster)
    }

    /// Where clients connect to: all nodes.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// Asks all nodes to end, and waits until they have.
    ///
    /// # Errors
    ///
    /// That of the first node that could not be ended.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        try_join_all(self.nodes.iter_mut().map(RedisServer::stop)).await.map(drop)
    }

    async fn form(&self, options: &ClusterOptions) -> anyhow::Result<()> {
        let primaries = options.primaries;
        let mut links = try_join_all(self.nodes.iter().map(NodeLink::open)).await?;
        for (number, link) in links.iter_mut().enumerate() {
            // One that has nodes.conf of an earlier run has its slots, and knows its primary.
            if link.info("cluster_my_epoch").await? == 0 {
                link.run::<()>(&["SET-CONFIG-EPOCH", &(number + 1).to_string()]).await?;
                if number < primaries {
                    let (first, last) = (number * SLOTS / primaries, (number + 1) * SLOTS / primaries - 1);
                    link.run::<()>(&["ADDSLOTSRANGE", &first.to_string(), &last.to_string()]).await?;
                }
            }
        }
        // Nodes of an earlier run know each other by the ports of that run, and one that cannot reach most others takes the
        // cluster for failed: none waits until it hears of the rest.
        let ports: Vec<String> = self.nodes.iter().map(|node| node.port().to_string()).collect();
        for (number, link) in links.iter_mut().enumerate() {
            for (_, port) in ports.iter().enumerate().filter(|(other, _)| *other != number) {
                link.run::<()>(&["MEET", "127.0.0.1", port]).await?;
            }
        }
        for link in &mut links {
            link.knows(self.nodes.len()).await?;
        }
        for number in primaries..links.len() {
            let primary: String = links[number % primaries].run(&["MYID"]).await?;
            if !links[number].is_replica().await? {
                links[number].run::<()>(&["REPLICATE", &primary]).await?;
            }
        }
        let nodes: Vec<&RedisServer> = self.nodes.iter().collect();
        while !are_agreed(&nodes, options.replicas).await? {
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }
}

fn node_options(options: &ClusterOptions, number: usize) -> RedisOptions {
    let node_timeout = options.node_timeout.as_millis().to_string();
    let settings = [
        ("--cluster-enabled", "yes"),
        ("--cluster-config-file", "nodes.conf"),
        ("--cluster-node-timeout", node_timeout.as_str()),
        // What lies on nodes that live goes on.
        ("--cluster-require-full-coverage", "no"),
        // A replica that was cut off from its primary for long may be all that is left.
        ("--cluster-replica-validity-factor", "0"),
        // Where replicas acknowledge what is promised, users wait until the old primary follows the new one.
        ("--repl-diskless-sync-delay", "0"),
    ];
    let extra_args = settings.into_iter().flat_map(|(name, value)| [name.into(), value.into()]).collect();
    let mut node = RedisOptions::new(options.data_dir.join(number.to_string()));
    node.engine = options.engine;
    node.persistence = options.persistence;
    node.extra_args = extra_args;
    node
}
