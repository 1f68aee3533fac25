//! What changes while a cluster serves: nodes join it, and slots move.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{sleep, timeout};

use super::super::{POLL_INTERVAL, RedisServer};
use super::link::NodeLink;
use super::{ClusterOptions, FORMED_WAIT_MAX, node_options};

/// How long slots may take to move.
const MOVED_WAIT_MAX: Duration = Duration::from_secs(60);
/// Keys of a slot that are asked for at once.
const KEYS_AT_ONCE: &str = "100";
/// How long one key may take to move, in milliseconds.
const KEY_MOVED_MAX_MS: &str = "5000";

/// Starts one more node, in the folder of this number, and has it join the cluster of these nodes, all of which must
/// run: as a primary without slots, or as a replica of `primary`. Waits until all nodes know it, it takes the cluster for
/// whole, and a replica has its primary's data.
///
/// # Errors
///
/// If it does not start, or is not known in time.
pub async fn join(
    options: &ClusterOptions,
    number: usize,
    nodes: &[&RedisServer],
    primary: Option<&RedisServer>,
) -> anyhow::Result<RedisServer> {
    let node = RedisServer::start(node_options(options, number)).await?;
    let joined = async {
        let mut link = NodeLink::open(&node).await?;
        let first = nodes.first().context("there is no node to join")?.port().to_string();
        link.run::<()>(&["MEET", "127.0.0.1", &first]).await?;
        for known in nodes.iter().copied().chain([&node]) {
            NodeLink::open(known).await?.knows(nodes.len() + 1).await?;
        }
        if let Some(primary) = primary {
            let primary: String = NodeLink::open(primary).await?.run(&["MYID"]).await?;
            link.run::<()>(&["REPLICATE", &primary]).await?;
            while !link.is_replica().await? {
                sleep(POLL_INTERVAL).await;
            }
        }
        while !link.is_serving(0).await? {
            sleep(POLL_INTERVAL).await;
        }
        anyhow::Ok(())
    };
    timeout(FORMED_WAIT_MAX, joined).await.with_context(|| {
        format!("the node on port {} did not join within {FORMED_WAIT_MAX:?}", node.port())
    })??;
    Ok(node)
}

/// Moves slots from one primary to another at once, while both serve: CLUSTER MIGRATESLOTS, which Valkey 9 has. Returns
/// when the first says that they lie on the other.
///
/// # Errors
///
/// If a node refuses, or the migration fails or takes too long.
pub async fn migrate_slots(
    slots: &RangeInclusive<u16>,
    from: &RedisServer,
    to: &RedisServer,
) -> anyhow::Result<()> {
    let mut source = NodeLink::open(from).await?;
    let target: String = NodeLink::open(to).await?.run(&["MYID"]).await?;
    let (first, last) = (slots.start().to_string(), slots.end().to_string());
    source.run::<()>(&["MIGRATESLOTS", "SLOTSRANGE", &first, &last, "NODE", &target]).await?;
    let moved = async {
        loop {
            // The newest comes first.
            let migrations: Vec<HashMap<String, String>> = source.run(&["GETSLOTMIGRATIONS"]).await?;
            let newest = migrations.first().context("the node knows of no migration")?;
            let field = |name: &str| newest.get(name).map_or("", String::as_str);
            match field("state") {
                "success" => return Ok(()),
                "failed" | "cancelled" => bail!("slots {first} to {last} do not move: {}", field("message")),
                _ => sleep(POLL_INTERVAL).await,
            }
        }
    };
    timeout(MOVED_WAIT_MAX, moved)
        .await
        .with_context(|| format!("slots {first} to {last} did not move within {MOVED_WAIT_MAX:?}"))?
}

/// Moves slots from one primary to another one key after another, as every server can. Each slot is half moved for a
/// while. `others` are the other primaries, which are told where it lies.
///
/// # Errors
///
/// If a node refuses.
pub async fn move_by_key(
    slots: &RangeInclusive<u16>,
    from: &RedisServer,
    to: &RedisServer,
    others: &[&RedisServer],
) -> anyhow::Result<()> {
    let (mut source, mut target) = (NodeLink::open(from).await?, NodeLink::open(to).await?);
    let (source_id, target_id): (String, String) =
        (source.run(&["MYID"]).await?, target.run(&["MYID"]).await?);
    let mut listeners = Vec::new();
    for other in others {
        listeners.push(NodeLink::open(other).await?);
    }
    let port = to.port().to_string();
    for slot in slots.clone() {
        let slot = slot.to_string();
        target.run::<()>(&["SETSLOT", &slot, "IMPORTING", &source_id]).await?;
        source.run::<()>(&["SETSLOT", &slot, "MIGRATING", &target_id]).await?;
        loop {
            let keys: Vec<String> = source.run(&["GETKEYSINSLOT", &slot, KEYS_AT_ONCE]).await?;
            if keys.is_empty() {
                break;
            }
            for key in keys {
                let words = ["MIGRATE", "127.0.0.1", &port, &key, "0", KEY_MOVED_MAX_MS, "REPLACE"];
                source.command::<String>(&words).await?;
            }
        }
        for node in [&mut target, &mut source].into_iter().chain(&mut listeners) {
            node.run::<()>(&["SETSLOT", &slot, "NODE", &target_id]).await?;
        }
    }
    Ok(())
}

/// Whether all nodes, which must run, tell the same primaries of all slots, and serve; whether each primary has at least so
/// many replicas, and each replica its primary's data.
///
/// # Errors
///
/// If one does not answer.
pub async fn are_agreed(nodes: &[&RedisServer], replicas: usize) -> anyhow::Result<bool> {
    let mut told = None;
    for node in nodes {
        let mut link = NodeLink::open(node).await?;
        let owners = link.owners().await?;
        let served: usize = owners.iter().map(|range| range.slots.len()).sum();
        if served != super::SLOTS || *told.get_or_insert_with(|| owners.clone()) != owners {
            return Ok(false);
        }
        if link.info("cluster_slots_ok").await? != super::SLOTS || !link.is_serving(replicas).await? {
            return Ok(false);
        }
    }
    Ok(true)
}
