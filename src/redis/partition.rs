//! One partition: the connection to its Redis, the epoch that is open there, and the one way to call
//! a script on it.
//!
//! Every script checks the certificate before anything else (`lua/certificate.lua`). A caller that knows
//! of an older opening is told the present one; if the ledger's database knows of none that is later, the call
//! is tried again here. When nothing is certified the call fails and whoever recovers is woken.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use futures::future::BoxFuture;
use jiff::Timestamp;
use parking_lot::RwLock;
use redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, ServerErrorKind, Value};
use tokio::sync::{Mutex, Notify, watch};

use crate::Failure;
use crate::ids::PartitionId;

use super::connection::{Connection, RedisClient};
use super::epoch::{Epoch, OpenCertificate, Opening};
use super::keys::{self, EpochKeys};
use super::reply::Reply;
use super::script::{Call, LuaScript};

const NO_SCRIPT: ErrorKind = ErrorKind::Server(ServerErrorKind::NoScript);
/// Terms grow by one a recovery: one that is not below this is damaged (`lua/certificate_fields.lua`).
const TERMS_MAX: i64 = 1_000_000_000_000_000;
/// How often a call is repeated because the epoch moved on under it.
const EPOCH_MOVES_MAX: usize = 3;

/// What the ledger's database remembers of openings, so that one ledger is served by one Redis.
pub(crate) trait OpeningCheck: Send + Sync {
    /// Whether data under this open certificate may be used: no later opening is known, nor the same one on
    /// another instance.
    fn admits<'a>(&'a self, open: &'a OpenCertificate) -> BoxFuture<'a, Result<bool, Failure>>;

    /// Whether no later opening is known than this one, whatever member of the replica set thinks that it is
    /// the primary.
    fn is_latest(&self, opening: Opening) -> BoxFuture<'_, Result<bool, Failure>>;
}

/// See the module's documentation.
pub struct Partition {
    id: PartitionId,
    client: Arc<RedisClient>,
    opening: watch::Sender<Opening>,
    /// Held while another opening is checked, so that it is checked once.
    admitting: Mutex<()>,
    /// What the ledger's database remembers of openings; unset where nobody connected to one.
    openings_known: OnceLock<Box<dyn OpeningCheck>>,
    /// The ledger that this process decides in; data of another's is never used. `None` while unknown.
    ledger: RwLock<Option<String>>,
    /// When the certificate was opened, in milliseconds; 0 while that is not known.
    opened_at: AtomicU64,
    /// Woken by each call that found nothing certified.
    pub(crate) uncertified: Notify,
}

impl Partition {
    /// Opens a partition on the Redis at `url`. Nothing is sent before the first call.
    pub fn new(id: PartitionId, url: &str) -> redis::RedisResult<Self> {
        Ok(Partition {
            id,
            client: RedisClient::open(url)?,
            opening: watch::Sender::new(Opening { epoch: Epoch::UNKNOWN, term: 0 }),
            admitting: Mutex::new(()),
            openings_known: OnceLock::new(),
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
        *self.ledger.write() = Some(ledger.to_owned());
    }

    /// The channel on which settled outcomes of this process's ledger are announced.
    pub fn outcome_channel(&self) -> String {
        let ledger = self.ledger.read();
        keys::outcome_channel(self.id, ledger.as_deref().unwrap_or_default())
    }

    /// Has each opening held against what the ledger's database remembers, before it is trusted.
    pub(crate) fn fence_by(&self, known: impl OpeningCheck + 'static) {
        let _ = self.openings_known.set(Box::new(known));
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
            let ours = self.ledger.read();
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
        if let Some(fence) = self.openings_known.get()
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
        let Some(fence) = self.openings_known.get() else { return Ok(true) };
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
        script: &LuaScript,
        operation: &'static str,
        build: impl Fn(&EpochKeys, &mut Call),
    ) -> Result<Reply, Failure> {
        let called = self.call_without_wake(script, operation, build).await;
        if let Err(Failure::Uncertified) = called {
            self.uncertified.notify_one();
        }
        called
    }

    /// As [`Partition::call`], but wakes nobody: for those who recover.
    pub(crate) async fn call_without_wake(
        &self,
        script: &LuaScript,
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
    pub(crate) async fn call_in_epoch(
        &self,
        keys: &EpochKeys,
        script: &LuaScript,
        operation: &'static str,
        build: impl Fn(&EpochKeys, &mut Call),
    ) -> Result<EpochBound, Failure> {
        let called = self.call_in_epoch_without_wake(keys, script, operation, build).await;
        if let Err(Failure::Uncertified) = called {
            self.uncertified.notify_one();
        }
        called
    }

    async fn call_in_epoch_without_wake(
        &self,
        keys: &EpochKeys,
        script: &LuaScript,
        operation: &'static str,
        build: impl Fn(&EpochKeys, &mut Call),
    ) -> Result<EpochBound, Failure> {
        for _ in 0..=EPOCH_MOVES_MAX {
            match self.call_once(script, operation, keys, &build).await? {
                Answer::Ok(reply) => return Ok(EpochBound::Epoch(reply)),
                Answer::Stale(mut open) => self.admit(&mut open).await?,
            }
            // The same data may have been certified again meanwhile.
            if self.opening().epoch != keys.epoch() {
                return Ok(EpochBound::AnotherEpoch);
            }
        }
        Err(Failure::Uncertified)
    }

    async fn call_once(
        &self,
        script: &LuaScript,
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

    /// Sends a command that is no script, and reads its answer.
    pub(crate) async fn query<T: FromRedisValue>(
        &self,
        operation: &'static str,
        command: &Cmd,
    ) -> Result<T, Failure> {
        command.query_async(&mut self.connection()).await.map_err(Failure::redis(operation))
    }

    /// Sends commands together, and reads all of their answers.
    pub(crate) async fn query_all<T: FromRedisValue>(
        &self,
        operation: &'static str,
        commands: &Pipeline,
    ) -> Result<T, Failure> {
        commands.query_async(&mut self.connection()).await.map_err(Failure::redis(operation))
    }

    /// Calls a script as it is: for the recovery's own, which make the certificate.
    pub(crate) async fn invoke(
        &self,
        script: &LuaScript,
        operation: &'static str,
        call: &Call,
    ) -> Result<Reply, Failure> {
        let script = script.script();
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
pub(crate) enum EpochBound {
    Epoch(Reply),
    /// Another epoch is open; nothing was done.
    AnotherEpoch,
}
