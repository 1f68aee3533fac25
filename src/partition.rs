//! One partition: the connection to its Redis, the epoch that is open there, and the one way to call
//! a script on it.
//!
//! Every script checks the certificate before anything else (`recovery/certificate.lua`). A caller
//! whose keys belong to an older epoch is told the open one and tries again here; when nothing is
//! certified the call fails and whoever recovers is woken.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{
    Arg, Client, Cmd, ErrorKind, IntoConnectionInfo, RedisError, Script, ServerErrorKind, ToRedisArgs, Value,
};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use crate::Failure;
use crate::keys::{EpochKeys, PartitionId};
use crate::recovery::Epoch;

/// The longest that one answer of Redis is waited for.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a connection to Redis may take to make.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that timed out this many times in a row is replaced: the manager itself replaces
/// only one that broke.
const TIMEOUTS_MAX: u32 = 3;
const NO_SCRIPT: ErrorKind = ErrorKind::Server(ServerErrorKind::NoScript);
/// How often a call is repeated because the epoch moved on under it.
const EPOCH_MOVES_MAX: usize = 3;

/// See the module's documentation.
pub struct Partition {
    id: PartitionId,
    client: Client,
    connection: RwLock<ConnectionManager>,
    /// Where the connection is driven, also if a script's caller finds that it must be made anew. `None` if
    /// this was made outside of any.
    home: Option<Handle>,
    timeouts: AtomicU32,
    epoch: watch::Sender<Epoch>,
    /// The ledger that this process decides in; data of another's is never used. `None` while unknown.
    ledger: RwLock<Option<String>>,
    /// When the certificate was opened, in milliseconds; 0 while that is not known.
    opened_at: AtomicU64,
    /// Woken by each call that found nothing certified.
    pub(crate) uncertified: Notify,
}

/// Builds a script from a `.lua` file, with what it shares with others put into its place.
pub(crate) fn script(source: &str) -> Script {
    let check = include_str!("recovery/certificate.lua");
    let take_unit = include_str!("audit/take_unit.lua");
    Script::new(&source.replace("--@certificate\n", check).replace("--@take_unit\n", take_unit))
}

/// The keys and arguments of one call, in order. The arguments lie in one buffer: there are hundreds.
#[derive(Default)]
pub(crate) struct Call {
    keys: Vec<String>,
    args: Cmd,
}

impl Call {
    pub(crate) fn key(&mut self, key: String) -> &mut Self {
        self.keys.push(key);
        self
    }

    pub(crate) fn arg(&mut self, arg: impl ToRedisArgs) -> &mut Self {
        self.args.arg(arg);
        self
    }

    /// The command that calls the script with this hash.
    fn command(&self, hash: &str) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(hash).arg(self.keys.len()).arg(&self.keys);
        for arg in self.args.args_iter() {
            if let Arg::Simple(arg) = arg {
                command.arg(arg);
            }
        }
        command
    }
}

impl Partition {
    /// Opens a partition on the Redis at `url`. Nothing is sent before the first call.
    pub fn new(id: PartitionId, url: &str) -> redis::RedisResult<Self> {
        let info = url.into_connection_info()?;
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let client = Client::open(info.set_tcp_settings(tcp))?;
        Ok(Partition {
            id,
            connection: RwLock::new(Self::connect(&client)?),
            client,
            home: Handle::try_current().ok(),
            timeouts: AtomicU32::new(0),
            epoch: watch::Sender::new(Epoch::UNKNOWN),
            ledger: RwLock::new(None),
            opened_at: AtomicU64::new(0),
            uncertified: Notify::new(),
        })
    }

