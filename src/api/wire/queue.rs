//! The queue, workers and dead letters on the wire.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::action::reason;
use super::fields::{self, Fields};
use super::query::Query;
use crate::http::Problem;
use crate::ids::{PartitionId, Unit};
use crate::queue::dead::{DeadLetterFilter, WHY_MAX};
use crate::queue::registry::{Heartbeat, STALE_AFTER};
use crate::queue::{Backlog, dead};
use crate::text;

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

    /// The workers that have sent a heartbeat in any partition, each with its latest, by what was read there and when.
    pub fn of_all(read: Vec<(Timestamp, Vec<Heartbeat>)>) -> Vec<Self> {
        let mut workers = BTreeMap::<String, Self>::new();
        for (now, beats) in read {
            for worker in beats.into_iter().map(|beat| Worker::new(beat, now)) {
                let known = workers.get(&worker.consumer);
                if known.is_none_or(|known| known.last_heartbeat_at < worker.last_heartbeat_at) {
                    workers.insert(worker.consumer.clone(), worker);
                }
            }
        }
        workers.into_values().collect()
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

/// A page of dead letters, the oldest first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeadLetterPage {
    pub items: Vec<DeadLetter>,
    /// For the next page: give it back as `cursor`, with the same filter. Null on the last page.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
    /// How many match in all, on this page and on others.
    #[schema(example = 10_000)]
    pub matched: u64,
    /// The numbers of the partitions that do not answer: what was set aside there is neither listed nor counted.
    #[schema(example = json!([]))]
    pub unavailable_partitions: Vec<u16>,
}

// Documents a body; `bulk` reads it.
/// Which dead letters are redriven or discarded, and why. Either `filter` or `all`.
#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = BulkAction, example = json!({"filter": {"couponId": "summer", "minAge": "PT15M"}, "reason": "The record is repaired"}))]
#[expect(dead_code, reason = "documents a body that is read field by field")]
pub(crate) struct BulkBody {
    /// With at least one member: what a dead letter must fit.
    #[schema(required = false, value_type = BulkFilter)]
    filter: Option<BulkFilter>,
    /// True: every dead letter is meant.
    all: Option<bool>,
    /// Why it is done, for the record of operators' actions: 1 to 200 characters.
    #[schema(min_length = 1, max_length = 2000)]
    reason: String,
}

/// What a dead letter must fit, as in the query of `GET /dead-letters`.
#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = DeadLetterFilter)]
#[expect(dead_code, reason = "documents a body that is read field by field")]
pub(crate) struct BulkFilter {
    #[schema(example = "summer")]
    coupon_id: Option<String>,
    #[schema(example = "u1")]
    user_id: Option<String>,
    /// A part of its reason, in upper or lower case.
    #[schema(example = "validation", min_length = 1, max_length = 500)]
    reason: Option<String>,
    /// ISO 8601; a day has 24 hours.
    #[schema(example = "PT15M")]
    min_age: Option<String>,
    /// ISO 8601; a day has 24 hours.
    #[schema(example = "P2D")]
    max_age: Option<String>,
}

/// Reads the filter of a list from its query.
///
/// # Errors
/// 422 `invalid`.
pub(crate) fn filter(query: &mut Query) -> Result<DeadLetterFilter, Problem> {
    Ok(DeadLetterFilter {
        coupon: query.take("couponId", str::parse)?,
        user: query.take("userId", str::parse)?,
        reason: query.take("reason", part_of_reason)?,
        min_age: query.take("minAge", text::duration)?,
        max_age: query.take("maxAge", text::duration)?,
    })
}

