//! The client of the keys that share a hash tag: their slot lies on one server at a time, and the client finds it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    Cmd, ErrorKind, Msg, Pipeline, PushInfo, PushKind, RedisError, RedisFuture, RedisResult, Script,
    ServerErrorKind, Value, cmd, from_redis_value,
};
use tokio::sync::{mpsc, watch};

use super::keys;
use super::node::{RESPONSE_TIMEOUT, RedisNode, Verdict};
use super::nodes::{Primary, RedisNodes};
use super::reply::Reply;
use super::script::{Call, LuaScript};
use crate::Failure;
use crate::runtime::background::paced;

/// The longest that replicas may take to acknowledge a promised call.
const ACKNOWLEDGED_MAX: Duration = Duration::from_secs(1);
const NO_SCRIPT: ErrorKind = ErrorKind::Server(ServerErrorKind::NoScript);
/// The longest that a call keeps Redis and this process busy, a page of 2,000 values in flight, say: scripts and pages
/// are short.
pub(super) const CALL_MAX: Duration = Duration::from_millis(10);

/// The connections of this process to the server of one slot.
pub struct RedisClient {
    nodes: Arc<RedisNodes>,
    slot: u16,
    /// What promised calls write beside what their scripts do.
    acknowledged_key: String,
    /// Connections of promised calls that are not in use, each with the number of the shared connection when it was
    /// made. There are at most as many as such calls at once.
    promising: Mutex<Vec<(u64, MultiplexedConnection)>>,
}

impl RedisClient {
    pub(super) fn new(nodes: Arc<RedisNodes>, slot: u16, tag: &str) -> Self {
        RedisClient { nodes, slot, acknowledged_key: keys::acknowledged(tag), promising: Mutex::default() }
    }

    /// The shared connection.
    pub fn connection(self: &Arc<Self>) -> Connection {
        Connection(Arc::clone(self))
    }

    /// The servers that the client is of.
    pub(crate) fn nodes(&self) -> &Arc<RedisNodes> {
        &self.nodes
    }

    /// Calls a script as it is: nothing is added to its keys and arguments, and nothing of its reply is read. A server
    /// that does not know the script is given it, and no other server.
    ///
    /// # Errors
    ///
    /// What [`Failure::redis`] makes of Redis's error; of a promised script, also if too few replicas acknowledge it.
    pub(crate) async fn invoke(
        self: &Arc<Self>,
        script: &LuaScript,
        operation: &'static str,
        call: &Call,
    ) -> Result<Reply, Failure> {
        let replicas = self.nodes.acknowledged_by();
        if script.is_promised && replicas > 0 {
            return self.invoke_promised(replicas, script.script(), operation, call).await;
        }
        let script = script.script();
        let command = call.command(script.get_hash());
        let mut connection = self.connection();
        let mut called = paced(CALL_MAX, command.query_async(&mut connection)).await;
        // A Redis that has just started has no scripts in its cache.
        if called.as_ref().is_err_and(|error: &RedisError| error.kind() == NO_SCRIPT) {
            script.load_async(&mut connection).await.map_err(Failure::redis(operation))?;
            called = command.query_async(&mut connection).await;
        }
        let values: Vec<Value> = called.map_err(Failure::redis(operation))?;
        Ok(Reply { operation, values: values.into_iter() })
    }

    /// Calls a script and waits until so many replicas have what it wrote, and what was written there before. It has a
    /// connection to itself meanwhile: WAIT holds up all that comes behind it.
    async fn invoke_promised(
        &self,
        replicas: u8,
        script: &Script,
        operation: &'static str,
        call: &Call,
    ) -> Result<Reply, Failure> {
        let failed = |error: RedisError| {
            self.note(&error);
            Failure::redis(operation)(error)
        };
        let (number, mut connection) = self.promising().await.map_err(failed)?;
        let mut commands = Pipeline::new();
        commands.add_command(call.command(script.get_hash()));
        // A replay writes nothing, and is a promise too. WAIT covers what its connection wrote last, and all before it;
        // of a connection that wrote nothing, Redis 7.0 takes any command for that, and Valkey 9.1 none.
        commands.cmd("SET").arg(&self.acknowledged_key).arg(1);
        commands.cmd("WAIT").arg(replicas).arg(ACKNOWLEDGED_MAX.as_millis() as u64);
        let mut answered = send_promised(&mut connection, &commands).await;
        if answered.as_ref().is_err_and(|error| error.kind() == NO_SCRIPT) {
            script.load_async(&mut connection).await.map_err(failed)?;
            answered = send_promised(&mut connection, &commands).await;
        }
        let (values, acknowledged) = answered.map_err(failed)?;
        self.promising.lock().push((number, connection));
        if acknowledged < u64::from(replicas) {
            let why =
                format!("only {acknowledged} of {replicas} replicas acknowledged it in {ACKNOWLEDGED_MAX:?}");
            return Err(Failure::Redis { operation, source: why.into() });
        }
        Ok(Reply { operation, values: values.into_iter() })
    }

