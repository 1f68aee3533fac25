//! A connection to one node of a cluster, for questions and orders that concern the cluster.

use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::Context;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue, InfoDict, Value};
use tokio::time::sleep;

use super::super::{POLL_INTERVAL, RedisServer};
use crate::redis::read_ranges;

const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);

/// Slots that one primary serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotRange {
    pub slots: RangeInclusive<u16>,
    /// The primary's port.
    pub port: u16,
}

/// Where a node says that the slots of its cluster lie, in their order.
///
/// # Errors
///
/// If it does not answer.
pub async fn slot_owners(node: &RedisServer) -> anyhow::Result<Vec<SlotRange>> {
    NodeLink::open(node).await?.owners().await
}

/// A connection to one node.
pub(super) struct NodeLink {
    connection: MultiplexedConnection,
}

impl NodeLink {
    pub(super) async fn open(node: &RedisServer) -> anyhow::Result<Self> {
        let client = redis::Client::open(node.url()).context("could not make a Redis client")?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_WAIT_MAX))
            .set_response_timeout(Some(ANSWER_WAIT_MAX));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(NodeLink { connection })
    }

    /// Runs a subcommand of CLUSTER.
    pub(super) async fn run<T: FromRedisValue>(&mut self, words: &[&str]) -> anyhow::Result<T> {
        let ran = redis::cmd("CLUSTER").arg(words).query_async(&mut self.connection).await;
        ran.with_context(|| format!("a node refuses CLUSTER {}", words.join(" ")))
    }

    /// Runs a command that is no subcommand of CLUSTER.
    pub(super) async fn command<T: FromRedisValue>(&mut self, words: &[&str]) -> anyhow::Result<T> {
        let ran = redis::cmd(words[0]).arg(&words[1..]).query_async(&mut self.connection).await;
        ran.with_context(|| format!("a node refuses {}", words.join(" ")))
    }

    /// Where the node says that the slots lie, in their order.
    pub(super) async fn owners(&mut self) -> anyhow::Result<Vec<SlotRange>> {
        let answer: Value = self.run(&["SLOTS"]).await?;
        let range = |(first, last, _, port)| SlotRange { slots: first..=last, port };
        let mut owners: Vec<_> = read_ranges(&answer).into_iter().map(range).collect();
        owners.sort_by_key(|range| *range.slots.start());
        Ok(owners)
    }

    /// A number of CLUSTER INFO.
    pub(super) async fn info(&mut self, name: &str) -> anyhow::Result<usize> {
        let info: String = self.run(&["INFO"]).await?;
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| value.parse().ok()).with_context(|| format!("CLUSTER INFO has no {name}"))
    }

    /// Waits until the node knows so many nodes, itself among them, by their own names: one that it is still meeting has
    /// another name, and is no primary for a replica.
    pub(super) async fn knows(&mut self, count: usize) -> anyhow::Result<()> {
        loop {
            let nodes: String = self.run(&["NODES"]).await?;
            if nodes.lines().count() == count && !nodes.contains("handshake") {
                return Ok(());
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn replication(&mut self) -> anyhow::Result<InfoDict> {
        Ok(redis::cmd("INFO").arg("replication").query_async(&mut self.connection).await?)
    }

    pub(super) async fn is_replica(&mut self) -> anyhow::Result<bool> {
        Ok(self.replication().await?.get::<String>("role").is_some_and(|role| role == "slave"))
    }

    /// Whether the node takes the cluster for whole, and has its replicas, or its primary's data.
    pub(super) async fn is_serving(&mut self, replicas: usize) -> anyhow::Result<bool> {
        let state: String = self.run(&["INFO"]).await?;
        Ok(state.lines().any(|line| line == "cluster_state:ok") && self.is_linked(replicas).await?)
    }

    /// Whether the node has so many replicas at least, or is a replica that has its primary's data.
    async fn is_linked(&mut self, replicas: usize) -> anyhow::Result<bool> {
        let replication = self.replication().await?;
        Ok(match replication.get::<String>("role").as_deref() {
            Some("slave") => {
                replication.get::<String>("master_link_status").is_some_and(|status| status == "up")
            }
            _ => replication.get::<usize>("connected_slaves").is_some_and(|linked| linked >= replicas),
        })
    }
}