    fn connect(client: &Client) -> redis::RedisResult<ConnectionManager> {
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(20))
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        ConnectionManager::new_lazy_with_config(client.clone(), config)
    }

    /// The number of this partition.
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// For connections of one's own, such as a blocking read's.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The shared connection, for commands that are no scripts.
    pub fn connection(&self) -> ConnectionManager {
        self.connection.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// The keys of the epoch that was open when last heard of.
    pub fn keys(&self) -> EpochKeys {
        EpochKeys::new(self.id, *self.epoch.borrow())
    }

    /// Says which ledger this process decides in. From then on an epoch of another ledger is taken for
    /// uncertified: what is reserved there would be decided where nobody looks for it.
    pub(crate) fn belongs_to(&self, ledger: &str) {
        *self.ledger.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(ledger.to_owned());
    }

    /// Reads which epoch is open from the rest of a reply that says "stale".
    pub(crate) fn open_epoch(&self, reply: &mut Reply) -> Result<Epoch, Failure> {
        let epoch = reply.text()?.parse().map_err(|_| reply.wrong())?;
        let (held, ours) =
            (reply.text()?, self.ledger.read().unwrap_or_else(|poisoned| poisoned.into_inner()));
        match &*ours {
            Some(ours) if !held.is_empty() && *ours != held => Err(Failure::Uncertified),
            _ => Ok(epoch),
        }
    }

    pub(crate) fn set_epoch(&self, epoch: Epoch) {
        self.epoch.send_if_modified(|known| std::mem::replace(known, epoch) != epoch);
    }

    pub(crate) fn set_opened_at(&self, ms: u64) {
        self.opened_at.store(ms, Ordering::Relaxed);
    }

    /// When the data was last recovered, by Redis's clock; `None` while that is not known.
    pub fn opened_at(&self) -> Option<Timestamp> {
        let ms = i64::try_from(self.opened_at.load(Ordering::Relaxed)).ok()?;
        Timestamp::from_millisecond(ms).ok().filter(|_| ms > 0)
    }

    /// Tells when another epoch was heard of.
    pub(crate) fn epochs(&self) -> watch::Receiver<Epoch> {
        self.epoch.subscribe()
    }

    /// Calls a script under the open epoch. `build` adds the script's own keys and arguments after the
    /// certificate (KEYS[1]) and the epoch (ARGV[1]); it is called again when the epoch moved on.
    pub(crate) async fn call(
        &self,
        script: &Script,
        operation: &'static str,
        build: impl Fn(&EpochKeys, &mut Call),
    ) -> Result<Reply, Failure> {
        let called = self.call_quietly(script, operation, build).await;
        if let Err(Failure::Uncertified) = called {
            self.uncertified.notify_one();
        }
        called
    }

    /// As [`Partition::call`], but wakes nobody: for those who recover.
    pub(crate) async fn call_quietly(
        &self,
        script: &Script,
        operation: &'static str,
        build: impl Fn(&EpochKeys, &mut Call),
    ) -> Result<Reply, Failure> {
        for _ in 0..=EPOCH_MOVES_MAX {
            match self.call_once(script, operation, &self.keys(), &build).await? {
                Answer::Ok(reply) => return Ok(reply),
                Answer::Stale(open) => self.set_epoch(open),
            }
        }
        Err(Failure::Uncertified)
    }

    /// As [`Partition::call`], but only under the epoch of `keys`: for what was read under it.
    pub(crate) async fn call_under(
        &self,
        keys: &EpochKeys,
        script: &Script,
        operation: &'static str,
        build: impl Fn(&EpochKeys, &mut Call),
    ) -> Result<Under, Failure> {
        match self.call_once(script, operation, keys, &build).await {
            Ok(Answer::Ok(reply)) => Ok(Under::Epoch(reply)),
            Ok(Answer::Stale(open)) => {
                self.set_epoch(open);
                Ok(Under::AnotherEpoch)
            }
            Err(Failure::Uncertified) => {
                self.uncertified.notify_one();
                Err(Failure::Uncertified)
            }
            Err(failure) => Err(failure),
        }
    }

    async fn call_once(
        &self,
        script: &Script,
        operation: &'static str,
        keys: &EpochKeys,
        build: &impl Fn(&EpochKeys, &mut Call),
    ) -> Result<Answer, Failure> {
        let mut call = Call::default();
        call.key(keys.certificate()).arg(keys.epoch().to_string());
        build(keys, &mut call);
        let mut reply = self.invoke(script, operation, &call).await?;
        match reply.text()?.as_str() {
            "ok" => Ok(Answer::Ok(reply)),
            "stale" => Ok(Answer::Stale(self.open_epoch(&mut reply)?)),
            _ => Err(Failure::Uncertified),
        }
    }

    /// Calls a script as it is: for the recovery's own, which make the certificate.
    pub(crate) async fn invoke(
        &self,
        script: &Script,
        operation: &'static str,
        call: &Call,
    ) -> Result<Reply, Failure> {
        let command = call.command(script.get_hash());
        let mut connection = self.connection();
        let called = self.at_home(async {
            let called = command.query_async(&mut connection).await;
            // A Redis that has just started knows no scripts.
            if called.as_ref().is_err_and(|error: &RedisError| error.kind() == NO_SCRIPT) {
                script.load_async(&mut connection).await?;
                return command.query_async(&mut connection).await;
            }
            called
        });
        let values: Vec<Value> = self.noting_timeouts(called.await).map_err(Failure::redis(operation))?;
        Ok(Reply { operation, values: values.into_iter() })
    }

    /// What a connection starts while it is used, it starts at home.
    async fn at_home<T>(&self, using: impl Future<Output = T>) -> T {
        let mut using = pin!(using);
        poll_fn(|context| {
            let _entered = self.home.as_ref().map(Handle::enter);
            using.as_mut().poll(context)
        })
        .await
    }

    fn noting_timeouts<T>(&self, result: redis::RedisResult<T>) -> redis::RedisResult<T> {
        match &result {
            Err(error) if error.is_timeout() => {
                if self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= TIMEOUTS_MAX {
                    self.timeouts.store(0, Ordering::Relaxed);
                    if let Ok(fresh) = Self::connect(&self.client) {
                        *self.connection.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = fresh;
                    }
                }
            }
            _ => self.timeouts.store(0, Ordering::Relaxed),
        }
        result
    }
}

