//! What this process knows of clients: how much of this process's own share of the limit each has used,
//! and until when Redis has to be asked, or need not be because the answer is known.
//!
//! Bounded: a client who has used nothing for a while is forgotten. Where there is no room to remember
//! one, Redis is asked.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use super::shared::TokenReply;
use super::{ANSWER_MAX, Quota, Rate};
use parking_lot::{Mutex, MutexGuard};

/// Each process lets pass this share of the limit without asking.
const SHARE: f64 = 0.25;
/// Of the rate at which the limit comes back, each process takes this share for granted: who asks more
/// slowly never costs a question. Processes know nothing of each other, so a client may have it of each.
const REGAINED: f64 = 1.0 / 32.0;
/// Locks, so that processors seldom wait for each other.
const SHARDS: usize = 64;
/// Remembered in one shard, about 64 bytes each.
const REMEMBERED_MAX: usize = 4_096;
/// A full shard is searched for clients to forget no more often than this.
const FORGET_EVERY_MS: u64 = 1_000;

/// The buckets of clients in this process.
pub(super) struct LocalBuckets {
    rate: Rate,
    started: Instant,
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
}

#[derive(Default)]
struct Shard {
    buckets: HashMap<u64, BucketState>,
    searched_at: u64,
}

/// Times are milliseconds since the start.
#[derive(Debug, Clone, Copy, Default)]
struct BucketState {
    /// Tokens that were taken here and not reported to Redis, less those that have come back.
    had: f64,
    at: u64,
    /// Tokens that were missing in Redis's bucket at its last answer, and when that was.
    missing: f64,
    missing_at: u64,
    /// Until then every request is a question.
    ask_until: u64,
    /// Until then the answer is no.
    limited_until: u64,
}

/// What this process can decide without Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LocalDecision {
    Admitted(Quota),
    Limited {
        retry_after: Duration,
    },
    /// Redis must be asked, and `debt` tokens reported that were taken before this one.
    Ask {
        debt: u32,
    },
}

impl LocalBuckets {
    pub fn new(rate: Rate) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        LocalBuckets { rate, started: Instant::now(), hasher: RandomState::new(), shards }
    }

    /// Counts one request.
    pub fn decide(&self, who: &str) -> LocalDecision {
        self.decide_at(who, self.now())
    }

    /// Remembers what Redis said.
    pub(crate) fn learn(&self, who: &str, answer: TokenReply) {
        self.learn_at(who, answer, self.now());
    }

    /// What `who` has left, as far as this process knows.
    pub fn quota(&self, who: &str) -> Quota {
        let (name, now) = (self.hasher.hash_one(who), self.now());
        let bucket = self.shard(name).buckets.get(&name).copied().unwrap_or_default();
        bucket.quota(now, self.rate)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn decide_at(&self, who: &str, now: u64) -> LocalDecision {
        let (share, regained) =
            (f64::from(self.rate.burst) * SHARE, self.rate.per_second * REGAINED / 1_000.0);
        let name = self.hasher.hash_one(who);
        let mut shard = self.shard(name);
        if shard.buckets.len() >= REMEMBERED_MAX && !shard.buckets.contains_key(&name) {
            shard.forget(now, regained);
            if shard.buckets.len() >= REMEMBERED_MAX {
                return LocalDecision::Ask { debt: 0 };
            }
        }
        let buckets = shard.buckets.entry(name).or_insert(BucketState { at: now, ..BucketState::default() });
        if now < buckets.limited_until {
            return LocalDecision::Limited {
                retry_after: Duration::from_millis(buckets.limited_until - now),
            };
        }
        buckets.regain(now, regained);
        if now >= buckets.ask_until && buckets.had + 1.0 <= share {
            buckets.had += 1.0;
            return LocalDecision::Admitted(buckets.quota(now, self.rate));
        }
        // To the nearest: what is lost each time, one way or the other, would add up.
        let debt = buckets.had.round() as u32;
        buckets.had = (buckets.had - f64::from(debt)).max(0.0);
        // Those who come before the answer ask too: else each of them would have a share anew.
        buckets.ask_until = buckets.ask_until.max(now + ANSWER_MAX.as_millis() as u64);
        LocalDecision::Ask { debt }
    }

    fn learn_at(&self, who: &str, answer: TokenReply, now: u64) {
        let name = self.hasher.hash_one(who);
        let mut shard = self.shard(name);
        let Some(buckets) = shard.buckets.get_mut(&name) else { return };
        buckets.missing_at = now;
        match answer {
            TokenReply::Admitted { ask_for, left } => {
                buckets.missing = f64::from(self.rate.burst) - f64::from(left);
                buckets.ask_until = now + ask_for.as_millis() as u64;
            }
            TokenReply::Limited { retry_after } => {
                buckets.missing = f64::from(self.rate.burst);
                buckets.limited_until = now + retry_after.as_millis() as u64;
                // Then the bucket has one token, and others may be after it.
                buckets.ask_until =
                    buckets.ask_until.max(buckets.limited_until + ANSWER_MAX.as_millis() as u64);
            }
        }
    }

    fn shard(&self, name: u64) -> MutexGuard<'_, Shard> {
        let shard = &self.shards[name as usize % SHARDS];
        shard.lock()
    }
}

