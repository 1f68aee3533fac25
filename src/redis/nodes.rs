//! The Redis servers of a deployment, and which of them serves which slot.
//!
//! A process has one connection a server, whatever number of partitions lies on it. Which server that is, it learns
//! from the [URL](super::address): one server serves everything; or the nodes of a cluster tell the slots of each; or
//! Sentinels tell the primary. What was learned is asked for again when an answer says that it is out of date: MOVED,
//! READONLY, a broken connection, a time-out. That is done by one task at a time, at most a few times a second, and no
//! call waits for it but those for which no server is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use redis::{Cmd, ConnectionAddr, FromRedisValue, RedisError, RedisResult, from_redis_value};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::address::{Address, Discovery};
use super::connection::RedisClient;
use super::discovery;
use super::node::{CONNECT_TIMEOUT, RedisNode, Verdict};
use super::slots::SlotMap;
use crate::Failure;
use crate::failure::SetUpError;
use crate::ids::slot_of;

/// Between two refreshes of what is known.
const REFRESH_PAUSE: Duration = Duration::from_millis(500);

/// The Redis servers of a deployment, as one process knows them.
pub struct RedisNodes {
    address: Address,
    /// The servers that the URL names, where they are asked for others.
    named: Vec<Arc<RedisNode>>,
    map: ArcSwap<SlotMap>,
    /// The runtime that drives connections, whichever task makes them. `None` if this was made outside of one.
    home: Option<Handle>,
    /// Told of each change of the map, of each replaced connection, and of the end of each refresh.
    changes: watch::Sender<()>,
    is_refreshing: AtomicBool,
    /// How many replicas acknowledge what is promised.
    acknowledged_by: AtomicU8,
    last_refresh: Mutex<Refresh>,
}

/// How the last refresh went.
#[derive(Default)]
struct Refresh {
    at: Option<Instant>,
    failure: Option<String>,
}

impl RedisNodes {
    /// The servers that `url` leads to, in one of the [forms that it may have](super::address). Connects with the first
    /// command.
    ///
    /// # Errors
    ///
    /// A sentence that says what is wrong with the URL, and repeats nothing of it.
    pub fn open(url: &str) -> Result<Arc<Self>, SetUpError> {
        let address = Address::parse(url)?;
        let home = Handle::try_current().ok();
        let open = |info: &redis::ConnectionInfo| RedisNode::open(info.clone(), home.clone());
        let named: RedisResult<Vec<_>> = address.named.iter().map(open).collect();
        let named =
            named.map_err(|error| SetUpError(vec![format!("--redis-url cannot be used: {error}")]))?;
        let map = match (&address.discovery, named.first()) {
            (Discovery::None, Some(node)) => SlotMap::of_one(Arc::clone(node)),
            (Discovery::Sentinel { .. }, _) => SlotMap::unknown(false),
            _ => SlotMap::unknown(true),
        };
        Ok(Arc::new(RedisNodes {
            address,
            named,
            map: ArcSwap::from_pointee(map),
            home,
            changes: watch::Sender::new(()),
            is_refreshing: AtomicBool::new(false),
            acknowledged_by: AtomicU8::new(0),
            last_refresh: Mutex::default(),
        }))
    }

    /// The client of all keys with this hash tag.
    pub fn client_of(self: &Arc<Self>, tag: &str) -> Arc<RedisClient> {
        Arc::new(RedisClient::new(Arc::clone(self), slot_of(tag), tag))
    }

    /// Has so many replicas acknowledge what is promised before it is ([`LuaScript::promised`](super::LuaScript)).
    pub fn acknowledge_by(&self, replicas: u8) {
        self.acknowledged_by.store(replicas, Ordering::Relaxed);
    }

    /// How many replicas must acknowledge what is promised; 0 if none need to.
    pub(crate) fn acknowledged_by(&self) -> u8 {
        self.acknowledged_by.load(Ordering::Relaxed)
    }

    /// Finds out whether the servers form a cluster, and where its slots lie.
    ///
    /// # Errors
    ///
    /// If no server answers.
    pub(crate) async fn discover(self: &Arc<Self>) -> Result<(), Failure> {
        let failed = || Failure::redis("say which servers there are");
        if let (Discovery::None, Some(node)) = (&self.address.discovery, self.named.first())
            && !self.is_cluster()
        {
            if discovery::is_of_cluster(node).await.map_err(failed())? {
                self.map.rcu(|map| map.as_cluster());
            } else {
                return Ok(());
            }
        }
        self.refresh().await.map_err(failed())
    }

