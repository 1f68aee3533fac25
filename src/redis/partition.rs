//! One partition: the connection to its Redis, the epoch that is open there, and the ways to ask that Redis.
//!
//! | to send | use |
//! |---|---|
//! | a script that checks the certificate, under whichever epoch is open | [`Partition::call`] |
//! | the same, under the one epoch that the caller has read something in | [`Partition::call_in_epoch`] |
//! | the same, for the recovery supervisor itself | [`Partition::call_without_wake`] |
//! | a script that does not check it, or that may be called while an epoch is being built | [`Partition::invoke`] |
//! | a command that is no script, or several | [`Partition::query`], [`Partition::query_all`] |
//! | what takes a connection of its own, such as a blocking read | [`Partition::client`] |
//!
//! A script that checks the certificate does so before it does anything (`lua/certificate.lua`). If the caller
//! knows an older opening, the script answers with the present one; if the ledger's database knows of no later one,
//! the partition adopts it and calls the script again. If the data is not certified, the call fails and wakes
//! the recovery supervisor. Two kinds of scripts do not check it:
//! - those of recovery, which make the certificate, or what it will stand for, while it is closed: `known`, `close`,
//!   `stage`, `move`, `keep`, `built`, `open`, `certify`, `forget`. They compare the certificate's term or the epoch
//!   that is being built instead;
//! - those whose keys belong to no epoch: `limits/take.lua` and `lua/turn.lua`.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use futures::future::BoxFuture;
use jiff::Timestamp;
use parking_lot::RwLock;
use redis::{Cmd, FromRedisValue, Pipeline};
use tokio::sync::{Mutex, Notify, watch};

use crate::Failure;
use crate::ids::PartitionId;

use super::connection::{CALL_MAX, Connection, RedisClient};
use super::epoch::{Epoch, OpenCertificate, Opening};
use super::keys::{self, EpochKeys};
use super::nodes::RedisNodes;
use super::reply::Reply;
use super::script::{Call, LuaScript};
use crate::runtime::background::{at_once, paced};

/// Terms grow by one a recovery: one that is not below this is damaged (`lua/certificate_fields.lua`).
const TERMS_MAX: i64 = 1_000_000_000_000_000;
/// The most times that a call is repeated because another opening replaced the one that it was made under.
const EPOCH_MOVES_MAX: usize = 3;

/// Adds a script's own keys and arguments to a call. Behind a pointer, so that not every script has code of its own for a
/// whole call, which takes long to compile.
type Build<'a> = dyn Fn(&EpochKeys, &mut Call) + Sync + 'a;

/// What the ledger's database remembers of openings, so that one ledger is served by one Redis.
pub(crate) trait OpeningCheck: Send + Sync {
    /// Whether data under this open certificate may be used: no later opening is known, nor the same one on
    /// another instance.
    fn admits<'a>(&'a self, open: &'a OpenCertificate) -> BoxFuture<'a, Result<bool, Failure>>;

    /// Whether no later opening is known than this one, whatever member of the replica set thinks that it is
    /// the primary.
    fn is_latest(&self, opening: Opening) -> BoxFuture<'_, Result<bool, Failure>>;
}

/// A partition of the data, one Redis slot: its connection, and the epoch that is open there.
pub struct Partition {
    id: PartitionId,
    client: Arc<RedisClient>,
    opening: watch::Sender<Opening>,
    /// Held while a new opening is checked, so that concurrent callers check it once.
    admitting: Mutex<()>,
    /// What the ledger's database remembers of openings; unset in a process without a ledger.
    openings_known: OnceLock<Box<dyn OpeningCheck>>,
    /// The ledger that this process decides in. Data of another ledger is never used. `None` while unknown.
    ledger: RwLock<Option<String>>,
    /// When the certificate was opened, in milliseconds since the Unix epoch; 0 while unknown.
    opened_at: AtomicU64,
    /// Notified by each call that found the data uncertified.
    pub(crate) uncertified: Notify,
}

