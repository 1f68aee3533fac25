//! Real servers: one mongod for the whole run, a redis-server a test.

use std::sync::atomic::{AtomicUsize, Ordering};

use std::time::Duration;

use coupon_system::dev::servers::{
    ClusterOptions, MongoOptions, MongoServer, RedisCluster, RedisEngine, RedisOptions, RedisServer,
};
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// The shared mongod. It dies with this process; its folder is a temporary one.
struct SharedMongod {
    mongodb: MongoServer,
    _folder: TempDir,
}

static SHARED: OnceCell<SharedMongod> = OnceCell::const_new();
static DATABASES: AtomicUsize = AtomicUsize::new(0);

/// The URI of the shared mongod.
pub async fn mongodb() -> String {
    let shared = SHARED.get_or_init(async || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = MongoOptions::new(folder.path().join("mongodb"));
        let mongodb = MongoServer::start(options).await.expect("mongod starts");
        SharedMongod { mongodb, _folder: folder }
    });
    shared.await.mongodb.url()
}

/// A new name for a database.
pub fn database() -> String {
    format!("test_{}_{}", std::process::id(), DATABASES.fetch_add(1, Ordering::Relaxed))
}

/// Starts a redis-server for one test, in a folder of its own.
pub async fn redis() -> (RedisServer, TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = RedisServer::start(RedisOptions::new(folder.path().join("redis"))).await;
    (server.expect("redis-server starts"), folder)
}

/// The slots of a cluster.
const SLOTS: usize = 16_384;

/// What a cluster of three primaries is started with, each with as many replicas. The nodes take one that is silent for
/// two seconds for dead.
pub fn cluster_options(folder: &TempDir, replicas: usize, engine: RedisEngine) -> ClusterOptions {
    let mut options = ClusterOptions::new(folder.path().join("cluster"), 3);
    options.replicas = replicas;
    options.node_timeout = Duration::from_secs(2);
    options.engine = engine;
    options
}

/// Starts a cluster of redis-servers with these options.
pub async fn cluster(folder: &TempDir, replicas: usize) -> RedisCluster {
    cluster_of(&cluster_options(folder, replicas, RedisEngine::Redis)).await
}

/// Starts a cluster. Where its program is missing and cannot be fetched, the test fails and says what to do.
pub async fn cluster_of(options: &ClusterOptions) -> RedisCluster {
    let started = RedisCluster::start(options).await;
    started.unwrap_or_else(|error| panic!("the cluster does not start: {error:#}"))
}

/// The node that a slot lies on at the start, and all others in their order.
pub(super) fn cluster_node(cluster: RedisCluster, slot: usize) -> (RedisServer, Vec<RedisServer>) {
    let primaries = cluster.primaries;
    let mut nodes = cluster.nodes;
    let node = nodes.remove((slot * primaries + primaries - 1) / SLOTS);
    (node, nodes)
}
