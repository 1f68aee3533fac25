//! The builder of a test's system.

use std::sync::atomic::AtomicBool;

use clap::Parser;
use coupon_system::access::{KeyStore, Role};
use coupon_system::config::ApiCommand;
use coupon_system::dev::servers::RedisCluster;
use coupon_system::recovery::Deployment;
use coupon_system::{api, process};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::servers::cluster_node;
use super::{Client, System, api_key, database, mongodb, redis};

/// The slot of the partition, by CLUSTER KEYSLOT.
const PARTITION_SLOT: usize = 13_907;

/// Describes a [`System`]: by default an API that asks no caller for credentials, on a redis-server of its own and in a
/// new database of the shared mongod.
#[derive(Default)]
pub struct SystemBuilder<'a> {
    flags: Vec<&'a str>,
    mongodb_uri: Option<String>,
    database: Option<String>,
    roles: Option<&'a [Role]>,
    partitions: u16,
    cluster: Option<RedisCluster>,
}

impl<'a> SystemBuilder<'a> {
    /// More flags for the API.
    pub fn flags(mut self, flags: &[&'a str]) -> Self {
        self.flags.extend(flags);
        self
    }

    /// Spreads coupons over this many partitions beside partition 0.
    pub fn partitions(mut self, partitions: u16) -> Self {
        self.partitions = partitions;
        self
    }

    /// Uses another mongod than the shared one.
    pub fn mongodb(mut self, uri: String) -> Self {
        self.mongodb_uri = Some(uri);
        self
    }

    /// Uses a cluster instead of a redis-server of its own. Unless the test names a number of partitions, its own coupons
    /// lie in partition 0, as those of a deployment that was on one Redis before.
    pub fn cluster(mut self, cluster: RedisCluster) -> Self {
        self.cluster = Some(cluster);
        self
    }

    /// Uses a database that may have content.
    pub fn database(mut self, name: String) -> Self {
        self.database = Some(name);
        self
    }

    /// Starts an API that asks for credentials, and creates a key for each of these roles first
    /// ([`System::api_keys`]).
    pub fn closed(mut self, roles: &'a [Role]) -> Self {
        self.roles = Some(roles);
        self
    }

    /// Starts servers and an API, and no worker.
    pub async fn start(self) -> System {
        let mongodb_uri = match self.mongodb_uri {
            Some(uri) => uri,
            None => mongodb().await,
        };
        let database = self.database.unwrap_or_else(database);
        let is_grown = self.cluster.is_some() && self.partitions == 0;
        let (redis, other_nodes, redis_url, folder) = match self.cluster {
            Some(cluster) => {
                let url = cluster.url();
                let (redis, others) = cluster_node(cluster, PARTITION_SLOT);
                (redis, others, url, None)
            }
            None => {
                let (redis, folder) = redis().await;
                let url = redis.url();
                (redis, Vec::new(), url, Some(folder))
            }
        };
        let mut command = vec!["coupon-api", "--listen", "127.0.0.1:0"];
        command.extend(["--redis-url", &redis_url, "--mongodb-uri", &mongodb_uri]);
        command.extend(["--mongodb-database", &database]);
        command.extend(&self.flags);
        if self.roles.is_none() {
            command.push("--open");
        }
        // Only the test audits what it plants.
        if !self.flags.contains(&"--audit-every") {
            command.extend(["--audit-every", "0"]);
        }
        let command = ApiCommand::parse_from(command);
        let connect =
            async || process::connect(&command.redis, &command.mongodb).await.expect("the servers fit");
        let mut backends = connect().await;
        if self.partitions > 0 {
            Deployment::grow(&backends.database, self.partitions).await.expect("it grows");
            backends = connect().await;
        }
        let mut api_keys = Vec::new();
        for role in self.roles.unwrap_or_default() {
            api_keys.push(api_key(&KeyStore::new(&backends.database), *role).await.1);
        }
        for supervisor in backends.recovery_supervisors() {
            assert!(supervisor.ensure().await.expect("a first recovery"));
        }
        let public = TcpListener::bind(command.api.listen).await.expect("a free port");
        let client = Client::new(public.local_addr().expect("an address"));
        let operators = match command.api.access.operator_listen {
            Some(address) => Some(TcpListener::bind(address).await.expect("a free port")),
            None => None,
        };
        let operators_client =
            operators.as_ref().map(|listener| Client::new(listener.local_addr().expect("an address")));
        let listeners = api::Listeners { public, operators };
        let stop = CancellationToken::new();
        let app = api::App::start(&backends, &command.api, stop.clone()).await.expect("it starts");
        let (behind, served) = (backends.clone(), app.clone());
        let serving = tokio::spawn(async move { api::serve(listeners, served, &behind).await });
        System {
            client,
            operators_client,
            api_keys,
            backends,
            redis,
            other_nodes,
            redis_url,
            mongodb_uri,
            database,
            app,
            serving,
            stop,
            leaves_in_flight: AtomicBool::new(false),
            is_grown,
            _folder: folder,
        }
    }
}