impl Partition {
    /// A partition that lies on these servers. It connects with the first call.
    pub fn new(id: PartitionId, nodes: &Arc<RedisNodes>) -> Self {
        Partition {
            id,
            client: nodes.client_of(id.tag()),
            opening: watch::Sender::new(Opening { epoch: Epoch::UNKNOWN, term: 0 }),
            admitting: Mutex::new(()),
            openings_known: OnceLock::new(),
            ledger: RwLock::new(None),
            opened_at: AtomicU64::new(0),
            uncertified: Notify::new(),
        }
    }

    /// The number of this partition.
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// The client, for callers that need a connection of their own, such as blocking reads.
    pub fn client(&self) -> &Arc<RedisClient> {
        &self.client
    }

    /// The shared connection, for commands that are no scripts.
    pub fn connection(&self) -> Connection {
        self.client.connection()
    }

    /// The name of a Redis instance: its `run_id` and the number of the database.
    pub(crate) fn instance(&self, run_id: &str) -> String {
        format!("{run_id}/{}", self.client.database())
    }

    /// The keys of the epoch that was open at the last answer of Redis.
    pub fn keys(&self) -> EpochKeys {
        EpochKeys::new(self.id, self.opening().epoch)
    }

    /// Sets the ledger that this process decides in. From then on it treats an epoch of another ledger as
    /// uncertified: a reservation made there would be decided in a ledger that its client never reads.
    pub(crate) fn belongs_to(&self, ledger: &str) {
        *self.ledger.write() = Some(ledger.to_owned());
    }

    /// The channel on which workers announce settled outcomes of this process's ledger.
    pub fn outcome_channel(&self) -> String {
        let ledger = self.ledger.read();
        keys::outcome_channel(self.id, ledger.as_deref().unwrap_or_default())
    }

    /// How scripts announce settled outcomes: the command, and the channel, with a space between.
    pub(crate) fn announcing(&self) -> String {
        format!("{} {}", self.client.publish_command(), self.outcome_channel())
    }

    /// Has each opening checked against what the ledger's database remembers before this partition uses it.
    pub(crate) fn fence_by(&self, known: impl OpeningCheck + 'static) {
        let _ = self.openings_known.set(Box::new(known));
    }

    /// The opening that this partition calls scripts under.
    pub(crate) fn opening(&self) -> Opening {
        *self.opening.borrow()
    }

    pub(crate) fn set_opening(&self, opening: Opening) {
        self.opening.send_if_modified(|known| std::mem::replace(known, opening) != opening);
    }

    /// Has `opening` checked against the ledger's database again before the next answer. Does nothing if the
    /// partition uses another opening by now.
    pub(crate) fn doubt(&self, opening: Opening) {
        self.opening.send_if_modified(|known| {
            let doubted = *known == opening;
            if doubted {
                known.term = 0;
            }
            doubted
        });
    }

    /// Adopts the opening that the rest of a reply "stale" describes, unless it is of another ledger or not the
    /// latest.
    ///
    /// # Errors
    ///
    /// [`Failure::Uncertified`] if the opening must not be used; another failure if the ledger's database does not
    /// answer.
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
            && !at_once(fence.admits(&open)).await?
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

    /// What a script compares with the certificate: the epoch of `keys` and its term.
    pub fn credential(&self, keys: &EpochKeys) -> String {
        let known = self.opening();
        let term = if known.epoch == keys.epoch() { known.term } else { 0 };
        format!("{} {term}", keys.epoch())
    }

    /// Whether this partition's opening is still the latest: a linearizable read of the ledger's database, for
    /// answers that a Redis which another one has replaced must not give.
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

    /// When the data was last recovered, by Redis's clock; `None` while unknown.
    pub fn opened_at(&self) -> Option<Timestamp> {
        let ms = i64::try_from(self.opened_at.load(Ordering::Relaxed)).ok()?;
        Timestamp::from_millisecond(ms).ok().filter(|_| ms > 0)
    }

    /// Notifies of each opening that this partition adopts.
    pub(crate) fn openings(&self) -> watch::Receiver<Opening> {
        self.opening.subscribe()
    }

