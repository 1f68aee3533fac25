//! The queue, workers and dead letters on the wire.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::queue::registry::{Heartbeat, STALE_AFTER};
use crate::queue::{Backlog, dead};

/// A worker that has sent a heartbeat.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Worker {
    #[schema(example = "w-2w6d5agg4id5")]
    consumer: String,
    /// Whether its last heartbeat is fresh; if not, others take over what it has.
    alive: bool,
    #[schema(value_type = String, format = DateTime)]
    last_heartbeat_at: Timestamp,
    /// How it describes itself: `key=value`, with spaces between.
    #[schema(example = "pid=42 started=2026-11-23T04:18:50Z version=0.1.0")]
    says: String,
}

impl Worker {
    /// A worker as it is at `now`, by Redis's clock.
    pub fn new(beat: Heartbeat, now: Timestamp) -> Self {
        // One from the future is stale too: the clock was put back, and a worker that lives has beaten since.
        let age_ms = now.as_millisecond().abs_diff(beat.at.as_millisecond());
        let alive = u128::from(age_ms) <= STALE_AFTER.as_millis();
        Worker { consumer: beat.consumer, alive, last_heartbeat_at: beat.at, says: beat.says }
    }
}

/// An entry that no worker can decide for a reason of its own, set aside for an operator.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeadLetter {
    /// The issuance.
    #[schema(value_type = String, format = Uuid)]
    id: String,
    #[schema(value_type = String, format = DateTime)]
    set_aside_at: Timestamp,
    /// How often that was found before it was set aside.
    #[schema(example = 3)]
    attempts: u32,
    /// Why, and what to do; or what MongoDB said.
    #[schema(example = "Document failed validation (121)")]
    reason: String,
    /// What is in flight; null if nothing is any more.
    #[schema(required = true)]
    payload: Option<Payload>,
}

/// What is in flight of an issuance.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = DeadLetterPayload)]
pub(crate) struct Payload {
    #[schema(example = "summer")]
    coupon_id: String,
    #[schema(example = "u1")]
    user_id: String,
    /// The unit that is reserved for it.
    #[schema(required = true, example = 17)]
    serial: Option<u32>,
    #[schema(value_type = String, format = DateTime)]
    accepted_at: Timestamp,
}

impl From<dead::DeadLetter> for DeadLetter {
    fn from(letter: dead::DeadLetter) -> Self {
        DeadLetter {
            id: letter.id.to_string(),
            set_aside_at: letter.set_aside_at,
            attempts: letter.attempts,
            reason: letter.why,
            payload: letter.in_flight.map(|in_flight| Payload {
                coupon_id: in_flight.coupon.to_string(),
                user_id: in_flight.user.to_string(),
                serial: in_flight.serial,
                accepted_at: in_flight.accepted_at,
            }),
        }
    }
}

/// The queue at one moment.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Queue {
    /// Accepted and not decided, dead letters left out.
    #[schema(example = 412)]
    backlog: u64,
    /// Accepted and not settled.
    #[schema(example = 412)]
    in_flight: u64,
    /// Set aside for an operator.
    #[schema(example = 0)]
    dead_letters: u64,
    /// Since when the oldest of the backlog waits; null when nothing does.
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    oldest_at: Option<Timestamp>,
    /// Redis's time of this reading.
    #[schema(value_type = String, format = DateTime)]
    read_at: Timestamp,
}

impl From<Backlog> for Queue {
    fn from(backlog: Backlog) -> Self {
        Queue {
            backlog: backlog.waiting(),
            in_flight: backlog.in_flight,
            dead_letters: backlog.dead,
            oldest_at: backlog.oldest_at,
            read_at: backlog.now,
        }
    }
}