impl Shard {
    /// Forgets those of whom there is nothing to know any more.
    fn forget(&mut self, now: u64, regained: f64) {
        if now < self.searched_at + FORGET_EVERY_MS {
            return;
        }
        self.searched_at = now;
        self.buckets.retain(|_, buckets| {
            buckets.regain(now, regained);
            buckets.had > 0.0 || now < buckets.ask_until.max(buckets.limited_until)
        });
    }
}

impl BucketState {
    /// What is left. Other processes may have let more pass since Redis's last answer.
    fn quota(&self, now: u64, rate: Rate) -> Quota {
        let filled = now.saturating_sub(self.missing_at) as f64 * rate.per_second / 1_000.0;
        Quota::missing((self.missing - filled).max(0.0) + self.had, rate)
    }

    /// What has come back since.
    fn regain(&mut self, now: u64, per_ms: f64) {
        self.had = (self.had - now.saturating_sub(self.at) as f64 * per_ms).max(0.0);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10.0, burst: 20 };

    fn is_admitted(decision: LocalDecision) -> bool {
        matches!(decision, LocalDecision::Admitted(_))
    }

    #[test]
    fn a_share_passes_unasked_and_is_reported_with_the_first_question() {
        let local = LocalBuckets::new(RATE);
        for left in (15..20).rev() {
            let quota = Quota { left, reset: Duration::from_millis((20 - u64::from(left)) * 100) };
            assert_eq!(local.decide_at("u", 0), LocalDecision::Admitted(quota));
        }
        assert_eq!(local.decide_at("u", 0), LocalDecision::Ask { debt: 5 });
        assert_eq!(local.decide_at("u", 0), LocalDecision::Ask { debt: 0 }, "before the answer");
        assert!(is_admitted(local.decide_at("v", 0)), "somebody else");
        local.learn_at("u", TokenReply::Admitted { ask_for: Duration::ZERO, left: 13 }, 1);
        let quota = Quota { left: 12, reset: Duration::from_millis(800) };
        assert_eq!(
            local.decide_at("u", 1),
            LocalDecision::Admitted(quota),
            "the bucket is more than half full"
        );
        local.learn_at("u", TokenReply::Admitted { ask_for: Duration::from_millis(500), left: 5 }, 1);
        assert_eq!(local.decide_at("u", 500), LocalDecision::Ask { debt: 1 }, "the one before is reported");
    }

    #[test]
    fn who_is_limited_is_turned_away_without_asking_until_the_time_is_over() {
        let local = LocalBuckets::new(RATE);
        while is_admitted(local.decide_at("u", 0)) {}
        local.learn_at("u", TokenReply::Limited { retry_after: Duration::from_millis(100) }, 0);
        assert_eq!(
            local.decide_at("u", 40),
            LocalDecision::Limited { retry_after: Duration::from_millis(60) }
        );
        assert_eq!(local.decide_at("u", 100), LocalDecision::Ask { debt: 0 });
    }

    #[test]
    fn the_share_comes_back_and_whoever_has_had_nothing_is_forgotten() {
        let local = LocalBuckets::new(RATE);
        for _ in 0..5 {
            local.decide_at("u", 0);
        }
        assert!(is_admitted(local.decide_at("u", 3_300)), "ten in 32 seconds");
        let (shard, regained) = (local.hasher.hash_one("u"), 10.0 / 32_000.0);
        local.shard(shard).forget(18_000, regained);
        assert_eq!(local.shard(shard).buckets.len(), 1);
        local.shard(shard).forget(20_000, regained);
        assert_eq!(local.shard(shard).buckets.len(), 0);
    }

    #[test]
    fn who_asks_for_long_has_little_that_is_not_settled_up() {
        let local = LocalBuckets::new(RATE);
        let (mut unasked, mut reported) = (0, 0);
        // Twice a second, for an hour: a fifth of the limit.
        for second in 0..7_200_u64 {
            match local.decide_at("u", second * 500) {
                LocalDecision::Admitted(_) => unasked += 1,
                LocalDecision::Ask { debt } => {
                    reported += debt;
                    local.learn_at(
                        "u",
                        TokenReply::Admitted { ask_for: Duration::ZERO, left: 20 },
                        second * 500,
                    );
                }
                limited => panic!("{limited:?}"),
            }
        }
        let forgiven = f64::from(unasked - reported);
        assert!(forgiven <= 3_600.0 * 10.0 / 32.0 + 5.0, "{forgiven} of {unasked}");
        assert!(reported > 4_500, "{reported}");
    }

    #[test]
    fn who_cannot_be_remembered_is_asked_about() {
        let local = LocalBuckets::new(RATE);
        let most = SHARDS * REMEMBERED_MAX;
        let asked = (0..2 * most)
            .filter(|n| local.decide_at(&format!("u{n}"), 0) == LocalDecision::Ask { debt: 0 })
            .count();
        let remembered: usize = local.shards.iter().map(|shard| shard.lock().buckets.len()).sum();
        assert!(remembered <= most && asked >= most, "{remembered} {asked}");
    }
}