    /// Whether the servers form a cluster, as far as is known.
    pub fn is_cluster(&self) -> bool {
        self.map.load().is_cluster
    }

    /// The primaries that are known now.
    pub(crate) fn primaries(self: &Arc<Self>) -> Vec<Primary> {
        let of = |node: &Arc<RedisNode>| Primary { nodes: Arc::clone(self), node: Arc::clone(node) };
        self.map.load().nodes.iter().map(of).collect()
    }

    /// The number of the database.
    pub(super) fn database(&self) -> i64 {
        self.address.database()
    }

    /// Told of changes: see [`RedisClient::replacements`].
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The node that serves a slot, if one is known.
    pub(super) fn known_node(&self, slot: u16) -> Option<Arc<RedisNode>> {
        self.map.load().node(slot).map(Arc::clone)
    }

    /// The node that serves a slot. Waits a moment for one if none is known.
    ///
    /// # Errors
    ///
    /// If none is found.
    pub(super) async fn node(self: &Arc<Self>, slot: u16) -> RedisResult<Arc<RedisNode>> {
        match self.known_node(slot) {
            Some(node) => Ok(node),
            None => self.wait_for_node(slot).await,
        }
    }

    async fn wait_for_node(self: &Arc<Self>, slot: u16) -> RedisResult<Arc<RedisNode>> {
        let mut changes = self.changes();
        let found = async {
            loop {
                if let Some(node) = self.known_node(slot) {
                    return node;
                }
                self.refresh_soon();
                // The sender lives as long as `self`.
                let _ = changes.changed().await;
            }
        };
        timeout(CONNECT_TIMEOUT, found).await.map_err(|_| {
            let why = self.last_refresh.lock().failure.clone();
            let why = why.unwrap_or_else(|| format!("no node of the cluster serves slot {slot}"));
            RedisError::from(std::io::Error::new(std::io::ErrorKind::NotConnected, why))
        })
    }

    /// Acts upon what an answer says about the connection of this number, and the node that it leads to.
    pub(super) fn judge(self: &Arc<Self>, node: &RedisNode, number: u64, verdict: Verdict) {
        if node.is_to_be_replaced(verdict, number) {
            self.replace(node);
        }
        if verdict != Verdict::Fine {
            self.refresh_soon();
        }
    }

    /// Replaces the connections to a node, at most every half second.
    pub(super) fn replace(self: &Arc<Self>, node: &RedisNode) {
        if node.replace() {
            self.changes.send_replace(());
        }
        self.refresh_soon();
    }

    /// Learns anew which server serves what. Where the URL names the one server, its address is resolved again.
    pub(super) fn find_again(self: &Arc<Self>) {
        match self.named.first() {
            Some(node) if self.is_fixed() => self.replace(node),
            _ => self.refresh_soon(),
        }
    }

    /// Whether the URL names the one server.
    fn is_fixed(&self) -> bool {
        self.address.discovery == Discovery::None && !self.is_cluster()
    }

    /// Has a slot served by the node at `address`, a host and a port, as the node `told` says; and learns what else has
    /// moved. Returns whether it is a new place.
    pub(super) fn redirect(self: &Arc<Self>, slot: u16, address: &str, told: &RedisNode) -> bool {
        let place = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let Some((host, port)) = place else { return false };
        let known = self.map.load_full();
        let Ok(node) = self.node_at(&known, Some(host).filter(|host| !host.is_empty()), port, told) else {
            return false;
        };
        let is_new = !std::ptr::eq(Arc::as_ptr(&node), told);
        if is_new {
            self.map.rcu(|map| map.with_moved(slot, Arc::clone(&node)));
            self.changes.send_replace(());
        }
        self.refresh_soon();
        is_new
    }

    /// Learns anew which node serves which slot, in the background and soon, unless that is under way. Does nothing
    /// where one server serves everything.
    pub(super) fn refresh_soon(self: &Arc<Self>) {
        if self.is_fixed() || self.is_refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let under_way = UnderWay(Arc::clone(self));
        let task = async move {
            let nodes = &under_way.0;
            let last = nodes.last_refresh.lock().at;
            if let Some(last) = last {
                sleep_until(last + REFRESH_PAUSE.mul_f64(rand::random_range(0.5..1.0))).await;
            }
            let _ = nodes.refresh().await;
        };
        match &self.home {
            Some(home) => drop(home.spawn(task)),
            None => drop(tokio::spawn(task)),
        }
    }