    /// Calls a script under the open epoch. `build` adds the script's own keys and arguments after the
    /// certificate (KEYS[1]) and the credential (ARGV[1]); it is called again for each opening that the call adopts.
    ///
    /// # Errors
    ///
    /// [`Failure::Uncertified`] if the data is not certified; it wakes the recovery supervisor. Others as
    /// [`Partition::invoke`].
    pub(crate) async fn call(
        &self,
        script: &LuaScript,
        operation: &'static str,
        build: impl Fn(&EpochKeys, &mut Call) + Sync,
    ) -> Result<Reply, Failure> {
        self.waking(self.call_without_wake(script, operation, build).await)
    }

    /// As [`Partition::call`], but does not wake the recovery supervisor, which calls this itself.
    pub(crate) async fn call_without_wake(
        &self,
        script: &LuaScript,
        operation: &'static str,
        build: impl Fn(&EpochKeys, &mut Call) + Sync,
    ) -> Result<Reply, Failure> {
        match self.call_adopting(None, script, operation, &build).await? {
            EpochBound::Epoch(reply) => Ok(reply),
            EpochBound::AnotherEpoch => Err(Failure::Uncertified),
        }
    }

    /// As [`Partition::call`], but only under the epoch of `keys`, for a caller that has read something under it.
    pub(crate) async fn call_in_epoch(
        &self,
        keys: &EpochKeys,
        script: &LuaScript,
        operation: &'static str,
        build: impl Fn(&EpochKeys, &mut Call) + Sync,
    ) -> Result<EpochBound, Failure> {
        self.waking(self.call_adopting(Some(keys), script, operation, &build).await)
    }

    /// Wakes the recovery supervisor if a call found the data uncertified.
    fn waking<T>(&self, called: Result<T, Failure>) -> Result<T, Failure> {
        if let Err(Failure::Uncertified) = called {
            self.uncertified.notify_one();
        }
        called
    }

    /// Calls a script under the epoch of `bound`, or under whichever is open, and adopts newer openings on the way.
    async fn call_adopting(
        &self,
        bound: Option<&EpochKeys>,
        script: &LuaScript,
        operation: &'static str,
        build: &Build<'_>,
    ) -> Result<EpochBound, Failure> {
        for _ in 0..=EPOCH_MOVES_MAX {
            let keys = bound.map_or_else(|| Cow::Owned(self.keys()), Cow::Borrowed);
            match self.call_once(script, operation, &keys, build).await? {
                Answer::Ok(reply) => return Ok(EpochBound::Epoch(reply)),
                Answer::Stale(mut opening) => self.admit(&mut opening).await?,
            }
            // The same data may have been certified again meanwhile.
            if bound.is_some_and(|keys| keys.epoch() != self.opening().epoch) {
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
        build: &Build<'_>,
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

    /// Sends a command that is no script and returns its answer.
    pub(crate) async fn query<T: FromRedisValue>(
        &self,
        operation: &'static str,
        command: &Cmd,
    ) -> Result<T, Failure> {
        let answered = paced(CALL_MAX, command.query_async(&mut self.connection())).await;
        answered.map_err(Failure::redis(operation))
    }

    /// Sends commands together and returns all of their answers.
    pub(crate) async fn query_all<T: FromRedisValue>(
        &self,
        operation: &'static str,
        commands: &Pipeline,
    ) -> Result<T, Failure> {
        let answered = paced(CALL_MAX, commands.query_async(&mut self.connection())).await;
        answered.map_err(Failure::redis(operation))
    }

    /// Calls a script as it is: nothing is added to its keys and arguments, and nothing of its reply is read.
    ///
    /// # Errors
    ///
    /// Those of [`RedisClient::invoke`].
    pub(crate) async fn invoke(
        &self,
        script: &LuaScript,
        operation: &'static str,
        call: &Call,
    ) -> Result<Reply, Failure> {
        self.client.invoke(script, operation, call).await
    }
}

enum Answer {
    Ok(Reply),
    /// Another opening than that of the call is in force; the rest of the reply describes it.
    Stale(Reply),
}

/// The result of a call that is bound to one epoch.
pub(crate) enum EpochBound {
    Epoch(Reply),
    /// Another epoch is open, so the script did nothing.
    AnotherEpoch,
}
