//! One partition: the connection to its Redis, the epoch that is open there, and the one way to call
//! a script on it.
//!
//! Every script checks the certificate before anything else (`recovery/certificate.lua`). A caller that knows
//! of an older opening is told the present one; if the ledger's database knows of none that is later, the call
//! is tried again here. When nothing is certified the call fails and whoever recovers is woken.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

use jiff::Timestamp;
use redis::{Arg, Cmd, ErrorKind, RedisError, Script, ServerErrorKind, ToRedisArgs, Value};
use tokio::sync::{Mutex, Notify, watch};

use crate::Failure;
use crate::keys::{self, EpochKeys, PartitionId};
use crate::recovery::{Epoch, Fence};
use crate::redis_client::{Connection, RedisClient};

const NO_SCRIPT: ErrorKind = ErrorKind::Server(ServerErrorKind::NoScript);
/// Terms grow by one a recovery: one that is not below this is damaged (`recovery/certificate_fields.lua`).
const TERMS_MAX: i64 = 1_000_000_000_000_000;
/// How often a call is repeated because the epoch moved on under it.
const EPOCH_MOVES_MAX: usize = 3;

/// One opening of a certificate. Each has a term of its own, later than those of all before it, so a copy of
/// an older certificate is never taken for it, even if it names the same epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    pub epoch: Epoch,
    /// Of the recovery lease; 0 while it must be found out.
    pub term: i64,
}

/// What a script says of a certificate that is open on the instance it ran on.
#[derive(Debug, Clone)]
pub(crate) struct OpenCertificate {
    pub opening: Opening,
    /// The ledger that the data belongs to; empty if it names none.
    ledger: String,
    /// Which Redis it is: see [`Partition::instance`].
    pub instance: String,
    opened_at: u64,
}

/// See the module's documentation.
pub struct Partition {
    id: PartitionId,
    client: Arc<RedisClient>,
    opening: watch::Sender<Opening>,
    /// Held while another opening is checked, so that it is checked once.
    admitting: Mutex<()>,
    /// What the ledger's database remembers of openings; unset where nobody connected to one.
    fence: OnceLock<Fence>,
    /// The ledger that this process decides in; data of another's is never used. `None` while unknown.
    ledger: RwLock<Option<String>>,
    /// When the certificate was opened, in milliseconds; 0 while that is not known.
    opened_at: AtomicU64,
    /// Woken by each call that found nothing certified.
    pub(crate) uncertified: Notify,
}

