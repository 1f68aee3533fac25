//! Asking which server is the primary of which slots: the nodes of a cluster, or the Sentinels.
//!
//! Several servers are asked at once, because the first may be the one that is frozen or cut off, and knows nothing of
//! what came after. Of their answers the one with the latest epoch counts: each failover has an epoch of its own.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rand::seq::SliceRandom;
use redis::{Pipeline, RedisError, RedisResult, Value, cmd, from_redis_value};
use tokio::time::timeout;

use super::node::RedisNode;
use super::slots::{SlotRange, read_ranges};

/// Servers that are asked at once.
const ASKED_MAX: usize = 3;
/// The longest that a server may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// How long the other answers are waited for once there is one.
const OTHERS_MAX: Duration = Duration::from_millis(200);

/// What one node of a cluster says.
pub(super) struct ClusterView {
    pub asked: Arc<RedisNode>,
    pub ranges: Vec<SlotRange>,
    epoch: u64,
    /// The node is not cut off from the majority.
    is_ok: bool,
}

/// What one Sentinel says.
struct PrimaryView {
    host: String,
    port: u16,
    epoch: u64,
}

/// Asks nodes of a cluster for its slots.
///
/// # Errors
///
/// The error of the last one asked, if none answers.
pub(super) async fn cluster(candidates: Vec<Arc<RedisNode>>) -> RedisResult<ClusterView> {
    first_wave(candidates, ask_node, |view| (view.epoch, view.is_ok)).await
}

/// Asks Sentinels for the primary of a service. Returns its host and port.
///
/// # Errors
///
/// The error of the last one asked, if none answers.
pub(super) async fn sentinel(candidates: Vec<Arc<RedisNode>>, service: &str) -> RedisResult<(String, u16)> {
    let primary = first_wave(candidates, |node| ask_sentinel(node, service), |view| view.epoch).await?;
    Ok((primary.host, primary.port))
}

/// Whether a server is a node of a cluster.
///
/// # Errors
///
/// If it does not answer.
pub(super) async fn is_of_cluster(node: &RedisNode) -> RedisResult<bool> {
    let info: String = from_redis_value(node.send(cmd("INFO").arg("cluster")).await.0?.extract_error()?)?;
    Ok(info.lines().any(|line| line == "cluster_enabled:1"))
}

/// Asks a few servers at once, in any order, then others until one answers. Returns the answer of the highest rank.
async fn first_wave<T, R: Ord, A: Future<Output = RedisResult<T>>>(
    mut candidates: Vec<Arc<RedisNode>>,
    ask: impl Fn(Arc<RedisNode>) -> A,
    rank: impl Fn(&T) -> R,
) -> RedisResult<T> {
    candidates.shuffle(&mut rand::rng());
    let mut failed = RedisError::from((redis::ErrorKind::Client, "no server is known"));
    for wave in candidates.chunks(ASKED_MAX) {
        let mut asked: FuturesUnordered<_> =
            wave.iter().map(|node| timeout(ANSWER_MAX, ask(Arc::clone(node)))).collect();
        let mut best: Option<T> = None;
        loop {
            let patience = if best.is_some() { OTHERS_MAX } else { 2 * ANSWER_MAX };
            match timeout(patience, asked.next()).await {
                Ok(Some(Ok(Ok(answer)))) => {
                    if best.as_ref().is_none_or(|best| rank(best) < rank(&answer)) {
                        best = Some(answer);
                    }
                }
                Ok(Some(Ok(Err(error)))) => failed = error,
                Ok(Some(Err(_))) => failed = std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
                Ok(None) | Err(_) => break,
            }
        }
        if let Some(best) = best {
            return Ok(best);
        }
    }
    Err(failed)
}

async fn ask_node(node: Arc<RedisNode>) -> RedisResult<ClusterView> {
    let mut pipeline = Pipeline::new();
    pipeline.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("SLOTS");
    let mut answers = node.send_all(&pipeline, 0, 2).await.0?.into_iter();
    let mut next = || answers.next().unwrap_or(Value::Nil).extract_error();
    let info: String = from_redis_value(next()?)?;
    let slots = next()?;
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(ClusterView {
        epoch: field("cluster_current_epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0),
        is_ok: field("cluster_state") == Some("ok"),
        ranges: read_ranges(&slots),
        asked: node,
    })
}

async fn ask_sentinel(node: Arc<RedisNode>, service: &str) -> RedisResult<PrimaryView> {
    let mut ask = cmd("SENTINEL");
    ask.arg("MASTER").arg(service);
    let fields: std::collections::HashMap<String, String> =
        from_redis_value(node.send(&ask).await.0?.extract_error()?)?;
    let number = |name: &str| fields.get(name).and_then(|number| number.parse::<u64>().ok());
    let port = number("port").and_then(|port| u16::try_from(port).ok());
    match (fields.get("ip"), port) {
        (Some(host), Some(port)) => {
            Ok(PrimaryView { host: host.clone(), port, epoch: number("config-epoch").unwrap_or(0) })
        }
        _ => {
            Err((redis::ErrorKind::UnexpectedReturnType, "a Sentinel does not say where the primary is")
                .into())
        }
    }
}
