//! Every Redis key, the group and the hash tag, in one place.
//!
//! All keys of a partition share its hash tag ([`PartitionId::tag`]), `{n}` here, so they live in one slot and one script
//! may touch them together. All of them but the certificate, the limits, the spans of
//! requests and what is damaged carry the epoch: data of another generation can never be mistaken for this one's.
//!
//! | key | type | holds |
//! |---|---|---|
//! | `coupon:{n}:certificate` | hash | the open epoch, the Redis instance and the ledger it is open on, or who recovers |
//! | `coupon:{n}:E:stream` | stream | what was accepted, until it is settled: an entry holds one issuance, or all that one call accepted |
//! | `coupon:{n}:E:in-flight` | hash | issuance id (16 bytes) → `entry unit seq acceptedAtMs nth coupon user` |
//! | `coupon:{n}:E:dead` | hash | issuance id (16 bytes) → why its entry was set aside |
//! | `coupon:{n}:E:redriven:I` | hash | what was set aside of issuance I, and sent through again; expires by itself |
//! | `coupon:{n}:E:workers` | hash | consumer → when it last said that it lives (ms), and of itself |
//! | `coupon:{n}:E:counters` | hash | `accepted`: the sequence number given last; `settled`: how many were settled; `paused`: whether the service is; `service_generation`: the generation of the service's state that `paused` was read from; `retired`: how often loads under way were outdated, because coupons were retired or records renamed; `settled_unloaded`: how many of those settled were of coupons that were not loaded |
//! | `coupon:{n}:E:loaded` | set | the ids of the loaded coupons |
//! | `coupon:{n}:E:coupon:C` | hash | a loaded coupon: total, next serial, limit, window, state, settled; `audit`: the token of the latest repair; `gains`: how often units became free again. Of a coupon in several shares: `shares`: how many; `credited`, `moved`: how many units were moved to this one, and away from it; `drained_until`: until when it may say for all that they are sold out (ms) |
//! | `coupon:{n}:E:holders:C` | hash | user → the ids (16 bytes each) held or in flight; `!` + id → an id that came from a key and is used up: rejected, or its user was deleted; `=` + partition → the ids of moves to its share that are in flight; `+` + id, `-` + id → the unit that this move brought, or took away |
//! | `coupon:{n}:E:free:C` | set | units that were given back, or moved here (ids/unit.rs) |
//! | `coupon:{n}:E:refill-turn:C` | string | that some process moves units here; expires by itself |
//! | `coupon:{n}:E:keys:0`, `…:keys:1` | hash | tag of a user's `Idempotency-Key` (8 bytes) → the last 8 bytes of the id of the issuance that it was accepted for; the two take turns at being filled and emptied |
//! | `coupon:{n}:E:audit-turn` | string | that some process has the turn at auditing; expires by itself |
//! | `coupon:{n}:E:erase-turn`, `…:retain-turn` | string | that some process has the turn at carrying deletions out, or at deleting old rejections; expire by themselves |
//! | `coupon:{n}:E:load-turn` | string | that some process has the turn at looking for coupons to load; expires by itself |
//! | `coupon:{n}:E:dead-letter-turn` | string | that some process redrives or discards many dead letters; expires by itself |
//! | `coupon:{n}:E:rewrite-turn` | string | that some process has asked for a rewrite of the append-only file lately; expires by itself |
//! | `coupon:{n}:E:audited` | string | how often everything was audited in full since the last recovery |
//! | `coupon:{n}:E:audit-summary` | hash | the latest audit in the background: when it ended (ms), how many coupons it audited, what it found |
//! | `coupon:{n}:E:load:T:holders`, `…:free` | | a load in progress (T: its token); expires by itself |
//! | `coupon:{n}:E:built` | string | written last by a rebuild, and gone once the epoch is open |
//! | `coupon:{T}:limit:K:H` | string | tokens left to a user or an address (K), by a hash of its name (H), and when; expires by itself. T is one of 16 hash tags of the limits' own |
//! | `coupon:{n}:acknowledged` | string | nothing: it is written beside what replicas must acknowledge (`--redis-acknowledged-by`) |
//! | `coupon:{n}:trace-parents` | hash | issuance id (16 bytes) → the span of its request (25 bytes), of sampled requests only, until a worker has settled it; expires by itself. Of no epoch, so a rebuild leaves it |
//! | `coupon:{n}:damaged`, `…:KEY` | hash | values of the in-flight hash whose field is no id (and those that rebuilds of earlier versions could not read); keys that were of another type than they should be, under their old names with dashes; normally missing |
//!
//! Outcomes are published on the channel `coupon:{n}:outcomes:L`, where L names the ledger: a channel belongs
//! to all databases of a Redis, and to all deployments in them.

