//! How much is queued, and for how long: one cheap script.

use std::time::Duration;

use jiff::Timestamp;

use super::DEAD_LETTER_CONSUMER;
use crate::Failure;
use crate::ids::PartitionId;
use crate::redis::keys::GROUP;
use crate::redis::{LuaScript, Partition, Partitions, Reply};

static FIGURES: LuaScript = LuaScript::new(include_str!("figures.lua"));

/// Pages of twenty entries that are passed over to find the oldest that waits, for each consumer: of those
/// that cannot be read, or are in flight no more. Dead letters are not among them, however many there are.
const PAGES_MAX: usize = 50;
/// Consumers that are searched at most: a script must stay short.
const CONSUMERS_MAX: usize = 64;

/// The queue at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Redis's time of this reading.
    pub now: Timestamp,
    /// Reserved and not settled, dead letters among them.
    pub in_flight: u64,
    /// Set aside.
    pub dead: u64,
    /// Entries in the stream: never more than `in_flight`, for an entry may hold many issuances.
    pub length: u64,
    /// When the oldest that waits to be decided was accepted.
    pub oldest_at: Option<Timestamp>,
}

impl Backlog {
    /// Both queues together.
    pub(crate) fn with(self, other: Self) -> Self {
        Backlog {
            now: self.now.max(other.now),
            in_flight: self.in_flight + other.in_flight,
            dead: self.dead + other.dead,
            length: self.length + other.length,
            oldest_at: self.oldest_at.into_iter().chain(other.oldest_at).min(),
        }
    }

    /// The number of issuances that wait for their decision.
    pub fn waiting(&self) -> u64 {
        self.in_flight.saturating_sub(self.dead)
    }

    /// For how long the oldest has waited; zero if there is none.
    pub fn oldest_age(&self) -> Duration {
        self.oldest_at.and_then(|at| self.now.duration_since(at).try_into().ok()).unwrap_or_default()
    }
}

/// Reads the figures: one call of `figures.lua`.
///
/// # Errors
///
/// If Redis fails, or its data is not certified.
pub async fn figures(partition: &Partition) -> Result<Backlog, Failure> {
    let mut reply = partition
        .call(&FIGURES, "read the queue's figures", |keys, call| {
            call.key(keys.stream()).key(keys.in_flight()).key(keys.dead());
            call.arg(GROUP).arg(DEAD_LETTER_CONSUMER).arg(PAGES_MAX).arg(CONSUMERS_MAX);
        })
        .await?;
    let now = time(reply.number()?, &reply)?;
    let (in_flight, dead, length) = (reply.number()?, reply.number()?, reply.number()?);
    let oldest = reply.text()?;
    let oldest_at = match oldest.as_str() {
        "" => None,
        ms => Some(time(ms.parse().map_err(|_| reply.wrong())?, &reply)?),
    };
    Ok(Backlog { now, in_flight, dead, length, oldest_at })
}

/// The figures of all partitions together, and which of them did not answer, whose figures are missing.
///
/// # Errors
///
/// If no partition answers.
pub async fn figures_of_all(partitions: &Partitions) -> Result<(Backlog, Vec<PartitionId>), Failure> {
    let asked =
        partitions.ask_any("read the queue's figures", |partition| async move { figures(&partition).await });
    let (read, unavailable) = asked.await?;
    let all = read.into_iter().reduce(Backlog::with).ok_or(Failure::Uncertified)?;
    Ok((all, unavailable))
}

fn time(ms: u64, reply: &Reply) -> Result<Timestamp, Failure> {
    let ms = i64::try_from(ms).map_err(|_| reply.wrong())?;
    Timestamp::from_millisecond(ms).map_err(|_| reply.wrong())
}
