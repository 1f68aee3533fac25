//! The connections of a process to one Redis server: a shared one for most commands, and dedicated ones for callers
//! that block or subscribe.
//!
//! A connection can outlive its use: its server became a replica of another, loads its data, or is gone, and
//! the address resolves to another server by now. An answer that says so makes the process replace the shared
//! connection by one that resolves the address again; the owners of dedicated connections do the same.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, Pipeline, PushInfo, RedisError,
    RedisResult, Value,
};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// The longest that a command waits for its answer.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a connection to Redis may take to make.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that timed out this many times in a row is replaced: the manager itself replaces
/// only one that broke.
const TIMEOUTS_MAX: u32 = 3;
/// Between two replacements.
const REPLACE_PAUSE: Duration = Duration::from_millis(500);
/// The error codes of a server that is not, or not any more, the primary to write to.
const MISLED: [&str; 4] = ["READONLY", "MASTERDOWN", "LOADING", "UNBLOCKED"];
/// The error codes of a node of a cluster where the slot does not lie, or that is cut off from the cluster.
const ELSEWHERE: [&str; 2] = ["MOVED", "CLUSTERDOWN"];

/// Numbers all shared connections of the process, so that none is taken for another.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// The connections of this process to one Redis server.
pub(super) struct RedisNode {
    client: Client,
    shared: ArcSwap<Shared>,
    /// The runtime that drives the shared connection, whichever task replaces it. `None` if the node was made
    /// outside of a runtime.
    home: Option<Handle>,
    timeouts: AtomicU32,
}

struct Shared {
    manager: ConnectionManager,
    number: u64,
    made_at: Instant,
}

/// What an answer says about the connection that it came over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    TimedOut,
    /// It leads to a server that cannot serve, or to no server.
    Misled,
    /// It leads to a node that serves other slots.
    Elsewhere,
}

impl RedisNode {
    /// The server that is connected to like this. It connects with the first command.
    pub(super) fn open(info: ConnectionInfo, home: Option<Handle>) -> RedisResult<Arc<Self>> {
        let client = Client::open(info)?;
        let shared = ArcSwap::from_pointee(Shared::new(&client)?);
        Ok(Arc::new(RedisNode { client, shared, home, timeouts: AtomicU32::new(0) }))
    }

    /// Where the server is.
    pub(super) fn address(&self) -> &ConnectionAddr {
        self.client.get_connection_info().addr()
    }

    /// The number of the present shared connection.
    pub(super) fn number(&self) -> u64 {
        self.shared.load().number
    }

    /// Sends a command over the shared connection. Returns the number of that too.
    pub(super) async fn send(&self, command: &Cmd) -> (RedisResult<Value>, u64) {
        let (mut manager, number) = self.shared();
        (self.on_owner_runtime(manager.send_packed_command(command)).await, number)
    }

    /// Sends several commands over the shared connection. Returns the number of that too.
    pub(super) async fn send_all(
        &self,
        pipeline: &Pipeline,
        offset: usize,
        count: usize,
    ) -> (RedisResult<Vec<Value>>, u64) {
        let (mut manager, number) = self.shared();
        (self.on_owner_runtime(manager.send_packed_commands(pipeline, offset, count)).await, number)
    }

    /// A connection of the caller's own.
    pub(super) async fn dedicated(&self, response_timeout: Duration) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(response_timeout));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// A connection of the caller's own that can subscribe, and where what is published comes.
    pub(super) async fn subscribing(
        &self,
    ) -> RedisResult<(MultiplexedConnection, mpsc::UnboundedReceiver<PushInfo>)> {
        let (sender, pushed) = mpsc::unbounded_channel();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_push_sender(sender);
        let info = self.client.get_connection_info();
        // Redis tells of what is published on a slot's channel, and answers commands beside it, in RESP3 only.
        let settings = info.redis_settings().clone().set_protocol(redis::ProtocolVersion::RESP3);
        let client = Client::open(info.clone().set_redis_settings(settings))?;
        Ok((client.get_multiplexed_async_connection_with_config(&config).await?, pushed))
    }

    /// Whether the address names this machine itself.
    pub(super) fn is_of_this_machine(&self) -> bool {
        match self.address() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            }
            ConnectionAddr::Unix(_) => true,
            _ => false,
        }
    }

    /// Takes note of a verdict upon the connection of this number. Returns whether the connection is to be given up,
    /// and no other task has done so.
    pub(super) fn is_to_be_replaced(&self, verdict: Verdict, number: u64) -> bool {
        let give_up = match verdict {
            Verdict::Fine | Verdict::Elsewhere => {
                self.timeouts.store(0, Ordering::Relaxed);
                false
            }
            Verdict::TimedOut => self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= TIMEOUTS_MAX,
            Verdict::Misled => true,
        };
        give_up && number == self.number()
    }

    /// Replaces the shared connection by one that resolves the address again, unless that was done within the last
    /// half second. Returns whether it did.
    pub(super) fn replace(&self) -> bool {
        let _entered = self.home.as_ref().map(Handle::enter);
        self.timeouts.store(0, Ordering::Relaxed);
        let present = self.shared.load();
        if present.made_at.elapsed() < REPLACE_PAUSE {
            return false;
        }
        let Ok(next) = Shared::new(&self.client) else { return false };
        let replaced = self.shared.compare_and_swap(&present, Arc::new(next));
        Arc::ptr_eq(&replaced, &present)
    }

    fn shared(&self) -> (ConnectionManager, u64) {
        let shared = self.shared.load();
        (shared.manager.clone(), shared.number)
    }

    /// Polls a future of the driver within the runtime that owns the connection: tasks that the driver starts then
    /// live as long as that runtime.
    async fn on_owner_runtime<T>(&self, using: impl Future<Output = T>) -> T {
        let mut using = pin!(using);
        poll_fn(|context| {
            let _entered = self.home.as_ref().map(Handle::enter);
            using.as_mut().poll(context)
        })
        .await
    }
}

impl Shared {
    fn new(client: &Client) -> RedisResult<Self> {
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(20))
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        let manager = ConnectionManager::new_lazy_with_config(client.clone(), config)?;
        Ok(Shared { manager, number: NUMBERS.fetch_add(1, Ordering::Relaxed), made_at: Instant::now() })
    }
}

impl Verdict {
    pub(super) fn of_error(error: &RedisError) -> Self {
        if error.is_timeout() {
            Verdict::TimedOut
        } else if error.is_io_error() {
            Verdict::Misled
        } else {
            error.code().map_or(Verdict::Fine, Self::of_code)
        }
    }

    pub(super) fn of_answer(answer: &Value) -> Self {
        match answer {
            Value::ServerError(error) => Self::of_code(error.code()),
            _ => Verdict::Fine,
        }
    }

    fn of_code(code: &str) -> Self {
        if MISLED.contains(&code) {
            Verdict::Misled
        } else if ELSEWHERE.contains(&code) {
            Verdict::Elsewhere
        } else {
            Verdict::Fine
        }
    }
}