    /// A connection for one promised call at a time, and the number of the shared one beside it.
    async fn promising(&self) -> RedisResult<(u64, MultiplexedConnection)> {
        let node = self.nodes.node(self.slot).await?;
        let number = node.number();
        let kept = {
            let mut idle = self.promising.lock();
            idle.retain(|(made_beside, _)| *made_beside == number);
            idle.pop()
        };
        match kept {
            Some(kept) => Ok(kept),
            None => Ok((number, node.dedicated(RESPONSE_TIMEOUT).await?)),
        }
    }

    /// A connection of the caller's own. The caller drops it when [`RedisClient::replacements`] says so, and
    /// reports its errors to [`RedisClient::note`].
    pub(crate) async fn dedicated(&self, response_timeout: Duration) -> RedisResult<MultiplexedConnection> {
        self.nodes.node(self.slot).await?.dedicated(response_timeout).await
    }

    /// Subscribes to a channel that has the slot's hash tag; the caller treats the subscription as
    /// [a dedicated connection](RedisClient::dedicated).
    ///
    /// In a cluster it is a channel of the slot's (SSUBSCRIBE), which reaches the replicas of the slot's node and no
    /// other nodes: messages on other channels are sent to every node.
    pub async fn subscribe(&self, channel: &str) -> RedisResult<Subscription> {
        let (mut connection, pushed) = self.nodes.node(self.slot).await?.subscribing().await?;
        let subscribe = if self.nodes.is_cluster() { "SSUBSCRIBE" } else { "SUBSCRIBE" };
        let () = cmd(subscribe).arg(channel).query_async(&mut connection).await?;
        Ok(Subscription { connection, pushed })
    }

    /// The command that publishes on a channel that [`RedisClient::subscribe`] subscribes to.
    pub(crate) fn publish_command(&self) -> &'static str {
        if self.nodes.is_cluster() { "SPUBLISH" } else { "PUBLISH" }
    }

    /// The server of the slot, for questions about the server itself.
    ///
    /// # Errors
    ///
    /// If none is found.
    pub(crate) async fn primary(&self) -> RedisResult<Primary> {
        Ok(Primary { node: self.nodes.node(self.slot).await?, nodes: Arc::clone(&self.nodes) })
    }

    /// The server of the slot, if it is known already.
    pub(crate) fn known_primary(&self) -> Option<Primary> {
        Some(Primary { node: self.nodes.known_node(self.slot)?, nodes: Arc::clone(&self.nodes) })
    }

    /// The number of the database at the address.
    pub fn database(&self) -> i64 {
        self.nodes.database()
    }

    /// Whether the server is known to run on this machine.
    pub(crate) fn is_of_this_machine(&self) -> bool {
        self.nodes.known_node(self.slot).is_some_and(|node| node.is_of_this_machine())
    }

    /// Tells when dedicated connections must be made anew: the slot lies on another server, or the shared connection
    /// to its server was replaced.
    pub fn replacements(self: &Arc<Self>) -> Replacements {
        let changes = self.nodes.changes();
        Replacements { seen: self.number(), client: Arc::clone(self), changes }
    }

    /// Replaces the connections, or learns where the slot is now, if `error`, which a dedicated connection met, says
    /// that it leads to the wrong server.
    pub(crate) fn note(&self, error: &RedisError) {
        if let Some(node) = self.nodes.known_node(self.slot) {
            match Verdict::of_error(error) {
                Verdict::Misled => self.nodes.replace(&node),
                Verdict::Elsewhere => {
                    self.follow(error, &node);
                }
                Verdict::TimedOut => self.nodes.refresh_soon(),
                Verdict::Fine => {}
            }
        }
    }

    /// Finds the server of the slot again: where the URL names the server, by connections that resolve its address
    /// again, at most every half second.
    pub(crate) fn find_again(&self) {
        self.nodes.find_again();
    }

    /// The number of the shared connection to the present server.
    fn number(&self) -> Option<u64> {
        self.nodes.known_node(self.slot).map(|node| node.number())
    }

    /// Takes the slot to be where `error` says, if it says that the slot has moved. Returns whether that is another
    /// node than the one that answered.
    fn follow(&self, error: &RedisError, answered: &RedisNode) -> bool {
        if error.code() != Some("MOVED") {
            return false;
        }
        // A key with another tag was sent here by mistake: its slot is none of this client's.
        error
            .redirect_node()
            .is_some_and(|(address, slot)| slot == self.slot && self.nodes.redirect(slot, address, answered))
    }
}

