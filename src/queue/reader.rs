//! Blocking reads of new entries, on a connection of their own: a blocked connection serves no other call, and the
//! client's usual response timeout would strand entries whose delivery it did not wait for.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisError;
use redis::aio::MultiplexedConnection;

use super::Delivered;
use super::entry::RawEntry;
use crate::Failure;
use crate::redis::keys::{EpochKeys, GROUP};
use crate::redis::{RedisClient, Replacements, cmd};

/// Short, so that a read ends soon after the worker is asked to stop: a read is never cancelled.
const BLOCK: Duration = Duration::from_millis(500);
/// A connection that is silent for this long, much longer than a read blocks, is broken. The client's usual limit of
/// half a second would strand entries all the time; after this one the worker sweeps for them.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Reads a stream for one consumer.
pub struct Reader {
    client: Arc<RedisClient>,
    consumer: String,
    connection: Option<MultiplexedConnection>,
    replacements: Replacements,
}

/// The result of one read.
#[derive(Debug)]
pub enum ReadOutcome {
    /// Delivered to this consumer, and pending until settled. May be empty.
    Entries(Delivered),
    /// The stream or the group does not exist: the epoch is over, or Redis lost it.
    NoGroup,
}

/// Which entries to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom<'a> {
    /// Entries never delivered; waits a moment for some.
    New,
    /// Entries never delivered, without waiting for some.
    NewAtOnce,
    /// Entries that were delivered to this consumer and are not settled: those after this one (`0`
    /// for all).
    PendingAfter(&'a str),
}

impl Reader {
    /// A reader for `consumer`, a name that no other process ever has.
    pub fn new(client: Arc<RedisClient>, consumer: String) -> Self {
        let replacements = client.replacements();
        Reader { client, consumer, connection: None, replacements }
    }

    /// Reads at most `count` entries. Do not drop the future before it is done: entries that were delivered to it
    /// would be pending while no worker knows of them.
    ///
    /// # Errors
    ///
    /// If Redis fails.
    pub async fn read(
        &mut self,
        keys: &EpochKeys,
        which: ReadFrom<'_>,
        count: usize,
    ) -> Result<ReadOutcome, Failure> {
        if self.replacements.have_changed() {
            self.connection = None;
        }
        match self.try_read(keys, which, count).await {
            Ok(reply) => Ok(decoded(reply)),
            Err(error) if is_no_group(&error) => {
                self.client.note(&error);
                Ok(ReadOutcome::NoGroup)
            }
            Err(error) => {
                self.client.note(&error);
                self.connection = None;
                Err(Failure::redis("read the queue")(error))
            }
        }
    }

    async fn try_read(
        &mut self,
        keys: &EpochKeys,
        which: ReadFrom<'_>,
        count: usize,
    ) -> Result<RawReply, RedisError> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.client.dedicated(SILENCE_MAX).await?),
        };
        let mut command = cmd("XREADGROUP");
        command.arg("GROUP").arg(GROUP).arg(&self.consumer).arg("COUNT").arg(count);
        if which == ReadFrom::New {
            command.arg("BLOCK").arg(u64::try_from(BLOCK.as_millis()).unwrap_or(u64::MAX));
        }
        command.arg("STREAMS").arg(keys.stream()).arg(match which {
            ReadFrom::New | ReadFrom::NewAtOnce => ">",
            ReadFrom::PendingAfter(entry) => entry,
        });
        let reply: Option<RawReply> = command.query_async(connection).await?;
        Ok(reply.unwrap_or_default())
    }
}

/// The name of each stream, and what was delivered of it.
type RawReply = Vec<(String, Vec<RawEntry>)>;

fn decoded(reply: RawReply) -> ReadOutcome {
    let mut delivered = Delivered::default();
    for (id, fields) in reply.into_iter().flat_map(|(_, entries)| entries) {
        delivered.add(&id, &fields.unwrap_or_default());
    }
    ReadOutcome::Entries(delivered)
}

fn is_no_group(error: &RedisError) -> bool {
    error.code() == Some("NOGROUP") || error.code() == Some("UNBLOCKED")
}