use crate::ids::PartitionId;
use crate::ids::{CouponId, IssuanceId};
use crate::redis::Epoch;

/// The consumer group of every stream.
pub const GROUP: &str = "workers";

/// The certificate's key. It belongs to no epoch, since it names the one that is open.
pub fn certificate(partition: PartitionId) -> String {
    format!("coupon:{{{}}}:certificate", partition.tag())
}

/// The channel on which settled outcomes of this ledger are announced.
pub fn outcome_channel(partition: PartitionId, ledger: &str) -> String {
    format!("coupon:{{{}}}:outcomes:{ledger}", partition.tag())
}

/// The key that exists while callers wait long. It belongs to no epoch.
pub fn pressure(partition: PartitionId) -> String {
    format!("coupon:{{{}}}:pressure", partition.tag())
}

/// The spans of sampled requests that are in flight. They belong to no epoch.
pub fn trace_parents(partition: PartitionId) -> String {
    format!("coupon:{{{}}}:trace-parents", partition.tag())
}

/// Values of the in-flight hash that belong to no issuance, by their fields, for an operator to inspect.
pub fn damaged(partition: PartitionId) -> String {
    format!("coupon:{{{}}}:damaged", partition.tag())
}

/// The bucket of one user or address. It belongs to no partition and no epoch: buckets have hash tags of their own.
pub(crate) fn limit(tag: &str, kind: &str, name: &str) -> String {
    format!("coupon:{{{tag}}}:limit:{kind}:{name}")
}

/// Written beside what replicas must acknowledge, by whoever uses this hash tag. It belongs to no epoch.
pub(crate) fn acknowledged(tag: &str) -> String {
    format!("coupon:{{{tag}}}:acknowledged")
}

/// The epoch whose in-flight hash this key is.
pub(crate) fn epoch_of_in_flight(partition: PartitionId, key: &str) -> Option<Epoch> {
    key.strip_prefix(&format!("coupon:{{{}}}:", partition.tag()))?.strip_suffix(":in-flight")?.parse().ok()
}

/// A pattern for SCAN that matches every key of the partition that belongs to some epoch.
pub(crate) fn any_epoch(partition: PartitionId) -> String {
    format!("coupon:{{{}}}:*-*-*-*-*:*", partition.tag())
}

/// The keys of one epoch of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochKeys {
    partition: PartitionId,
    epoch: Epoch,
    prefix: String,
}

impl EpochKeys {
    /// Names the keys of `epoch`.
    pub fn new(partition: PartitionId, epoch: Epoch) -> Self {
        let prefix = format!("coupon:{{{}}}:{epoch}:", partition.tag());
        EpochKeys { partition, epoch, prefix }
    }

    /// The partition these keys belong to.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The epoch that these keys carry.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The prefix of every key of this epoch.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The certificate; the table above describes this key and those of the methods below.
    pub fn certificate(&self) -> String {
        certificate(self.partition)
    }

    /// The stream of accepted issuances.
    pub fn stream(&self) -> String {
        format!("{}stream", self.prefix)
    }

    /// Issuances that are reserved and not settled.
    pub fn in_flight(&self) -> String {
        format!("{}in-flight", self.prefix)
    }

    /// Dead letters.
    pub fn dead(&self) -> String {
        format!("{}dead", self.prefix)
    }

    /// The dead letter of an issuance that was redriven.
    pub fn redriven(&self, id: IssuanceId) -> String {
        format!("{}redriven:{id}", self.prefix)
    }

    /// Workers' heartbeats.
    pub fn workers(&self) -> String {
        format!("{}workers", self.prefix)
    }