/// Sends a call, a write and WAIT. Returns what the call returned, and how many replicas have acknowledged it.
async fn send_promised(
    connection: &mut MultiplexedConnection,
    commands: &Pipeline,
) -> RedisResult<(Vec<Value>, u64)> {
    let mut answers = connection.send_packed_commands(commands, 0, 3).await?.into_iter();
    let mut next = || answers.next().unwrap_or(Value::Nil).extract_error();
    let (called, written, acknowledged) = (next(), next(), next());
    let values = from_redis_value(called?)?;
    written?;
    Ok((values, from_redis_value(acknowledged?)?))
}

/// Tells the owner of a dedicated connection when to make another ([`RedisClient::replacements`]).
pub struct Replacements {
    client: Arc<RedisClient>,
    changes: watch::Receiver<()>,
    seen: Option<u64>,
}

impl Replacements {
    /// Whether connections must have been made anew since this was asked last, or since the start.
    pub fn have_changed(&mut self) -> bool {
        let number = self.client.number();
        std::mem::replace(&mut self.seen, number) != number
    }

    /// Waits until connections must be made anew.
    pub async fn changed(&mut self) {
        while !self.have_changed() {
            // The sender lives as long as the client.
            let _ = self.changes.changed().await;
        }
    }
}

/// A subscription to one channel, on a connection of its own.
pub struct Subscription {
    connection: MultiplexedConnection,
    pushed: mpsc::UnboundedReceiver<PushInfo>,
}

impl Subscription {
    /// The next message; `None` if the connection broke, or the channel's slot left the server. Cancel safe.
    pub async fn next(&mut self) -> Option<Msg> {
        loop {
            let pushed = self.pushed.recv().await?;
            match pushed.kind {
                PushKind::Message | PushKind::SMessage => return Msg::from_push_info(pushed),
                PushKind::Disconnection | PushKind::SUnsubscribe => return None,
                _ => {}
            }
        }
    }

    /// Asks the server whether it lives.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub(crate) async fn ping(&mut self) -> RedisResult<()> {
        cmd("PING").query_async(&mut self.connection).await
    }
}

/// The shared connection to the server of a [`RedisClient`]'s slot, which pipelines concurrent commands. A clone always
/// uses the newest connection.
#[derive(Clone)]
pub struct Connection(Arc<RedisClient>);

impl Connection {
    async fn send(&self, command: &Cmd) -> (RedisResult<Value>, Option<Arc<RedisNode>>) {
        let nodes = &self.0.nodes;
        let node = match nodes.node(self.0.slot).await {
            Ok(node) => node,
            Err(error) => return (Err(error), None),
        };
        let (answered, number) = node.send(command).await;
        nodes.judge(&node, number, answered.as_ref().map_or_else(Verdict::of_error, Verdict::of_answer));
        (answered, Some(node))
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let (answered, node) = self.send(command).await;
            match (moved(&answered), node) {
                // A node where the slot does not lie has done nothing, so the command is sent again.
                (Some(error), Some(node)) if self.0.follow(&error, &node) => self.send(command).await.0,
                _ => answered,
            }
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let nodes = &self.0.nodes;
            let node = nodes.node(self.0.slot).await?;
            let (answered, number) = node.send_all(pipeline, offset, count).await;
            let verdict = match &answered {
                Ok(answers) => answers
                    .iter()
                    .map(Verdict::of_answer)
                    .find(|verdict| *verdict != Verdict::Fine)
                    .unwrap_or(Verdict::Fine),
                Err(error) => Verdict::of_error(error),
            };
            nodes.judge(&node, number, verdict);
            answered
        })
    }

    fn get_db(&self) -> i64 {
        self.0.database()
    }
}

/// The error of an answer that says that the slot has moved.
fn moved(answered: &RedisResult<Value>) -> Option<RedisError> {
    let error = match answered {
        Ok(Value::ServerError(error)) => RedisError::from(error.clone()),
        Ok(_) => return None,
        Err(error) => error.clone(),
    };
    (error.code() == Some("MOVED")).then_some(error)
}
