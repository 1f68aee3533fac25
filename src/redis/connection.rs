//! The connections of a process to one Redis address: a shared one for most commands, and dedicated ones for
//! callers that block or subscribe.
//!
//! A connection can outlive its use: its server became a replica of another, loads its data, or is gone, and
//! the address resolves to another server by now. An answer that says so makes the client replace the shared
//! connection by one that resolves the address again; the count of replacements makes the owners of dedicated
//! connections do the same.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, MultiplexedConnection, PubSub};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline, RedisError,
    RedisFuture, RedisResult, Value,
};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// The longest that a command waits for its answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a connection to Redis may take to make.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that timed out this many times in a row is replaced: the manager itself replaces
/// only one that broke.
const TIMEOUTS_MAX: u32 = 3;
/// Between two replacements.
const REPLACE_PAUSE: Duration = Duration::from_millis(500);
/// The error codes of a server that is not, or not any more, the primary to write to.
const MISLED: [&str; 4] = ["READONLY", "MASTERDOWN", "LOADING", "UNBLOCKED"];

/// The connections of this process to one Redis address.
pub struct RedisClient {
    client: Client,
    shared: RwLock<Shared>,
    /// The runtime that drives the shared connection, whichever task replaces it. `None` if the client was made
    /// outside of a runtime.
    home: Option<Handle>,
    timeouts: AtomicU32,
    replacements: watch::Sender<u64>,
}

struct Shared {
    manager: ConnectionManager,
    /// How many connections it replaced, in a row.
    number: u64,
    made_at: Instant,
}

/// What an answer says about the connection that it came over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fine,
    TimedOut,
    /// It leads to a server that cannot serve, or to no server.
    Misled,
}

impl RedisClient {
    /// A client of the Redis at `url`. It connects with the first command.
    ///
    /// # Errors
    ///
    /// If `url` is no Redis URL.
    pub fn open(url: &str) -> RedisResult<Arc<Self>> {
        let info = url.into_connection_info()?;
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let client = Client::open(info.set_tcp_settings(tcp))?;
        let shared = Shared { manager: manager(&client)?, number: 0, made_at: Instant::now() };
        Ok(Arc::new(RedisClient {
            client,
            shared: RwLock::new(shared),
            home: Handle::try_current().ok(),
            timeouts: AtomicU32::new(0),
            replacements: watch::Sender::new(0),
        }))
    }

    /// The shared connection.
    pub fn connection(self: &Arc<Self>) -> Connection {
        Connection(Arc::clone(self))
    }

    /// A connection of the caller's own. The caller drops it when [`RedisClient::replacements`] changes, and
    /// reports its errors to [`RedisClient::note`].
    pub(crate) async fn dedicated(&self, response_timeout: Duration) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(response_timeout));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// A connection that subscribes; the caller treats it as [a dedicated one](RedisClient::dedicated).
    pub async fn get_async_pubsub(&self) -> RedisResult<PubSub> {
        self.client.get_async_pubsub().await
    }

    /// The number of the database at the address.
    pub fn database(&self) -> i64 {
        self.client.get_connection_info().redis_settings().db()
    }

    /// Whether the address names this machine itself.
    pub(crate) fn is_of_this_machine(&self) -> bool {
        match self.client.get_connection_info().addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            }
            ConnectionAddr::Unix(_) => true,
            _ => false,
        }
    }

    /// Counts how often the client replaced the shared connection.
    pub fn replacements(&self) -> watch::Receiver<u64> {
        self.replacements.subscribe()
    }

    /// Replaces the connections if `error`, which a dedicated connection met, says that it leads to the wrong
    /// server.
    pub(crate) fn note(&self, error: &RedisError) {
        if of_error(error) == Verdict::Misled {
            self.reconnect();
        }
    }

    /// Replaces the connections and resolves the address again, unless that was done within the last half second.
    pub(crate) fn reconnect(&self) {
        let _entered = self.home.as_ref().map(Handle::enter);
        let mut shared = self.shared.write();
        if shared.made_at.elapsed() < REPLACE_PAUSE {
            return;
        }
        let Ok(manager) = manager(&self.client) else { return };
        let number = shared.number + 1;
        *shared = Shared { manager, number, made_at: Instant::now() };
        drop(shared);
        self.replacements.send_replace(number);
    }

    fn shared(&self) -> (ConnectionManager, u64) {
        let shared = self.shared.read();
        (shared.manager.clone(), shared.number)
    }

    fn judge(&self, verdict: Verdict, number: u64) {
        let give_up = match verdict {
            Verdict::Fine => {
                self.timeouts.store(0, Ordering::Relaxed);
                false
            }
            Verdict::TimedOut => self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= TIMEOUTS_MAX,
            Verdict::Misled => true,
        };
        // Another task has acted upon the errors of an earlier connection.
        if give_up && number == *self.replacements.borrow() {
            self.timeouts.store(0, Ordering::Relaxed);
            self.reconnect();
        }
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

fn manager(client: &Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(1)
        .set_min_delay(Duration::from_millis(20))
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT));
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

fn of_error(error: &RedisError) -> Verdict {
    if error.is_timeout() {
        Verdict::TimedOut
    } else if error.is_io_error() || error.code().is_some_and(|code| MISLED.contains(&code)) {
        Verdict::Misled
    } else {
        Verdict::Fine
    }
}

fn of_answer(answer: &Value) -> Verdict {
    match answer {
        Value::ServerError(error) if MISLED.contains(&error.code()) => Verdict::Misled,
        _ => Verdict::Fine,
    }
}

/// The shared connection of a [`RedisClient`], which pipelines concurrent commands. A clone always uses the
/// newest connection.
#[derive(Clone)]
pub struct Connection(Arc<RedisClient>);

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let (mut manager, number) = self.0.shared();
            let answered = self.0.on_owner_runtime(manager.send_packed_command(command)).await;
            self.0.judge(answered.as_ref().map_or_else(of_error, of_answer), number);
            answered
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let (mut manager, number) = self.0.shared();
            let answered =
                self.0.on_owner_runtime(manager.send_packed_commands(pipeline, offset, count)).await;
            let verdict = match &answered {
                Ok(answers) if answers.iter().any(|answer| of_answer(answer) == Verdict::Misled) => {
                    Verdict::Misled
                }
                Ok(_) => Verdict::Fine,
                Err(error) => of_error(error),
            };
            self.0.judge(verdict, number);
            answered
        })
    }

    fn get_db(&self) -> i64 {
        self.0.database()
    }
}