    async fn refresh(&self) -> RedisResult<()> {
        let learned = self.learn().await;
        let failure = learned.as_ref().err().map(ToString::to_string);
        if let Ok(map) = learned {
            self.adopt(map);
        }
        let mut last = self.last_refresh.lock();
        match (&last.failure, &failure) {
            (None, Some(error)) => tracing::warn!(error, "cannot learn where the slots of Redis lie"),
            (Some(_), None) => tracing::info!("it is known again where the slots of Redis lie"),
            _ => {}
        }
        *last = Refresh { at: Some(Instant::now()), failure: failure.clone() };
        failure.map_or(Ok(()), |why| Err(std::io::Error::other(why).into()))
    }

    async fn learn(&self) -> RedisResult<SlotMap> {
        let known = self.map.load_full();
        if let Discovery::Sentinel { service } = &self.address.discovery {
            let (host, port) = discovery::sentinel(self.named.clone(), service).await?;
            return Ok(SlotMap::of_one(self.open_node(&known, &host, port)?));
        }
        let mut candidates = known.nodes.clone();
        let is_unknown = |node: &&Arc<RedisNode>| known.at(node.address()).is_none();
        candidates.extend(self.named.iter().filter(is_unknown).map(Arc::clone));
        let view = discovery::cluster(candidates).await?;
        let mut learned: Vec<(u16, u16, Arc<RedisNode>)> = Vec::with_capacity(view.ranges.len());
        let mut opened = known.as_cluster();
        for (first, last, host, port) in view.ranges {
            let node = self.node_at(&opened, host.as_deref(), port, &view.asked)?;
            if opened.at(node.address()).is_none() {
                opened.nodes.push(Arc::clone(&node));
            }
            learned.push((first, last, node));
        }
        Ok(SlotMap::of_ranges(learned))
    }

    fn adopt(&self, map: SlotMap) {
        if **self.map.load() == map {
            return;
        }
        let nodes: Vec<String> = map.nodes.iter().map(|node| node.address().to_string()).collect();
        tracing::info!(primaries = nodes.join(" "), "learned where the slots of Redis lie");
        self.map.store(Arc::new(map));
    }

    /// The node at this port of this host, or of the host of the node that was asked.
    fn node_at(
        &self,
        known: &SlotMap,
        host: Option<&str>,
        port: u16,
        asked: &RedisNode,
    ) -> RedisResult<Arc<RedisNode>> {
        let host = match (host, asked.address()) {
            (Some(host), _) => host,
            (None, ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. }) => host,
            _ => {
                return Err((redis::ErrorKind::Client, "a node of a cluster does not say where it is").into());
            }
        };
        self.open_node(known, host, port)
    }

    fn open_node(&self, known: &SlotMap, host: &str, port: u16) -> RedisResult<Arc<RedisNode>> {
        let info = self.address.at(host, port);
        let named = || self.named.iter().find(|node| node.address() == info.addr());
        match known.at(info.addr()).or_else(named) {
            Some(node) => Ok(Arc::clone(node)),
            None => RedisNode::open(info, self.home.clone()),
        }
    }
}

/// A primary, for questions about the server itself.
pub(crate) struct Primary {
    pub(super) nodes: Arc<RedisNodes>,
    pub(super) node: Arc<RedisNode>,
}

impl Primary {
    /// Where it is.
    pub(crate) fn name(&self) -> String {
        self.node.address().to_string()
    }

    /// Sends a command that concerns no key, and returns its answer.
    ///
    /// # Errors
    ///
    /// If it does not answer, or refuses.
    pub(crate) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let (answered, number) = self.node.send(command).await;
        let verdict = answered.as_ref().map_or_else(Verdict::of_error, Verdict::of_answer);
        self.nodes.judge(&self.node, number, verdict);
        Ok(from_redis_value(answered?.extract_error()?)?)
    }
}

/// Says, when it ends, however it ends, that no refresh is under way.
struct UnderWay(Arc<RedisNodes>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.is_refreshing.store(false, Ordering::Release);
        self.0.changes.send_replace(());
    }
}