    /// Counts of accepted and settled issuances.
    pub fn counters(&self) -> String {
        format!("{}counters", self.prefix)
    }

    /// The ids of loaded coupons.
    pub fn loaded(&self) -> String {
        format!("{}loaded", self.prefix)
    }

    /// The number of full audits since the last recovery.
    pub fn audited(&self) -> String {
        format!("{}audited", self.prefix)
    }

    /// The result of the latest audit.
    pub(crate) fn audit_summary(&self) -> String {
        format!("{}audit-summary", self.prefix)
    }

    /// The mark of a complete rebuild.
    pub fn built(&self) -> String {
        format!("{}built", self.prefix)
    }

    /// A loaded coupon.
    pub fn coupon(&self, coupon: &CouponId) -> String {
        format!("{}coupon:{coupon}", self.prefix)
    }

    /// The users who hold a coupon or have one in flight.
    pub fn holders(&self, coupon: &CouponId) -> String {
        format!("{}holders:{coupon}", self.prefix)
    }

    /// The units of a coupon that were given back, or moved here.
    pub fn free(&self, coupon: &CouponId) -> String {
        format!("{}free:{coupon}", self.prefix)
    }

    /// The turn at moving units of a coupon here.
    pub(crate) fn refill_turn(&self, coupon: &CouponId) -> String {
        format!("{}refill-turn:{coupon}", self.prefix)
    }

    /// The issuances that recent `Idempotency-Key`s were accepted for: two hashes that take turns.
    pub fn used_keys(&self) -> [String; 2] {
        [0, 1].map(|turn| format!("{}keys:{turn}", self.prefix))
    }

    /// The turn at auditing.
    pub fn audit_turn(&self) -> String {
        format!("{}audit-turn", self.prefix)
    }

    /// The turn at carrying deletions out.
    pub(crate) fn erase_turn(&self) -> String {
        format!("{}erase-turn", self.prefix)
    }

    /// The turn at deleting old rejections.
    pub(crate) fn retain_turn(&self) -> String {
        format!("{}retain-turn", self.prefix)
    }

    /// The turn at loading coupons that have something in flight.
    pub(crate) fn load_turn(&self) -> String {
        format!("{}load-turn", self.prefix)
    }

    /// Taken by the process whose turn it is to retire coupons.
    pub fn retire_turn(&self) -> String {
        format!("{}retire-turn", self.prefix)
    }

    /// The turn at redriving or discarding many dead letters.
    pub fn dead_letter_turn(&self) -> String {
        format!("{}dead-letter-turn", self.prefix)
    }

    /// The turn at asking for a rewrite of the append-only file.
    pub fn rewrite_turn(&self) -> String {
        format!("{}rewrite-turn", self.prefix)
    }

    /// Holders and free serials of a load in progress, in this order.
    pub fn staging(&self, token: &str) -> (String, String) {
        (format!("{}load:{token}:holders", self.prefix), format!("{}load:{token}:free", self.prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_of_a_partition_share_its_hash_tag() {
        let partition = PartitionId::new(7).unwrap();
        let keys = EpochKeys::new(partition, Epoch::new());
        let coupon: CouponId = "summer".parse().unwrap();
        let (holders, free) = keys.staging("t");
        let [used, used_before] = keys.used_keys();
        for key in [
            keys.certificate(),
            trace_parents(keys.partition()),
            keys.stream(),
            keys.in_flight(),
            keys.dead(),
            keys.redriven(IssuanceId::generate(partition)),
            keys.counters(),
            keys.workers(),
            keys.loaded(),
            keys.built(),
            keys.audited(),
            keys.audit_summary(),
            keys.coupon(&coupon),
            keys.holders(&coupon),
            keys.free(&coupon),
            keys.audit_turn(),
            keys.erase_turn(),
            keys.retain_turn(),
            keys.load_turn(),
            keys.dead_letter_turn(),
            keys.rewrite_turn(),
            used,
            used_before,
            holders,
            free,
        ] {
            assert!(key.starts_with(&format!("coupon:{{{}}}:", partition.tag())), "{key}");
        }
    }
}
