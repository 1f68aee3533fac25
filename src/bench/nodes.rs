//! What a reservation of one coupon costs the nodes of a Redis Cluster together: processor time of their main threads.
//!
//! Clusters of one, two and four primaries run side by side, each with fsync-always. One coupon, with a share on each node,
//! is sold in turn on each cluster by scripts that are called directly, in batches of the same size. What the sum grows by
//! is what another node costs; that each has a core of its own cannot be shown on a machine that has fewer, and
//! is not needed for this.

use anyhow::Context;
use futures::future::try_join_all;
use serde::Serialize;

use super::backlog::{deliver, queue, settle_all};
use super::context::BenchContext;
use super::env::BenchEnv;
use super::report::{FigureRow, FigureTarget, row};
use super::spread::Spread;
use crate::ids::{SLOTS, Shares, slot_of};
use crate::redis::Partition;

/// Primaries of the clusters; the first is what the others are compared with.
const CLUSTERS: [usize; 3] = [1, 2, 4];
/// Reservations in one call. The last is the one that has a target.
const BATCHES: [u32; 2] = [32, 128];

/// By batch size.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodesFigures {
    pub batches: Vec<NodesBatchFigures>,
}

/// Of batches of one size.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodesBatchFigures {
    /// Reservations in one call.
    pub batch: u32,
    pub clusters: Vec<ClusterFigures>,
}

/// Of one cluster.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterFigures {
    /// Primaries of the cluster.
    pub nodes: usize,
    /// Microseconds of the main threads of all nodes together, per reservation.
    pub micros_per_reservation: Spread,
    /// The same over one node's, in the same round. To be 1.25 or less on four nodes.
    pub over_one_node: Spread,
}

pub(super) async fn measure(context: &BenchContext<'_>) -> anyhow::Result<NodesFigures> {
    let mut clusters = Vec::new();
    for nodes in CLUSTERS {
        context.say(&format!("nodes: a cluster of {nodes}"));
        clusters.push(BenchEnv::make_cluster(context, nodes).await?);
    }
    for (env, nodes) in clusters.iter().zip(CLUSTERS) {
        reserve_micros(env, nodes, BATCHES[0] * nodes as u32, BATCHES[0]).await?;
    }
    let mut rounds = BATCHES.map(|_| CLUSTERS.map(|_| Vec::new()));
    for round in 1..=context.sizes.rounds {
        context.say(&format!("nodes: round {round} of {}", context.sizes.rounds));
        for (batch, rounds) in BATCHES.iter().zip(&mut rounds) {
            let count = context.sizes.reservations.min(batch * context.sizes.calls);
            for ((env, nodes), rounds) in clusters.iter().zip(CLUSTERS).zip(rounds) {
                rounds.push(reserve_micros(env, nodes, count, *batch).await?);
            }
        }
    }
    try_join_all(clusters.into_iter().map(BenchEnv::close)).await?;
    let batches = BATCHES.into_iter().zip(rounds.map(|clusters| clusters.map(Spread::of)));
    let batches = batches.map(|(batch, micros)| NodesBatchFigures {
        batch,
        clusters: CLUSTERS
            .into_iter()
            .zip(&micros)
            .map(|(nodes, of)| ClusterFigures {
                nodes,
                micros_per_reservation: of.clone(),
                over_one_node: of.over(&micros[0]),
            })
            .collect(),
    });
    Ok(NodesFigures { batches: batches.collect() })
}

/// A partition in each of this many equal parts of the slots.
fn partitions(env: &BenchEnv, parts: usize) -> Vec<&Partition> {
    let part_of =
        |partition: &Partition| usize::from(slot_of(partition.id().tag())) * parts / usize::from(SLOTS);
    let all = || env.backends.partitions.iter().skip(1).map(AsRef::as_ref);
    (0..parts).filter_map(|part| all().find(|partition| part_of(partition) == part)).collect()
}

/// The cost of a reservation of a coupon of its own with a share on each node, `count` in all; what was queued is settled
/// after.
async fn reserve_micros(env: &BenchEnv, nodes: usize, count: u32, batch: u32) -> anyhow::Result<f64> {
    let shares = partitions(env, nodes);
    let each = count / shares.len() as u32;
    let partitions = shares.iter().map(|partition| partition.id()).collect();
    let coupon = env.coupon_over(Shares::new(partitions).context("the shares")?, count).await?;
    let before = env.redis_cpu_us().await?;
    try_join_all(shares.iter().map(|partition| queue(partition, &coupon, 0..each, batch))).await?;
    let micros = (env.redis_cpu_us().await? - before) / f64::from(each * shares.len() as u32);
    for partition in shares {
        let delivered = deliver(partition, each).await?;
        settle_all(partition, delivered).await?;
    }
    Ok(micros)
}

impl NodesFigures {
    pub(super) fn rows(&self) -> Vec<FigureRow> {
        let mut rows = Vec::new();
        for NodesBatchFigures { batch, clusters } in &self.batches {
            for ClusterFigures { nodes, micros_per_reservation: micros, over_one_node } in clusters {
                let is_judged = Some(nodes) == CLUSTERS.last() && Some(batch) == BATCHES.last();
                let ratio = row(
                    &format!("overOneNode, {nodes}, batches of {batch}"),
                    over_one_node.median,
                    &format!("{:.1} µs a reservation, all nodes together", micros.median),
                )
                .over(over_one_node);
                rows.push(if is_judged { ratio.with_target(FigureTarget::AtMost(1.25)) } else { ratio });
            }
        }
        rows
    }
}