/// Reads which dead letters are meant. The reason is only checked: it is recorded with the request.
///
/// # Errors
/// 422 `invalid` with every error.
pub(crate) fn bulk(body: Value) -> Result<DeadLetterFilter, Problem> {
    let mut fields = Fields::of(body)?;
    let has_filter = fields.has("filter");
    let filter = fields.object("filter", |fields| {
        Some(DeadLetterFilter {
            coupon: fields.optional("couponId", fields::parsed),
            user: fields.optional("userId", fields::parsed),
            reason: fields.optional("reason", |text| part_of_reason(&fields::string(text)?)),
            min_age: fields.optional("minAge", age),
            max_age: fields.optional("maxAge", age),
        })
    });
    let is_all =
        fields.optional("all", |value| value.as_bool().ok_or_else(|| "must be true or false".into()));
    let why = fields.required("reason", reason);
    match (&filter, is_all.unwrap_or(false)) {
        (Some(filter), false) if filter.is_empty() => {
            fields.wrong("filter", "must have a member; if every dead letter is meant, send \"all\": true");
        }
        (None, false) if !has_filter => {
            fields.wrong("filter", "is missing; if every dead letter is meant, send \"all\": true");
        }
        (_, true) if has_filter => fields.wrong("all", "must not be true beside a filter"),
        _ => {}
    }
    fields.finish(why.map(|_| filter.unwrap_or_default()))
}

fn part_of_reason(text: &str) -> Result<String, String> {
    let is_part = (1..=WHY_MAX).contains(&text.chars().count());
    is_part.then(|| text.to_owned()).ok_or_else(|| format!("must have 1 to {WHY_MAX} characters"))
}

fn age(value: Value) -> Result<Duration, String> {
    text::duration(&fields::string(value)?)
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
                serial: in_flight.unit.map(Unit::serial),
                accepted_at: in_flight.accepted_at,
            }),
        }
    }
}

/// The numbers of partitions, as they stand on the wire.
pub(crate) fn numbers(partitions: Vec<PartitionId>) -> Vec<u16> {
    partitions.into_iter().map(PartitionId::number).collect()
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
    /// The numbers of the partitions that do not answer: what waits there is in no figure.
    #[schema(example = json!([]))]
    unavailable_partitions: Vec<u16>,
}

impl Queue {
    /// The queue of all partitions but for those that are unavailable.
    pub fn new(backlog: Backlog, unavailable: Vec<PartitionId>) -> Self {
        Queue {
            unavailable_partitions: numbers(unavailable),
            backlog: backlog.waiting(),
            in_flight: backlog.in_flight,
            dead_letters: backlog.dead,
            oldest_at: backlog.oldest_at,
            read_at: backlog.now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_bulk_action_says_what_is_meant_and_why() {
        let of_coupon =
            bulk(json!({"filter": {"couponId": "c", "minAge": "PT1M"}, "reason": "why"})).unwrap();
        assert_eq!((of_coupon.coupon, of_coupon.min_age), ("c".parse().ok(), Some(Duration::from_secs(60))));
        assert!(bulk(json!({"all": true, "reason": "why"})).unwrap().is_empty());
        for (body, pointer) in [
            (json!({"reason": "why"}), "#/filter"),
            (json!({"all": false, "reason": "why"}), "#/filter"),
            (json!({"filter": {}, "reason": "why"}), "#/filter"),
            (json!({"filter": {"couponId": "a b"}, "reason": "why"}), "#/filter/couponId"),
            (json!({"filter": {"coupon": "c"}, "reason": "why"}), "#/filter/coupon"),
            (json!({"filter": {"maxAge": "1"}, "reason": "why"}), "#/filter/maxAge"),
            (json!({"filter": {"couponId": "c"}, "all": true, "reason": "why"}), "#/all"),
            (json!({"all": "yes", "reason": "why"}), "#/all"),
            (json!({"all": true}), "#/reason"),
            (json!({"all": true, "reason": ""}), "#/reason"),
        ] {
            let body_of = bulk(body.clone()).unwrap_err().to_value(crate::http::Language::English, "r", "");
            assert_eq!(body_of["errors"][0]["pointer"], pointer, "{body}: {body_of}");
        }
    }
}