enum Answer {
    Ok(Reply),
    Stale(Epoch),
}

/// What a call under a given epoch came to.
pub(crate) enum Under {
    Epoch(Reply),
    /// Another epoch is open; nothing was done.
    AnotherEpoch,
}

/// A script's reply, read from front to back.
#[derive(Debug)]
pub(crate) struct Reply {
    operation: &'static str,
    values: std::vec::IntoIter<Value>,
}

impl Reply {
    /// The next element, as bytes.
    pub(crate) fn bytes(&mut self) -> Result<Vec<u8>, Failure> {
        match self.values.next() {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            Some(Value::SimpleString(text)) => Ok(text.into_bytes()),
            _ => Err(self.wrong()),
        }
    }

    /// The next element, as text.
    pub(crate) fn text(&mut self) -> Result<String, Failure> {
        String::from_utf8(self.bytes()?).map_err(|_| self.wrong())
    }

    /// The next element, as a number that is not negative.
    pub(crate) fn number(&mut self) -> Result<u64, Failure> {
        match self.values.next() {
            Some(Value::Int(number)) => u64::try_from(number).map_err(|_| self.wrong()),
            Some(Value::BulkString(bytes)) => std::str::from_utf8(&bytes)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| self.wrong()),
            _ => Err(self.wrong()),
        }
    }

    /// The next element, a list of its own.
    pub(crate) fn list(&mut self) -> Result<Reply, Failure> {
        match self.values.next() {
            Some(Value::Array(values)) => Ok(Reply { operation: self.operation, values: values.into_iter() }),
            _ => Err(self.wrong()),
        }
    }

    /// How many elements are left.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// The failure of a reply that is not of the shape its script promises.
    pub(crate) fn wrong(&self) -> Failure {
        Failure::Redis {
            operation: self.operation,
            source: "the script's reply has another shape than its contract says".into(),
        }
    }
}