/// Builds a script from a `.lua` file, with what it shares with others put into its place.
pub(crate) fn script(source: &str) -> Script {
    let shared = [
        ("--@certificate\n", include_str!("recovery/certificate.lua")),
        ("--@certificate_fields\n", include_str!("recovery/certificate_fields.lua")),
        ("--@outdate\n", include_str!("recovery/outdate.lua")),
        ("--@take_unit\n", include_str!("audit/take_unit.lua")),
        ("--@whole\n", include_str!("recovery/whole.lua")),
    ];
    let source = shared.iter().fold(source.to_owned(), |source, (line, piece)| source.replace(line, piece));
    Script::new(&source)
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
        Ok(Partition {
            id,
            client: RedisClient::open(url)?,
            opening: watch::Sender::new(Opening { epoch: Epoch::UNKNOWN, term: 0 }),
            admitting: Mutex::new(()),
            fence: OnceLock::new(),
            ledger: RwLock::new(None),
            opened_at: AtomicU64::new(0),
            uncertified: Notify::new(),
        })
    }

    /// The number of this partition.
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// For connections of one's own, such as a blocking read's.
    pub fn client(&self) -> &Arc<RedisClient> {
        &self.client
    }

    /// The shared connection, for commands that are no scripts.
    pub fn connection(&self) -> Connection {
        self.client.connection()
    }

    /// The name of the Redis that calls itself `run_id`: two databases of one server are two.
    pub(crate) fn instance(&self, run_id: &str) -> String {
        format!("{run_id}/{}", self.client.database())
    }

    /// The keys of the epoch that was open when last heard of.
    pub fn keys(&self) -> EpochKeys {
        EpochKeys::new(self.id, self.opening().epoch)
    }

    /// Says which ledger this process decides in. From then on an epoch of another ledger is taken for
    /// uncertified: what is reserved there would be decided where nobody looks for it.
    pub(crate) fn belongs_to(&self, ledger: &str) {
        *self.ledger.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(ledger.to_owned());
    }

    /// The channel on which settled outcomes of this process's ledger are announced.
    pub fn outcome_channel(&self) -> String {
        let ledger = self.ledger.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        keys::outcome_channel(self.id, ledger.as_deref().unwrap_or_default())
    }

    /// Has each opening held against what the ledger's database remembers, before it is trusted.
    pub(crate) fn fence_by(&self, fence: Fence) {
        let _ = self.fence.set(fence);
    }

    /// The opening that scripts are called under.
    pub(crate) fn opening(&self) -> Opening {
        *self.opening.borrow()
    }

    pub(crate) fn set_opening(&self, opening: Opening) {
        self.opening.send_if_modified(|known| std::mem::replace(known, opening) != opening);
    }

    /// Has the opening that is trusted held against the ledger's database again, before anything else is
    /// answered. Nothing, if it is another one by now.
    pub(crate) fn doubt(&self, opening: Opening) {
        self.opening.send_if_modified(|known| {
            let doubted = *known == opening;
            if doubted {
                known.term = 0;
            }
            doubted
        });
    }

    /// Trusts the opening that the rest of a reply "stale" tells of, unless it is another ledger's, or not
    /// the latest there is.
    ///
    /// # Errors
    ///
    /// [`Failure::Uncertified`] if it must not be trusted; others if that cannot be known.
    pub(crate) async fn admit(&self, reply: &mut Reply) -> Result<(), Failure> {
        // A certificate of which something cannot be read counts as missing.
        let open = self.open_certificate(reply).ok_or(Failure::Uncertified)?;
        let is_anothers = {
            let ours = self.ledger.read().unwrap_or_else(|poisoned| poisoned.into_inner());
            ours.as_ref().is_some_and(|ours| !open.ledger.is_empty() && *ours != open.ledger)
        };
        if is_anothers {
            return Err(Failure::Uncertified);
        }
        let _one = self.admitting.lock().await;
        let known = self.opening();
        if known == open.opening {
            return Ok(());
        }
        if open.opening.term < known.term {
            return Err(Failure::Uncertified);
        }
        if let Some(fence) = self.fence.get()
            && !fence.admits(&open).await?
        {
            return Err(Failure::Uncertified);
        }
        self.set_opened_at(open.opened_at);
        self.set_opening(open.opening);
        Ok(())
    }

    fn open_certificate(&self, reply: &mut Reply) -> Option<OpenCertificate> {
        let mut text = || reply.text().ok();
        let epoch = text()?.parse().ok()?;
        let ledger = text()?;
        let term = text()?.parse().ok().filter(|term| (0..TERMS_MAX).contains(term))?;
        let instance = self.instance(&text()?);
        let opened_at = reply.number().ok()?;
        Some(OpenCertificate { opening: Opening { epoch, term }, ledger, instance, opened_at })
    }

    /// What a script is given to hold against the certificate, for keys of this epoch.
    pub fn credential(&self, keys: &EpochKeys) -> String {
        let known = self.opening();
        let term = if known.epoch == keys.epoch() { known.term } else { 0 };
        format!("{} {term}", keys.epoch())
    }

    /// Whether the opening that is trusted is still the latest there is: asked of the ledger's database, for
    /// the answers that must not be given from a Redis that another has replaced.
    pub(crate) async fn is_latest(&self) -> Result<bool, Failure> {
        let opening = self.opening();
        let Some(fence) = self.fence.get() else { return Ok(true) };
        let is_latest = fence.is_latest(opening).await?;
        if !is_latest {
            self.doubt(opening);
            self.uncertified.notify_one();
        }
        Ok(is_latest)
    }

    pub(crate) fn set_opened_at(&self, ms: u64) {
        self.opened_at.store(ms, Ordering::Relaxed);
    }

    /// When the data was last recovered, by Redis's clock; `None` while that is not known.
    pub fn opened_at(&self) -> Option<Timestamp> {
        let ms = i64::try_from(self.opened_at.load(Ordering::Relaxed)).ok()?;
        Timestamp::from_millisecond(ms).ok().filter(|_| ms > 0)
    }

    /// Tells when another opening is trusted.
    pub(crate) fn openings(&self) -> watch::Receiver<Opening> {
        self.opening.subscribe()
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
                Answer::Stale(mut open) => self.admit(&mut open).await?,
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
        let called = self.call_under_quietly(keys, script, operation, build).await;
        if let Err(Failure::Uncertified) = called {
            self.uncertified.notify_one();
        }
        called
    }

    async fn call_under_quietly(
        &self,
        keys: &EpochKeys,
        script: &Script,
        operation: &'static str,
        build: impl Fn(&EpochKeys, &mut Call),
    ) -> Result<Under, Failure> {
        for _ in 0..=EPOCH_MOVES_MAX {
            match self.call_once(script, operation, keys, &build).await? {
                Answer::Ok(reply) => return Ok(Under::Epoch(reply)),
                Answer::Stale(mut open) => self.admit(&mut open).await?,
            }
            // The same data may have been certified again meanwhile.
            if self.opening().epoch != keys.epoch() {
                return Ok(Under::AnotherEpoch);
            }
        }
        Err(Failure::Uncertified)
    }

    async fn call_once(
        &self,
        script: &Script,
        operation: &'static str,
        keys: &EpochKeys,
        build: &impl Fn(&EpochKeys, &mut Call),
    ) -> Result<Answer, Failure> {
        let mut call = Call::default();
        call.key(keys.certificate()).arg(self.credential(keys));
        build(keys, &mut call);
        let mut reply = self.invoke(script, operation, &call).await?;
        match reply.text()?.as_str() {
            "ok" => Ok(Answer::Ok(reply)),
            "stale" => Ok(Answer::Stale(reply)),
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
        let mut called = command.query_async(&mut connection).await;
        // A Redis that has just started knows no scripts.
        if called.as_ref().is_err_and(|error: &RedisError| error.kind() == NO_SCRIPT) {
            script.load_async(&mut connection).await.map_err(Failure::redis(operation))?;
            called = command.query_async(&mut connection).await;
        }
        let values: Vec<Value> = called.map_err(Failure::redis(operation))?;
        Ok(Reply { operation, values: values.into_iter() })
    }
}

enum Answer {
    Ok(Reply),
    /// Another opening than that of the call; the rest of the reply tells which.
    Stale(Reply),
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
