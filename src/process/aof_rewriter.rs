//! The background task, in every API process, that has each Redis rewrite its append-only file when that disturbs nobody.
//! Idempotent and without input; periodic.
//!
//! A rewrite in the middle of a rush costs requests: Redis forks, copies the pages that change meanwhile, and its child
//! writes a second file beside the fsyncs. So it is asked for at quiet times, and a little ahead of an opening; at
//! any other time only in need, when the file has outgrown what a disk is planned for. deploy/redis.conf makes Redis
//! itself begin a rewrite later than that, for want of an API that may.
//!
//! Reads: INFO, the queue's figures, which coupons open. Writes: nothing of its own. The processes take turns at asking,
//! by a key that expires.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{join_all, try_join_all};
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::coupon::CouponStore;
use crate::queue::Backlog;
use crate::redis::{AppendOnlyFile, Partition, Partitions, RewriteAnswer, append_only_file, rewrite, turn};
use crate::runtime::tasks::Rounds;
use crate::{Failure, metrics, queue};

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(5);
/// Between two requests for a rewrite, by whichever process.
const TURN: Duration = Duration::from_secs(60);
/// The same after a rewrite that failed or was forbidden: its cause, such as a full disk, seldom passes soon.
const TURN_AFTER_FAILURE: Duration = Duration::from_secs(600);

/// At a quiet time at most this many issuances wait: those that arrive just now, and no backlog.
const QUIET_WAITING_MAX: u64 = 1_000;
/// At a quiet time Redis appends at most this much. An issuance takes some 300 bytes, from its acceptance to its
/// settling.
const QUIET_BYTES_PER_SECOND_MAX: f64 = 65_536.0;
/// How long before and after an opening no time is quiet; longer before it where a rewrite takes long.
const AROUND_OPENING: SignedDuration = SignedDuration::from_secs(60);
/// How long before an opening a file that has grown is rewritten, quiet or not; longer where a rewrite takes long.
const BEFORE_OPENING: SignedDuration = SignedDuration::from_mins(10);
/// A rewrite should be over after this many times what the last one took.
const REWRITE_TIMES: i32 = 2;

/// By how much the append-only file may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RewriteBounds {
    /// A file that has grown by less is not worth a rewrite, in bytes. Nor is one that has grown by less than a quarter
    /// of its base.
    pub growth_min_bytes: u64,
    /// A file that has grown by this much, in bytes, and by half of its base, is rewritten at any time.
    pub growth_max_bytes: u64,
}

impl Default for RewriteBounds {
    fn default() -> Self {
        RewriteBounds { growth_min_bytes: 64 << 20, growth_max_bytes: 2 << 30 }
    }
}

impl RewriteBounds {
    /// The growth, in bytes, from which on a file is worth a rewrite at a quiet time.
    fn worthwhile(&self, file: &AppendOnlyFile) -> u64 {
        self.growth_min_bytes.max(file.base_bytes / 4)
    }

    /// The growth, in bytes, from which on a file is rewritten at any time.
    pub(crate) fn most(&self, file: &AppendOnlyFile) -> u64 {
        self.growth_max_bytes.max(file.base_bytes / 2)
    }
}

/// Why a rewrite is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewriteReason {
    /// Nothing is queued, nearly nothing is written, and nothing is about to open.
    Quiet,
    /// A coupon opens within minutes, and the file would outgrow its bound during the rush.
    BeforeOpening,
    /// The file has outgrown its bound.
    Need,
}

impl RewriteReason {
    /// As the label of a metric.
    pub fn as_str(self) -> &'static str {
        match self {
            RewriteReason::Quiet => "quiet",
            RewriteReason::BeforeOpening => "before-opening",
            RewriteReason::Need => "need",
        }
    }
}

/// How near the next or the latest opening is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NearestOpening {
    /// The rush is there, or comes before a rewrite would be over.
    Near,
    /// The rush comes after a rewrite that begins now.
    Soon,
    Far,
}

impl NearestOpening {
    /// How long before an opening it is near, and soon, if a rewrite takes this long.
    fn ahead(rewrite: Option<Duration>) -> (SignedDuration, SignedDuration) {
        let rewrite = rewrite.and_then(|time| SignedDuration::try_from(time).ok()).unwrap_or_default();
        let near = AROUND_OPENING.max(rewrite.saturating_mul(REWRITE_TIMES));
        (near, BEFORE_OPENING.max(near.saturating_mul(REWRITE_TIMES)))
    }

    /// Of coupons in the order in which they open.
    fn of(first: Option<Timestamp>, now: Timestamp, near: SignedDuration) -> Self {
        match first {
            None => NearestOpening::Far,
            Some(first) if first < now + near => NearestOpening::Near,
            Some(_) => NearestOpening::Soon,
        }
    }
}

/// How busy the system is.
#[derive(Debug, Clone, Copy)]
struct Activity {
    /// Issuances that wait for their decision.
    waiting: u64,
    /// What Redis appended lately; `None` while unknown.
    bytes_per_second: Option<f64>,
    opening: NearestOpening,
}

impl Activity {
    fn is_quiet(&self) -> bool {
        self.waiting <= QUIET_WAITING_MAX
            && self.bytes_per_second.is_some_and(|rate| rate <= QUIET_BYTES_PER_SECOND_MAX)
            && self.opening != NearestOpening::Near
    }
}

/// What the growth of the file alone decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Growth {
    /// A rewrite is not worth it, or one runs.
    Small,
    /// It depends on how busy the system is; `is_large` if the file might outgrow its bound in the next rush.
    Worthwhile {
        is_large: bool,
    },
    Excessive,
}

fn growth(file: &AppendOnlyFile, bounds: &RewriteBounds) -> Growth {
    let (growth, most) = (file.growth(), bounds.most(file));
    if file.is_rewriting || growth < bounds.worthwhile(file) {
        Growth::Small
    } else if growth >= most {
        Growth::Excessive
    } else {
        Growth::Worthwhile { is_large: growth >= most / 4 }
    }
}

/// Whether a file whose growth is worthwhile should be rewritten now.
fn reason(is_large: bool, activity: &Activity) -> Option<RewriteReason> {
    if activity.is_quiet() {
        Some(RewriteReason::Quiet)
    } else if is_large && activity.opening == NearestOpening::Soon {
        Some(RewriteReason::BeforeOpening)
    } else {
        None
    }
}

/// What one round did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewriteRound {
    /// No rewrite is due: the file is small, one runs, it is not the time, or there is no file.
    NotDue,
    /// Some process has asked lately.
    AskedBefore,
    Asked(RewriteReason),
    /// Redis lets this process ask for none.
    Forbidden,
}

/// Has Redis rewrite its append-only file.
pub struct AofRewriter {
    partitions: Partitions,
    coupons: CouponStore,
    bounds: RewriteBounds,
    /// Of each Redis, by its name.
    nodes: HashMap<String, NodeMemory>,
}

/// What a rewriter remembers of one Redis.
#[derive(Default)]
struct NodeMemory {
    /// When the size of the file was last read, and what it was.
    last: Option<(Instant, u64)>,
    /// Redis let this process ask for none, when it last asked.
    is_forbidden: bool,
}

impl AofRewriter {
    /// A rewriter that has read nothing yet.
    pub fn new(partitions: Partitions, coupons: CouponStore, bounds: RewriteBounds) -> Self {
        AofRewriter { partitions, coupons, bounds, nodes: HashMap::new() }
    }

    /// Asks for rewrites until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut rounds = Rounds::every(EVERY, &shutdown);
        while rounds.next().await {
            if let Err(failure) = self.round().await {
                tracing::debug!(
                    error = failure.chain(),
                    "whether the append-only file should be rewritten is unknown; trying again"
                );
            }
        }
    }

    /// Asks each Redis for a rewrite if one is due, and names it in the log. A file is quiet in the second round at the
    /// earliest: its growth since the last one tells how busy Redis is. Returns what was done on the first Redis on which
    /// anything was due.
    ///
    /// # Errors
    ///
    /// If a Redis or MongoDB fails; the others were asked all the same.
    pub async fn round(&mut self) -> Result<RewriteRound, Failure> {
        let mut on_nodes: HashMap<String, Vec<Arc<Partition>>> = HashMap::new();
        let mut done = Ok(RewriteRound::NotDue);
        for partition in &self.partitions {
            match partition.client().known_primary() {
                // A Redis has one file, however many partitions lie on it.
                Some(primary) => on_nodes.entry(primary.name()).or_default().push(Arc::clone(partition)),
                None => {
                    partition.client().find_again();
                    let source = format!("no node is known that serves partition {}", partition.id()).into();
                    done = Err(Failure::Redis { operation: "describe its append-only file", source });
                }
            }
        }
        let mut memories = std::mem::take(&mut self.nodes);
        let asked = on_nodes.into_iter().map(|(node, partitions)| {
            let mut memory = memories.remove(&node).unwrap_or_default();
            let this = &*self;
            async move { (this.round_of(&partitions, &mut memory).await, node, memory) }
        });
        let asked: Vec<_> = asked.collect();
        for (round, node, memory) in join_all(asked).await {
            self.nodes.insert(node, memory);
            if matches!(done, Ok(RewriteRound::NotDue)) {
                done = round;
            }
        }
        done
    }

    /// `partitions`: all that lie on the node; at least one.
    async fn round_of(
        &self,
        partitions: &[Arc<Partition>],
        memory: &mut NodeMemory,
    ) -> Result<RewriteRound, Failure> {
        let Some(partition) = partitions.first() else { return Ok(RewriteRound::NotDue) };
        let Some(file) = append_only_file(partition).await? else { return Ok(RewriteRound::NotDue) };
        let bytes_per_second = memory.bytes_per_second(&file);
        let reason = match growth(&file, &self.bounds) {
            Growth::Small => None,
            Growth::Excessive => Some(RewriteReason::Need),
            Growth::Worthwhile { is_large } => {
                reason(is_large, &self.activity(partitions, &file, bytes_per_second).await?)
            }
        };
        let Some(reason) = reason else { return Ok(RewriteRound::NotDue) };
        let turn = if file.has_failed || memory.is_forbidden { TURN_AFTER_FAILURE } else { TURN };
        let key = partition.keys().rewrite_turn();
        match turn::in_turn(partition, key, turn, rewrite(partition)).await? {
            None => Ok(RewriteRound::AskedBefore),
            Some(RewriteAnswer::Begun) => {
                memory.is_forbidden = false;
                metrics::REWRITES_ASKED.count(reason.as_str());
                tracing::info!(
                    reason = reason.as_str(),
                    bytes = file.bytes,
                    base_bytes = file.base_bytes,
                    "asked Redis to rewrite its append-only file"
                );
                Ok(RewriteRound::Asked(reason))
            }
            Some(RewriteAnswer::Forbidden(why)) => {
                if !std::mem::replace(&mut memory.is_forbidden, true) {
                    tracing::warn!(
                        why,
                        "Redis lets this process ask for no rewrite of the append-only file, so Redis alone decides \
                         when to rewrite it, perhaps in the middle of a rush; trying again every few minutes"
                    );
                }
                Ok(RewriteRound::Forbidden)
            }
        }
    }

    /// How busy the node is: by what waits in its own partitions, and by what opens in any.
    async fn activity(
        &self,
        partitions: &[Arc<Partition>],
        file: &AppendOnlyFile,
        bytes_per_second: Option<f64>,
    ) -> Result<Activity, Failure> {
        let backlogs = partitions.iter().map(|partition| queue::figures(partition));
        let backlog = try_join_all(backlogs).await?.into_iter().reduce(Backlog::with);
        let backlog = backlog.ok_or(Failure::Uncertified)?;
        let (now, (near, soon)) = (backlog.now, NearestOpening::ahead(file.last_rewrite));
        let openings = self.coupons.opening_within(now - AROUND_OPENING, now + soon).await?;
        let opening = NearestOpening::of(openings.first().map(|first| first.starts_at), now, near);
        Ok(Activity { waiting: backlog.waiting(), bytes_per_second, opening })
    }
}

impl NodeMemory {
    /// What Redis has appended since the last round.
    fn bytes_per_second(&mut self, file: &AppendOnlyFile) -> Option<f64> {
        let now = Instant::now();
        let (at, bytes) = self.last.replace((now, file.bytes))?;
        // A rewrite made it smaller.
        let appended = file.bytes.checked_sub(bytes)?;
        Some(appended as f64 / now.duration_since(at).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const QUIET: Activity =
        Activity { waiting: 0, bytes_per_second: Some(300.0), opening: NearestOpening::Far };

    fn file(base_bytes: u64, growth: u64) -> AppendOnlyFile {
        AppendOnlyFile { bytes: base_bytes + growth, base_bytes, ..AppendOnlyFile::default() }
    }

    /// Both parts of the decision, as a round takes them.
    fn decide(file: &AppendOnlyFile, activity: &Activity) -> Option<RewriteReason> {
        match growth(file, &RewriteBounds::default()) {
            Growth::Small => None,
            Growth::Excessive => Some(RewriteReason::Need),
            Growth::Worthwhile { is_large } => reason(is_large, activity),
        }
    }

    #[test]
    fn a_quiet_time_is_used_once_the_file_has_grown_enough_for_its_base() {
        for (base, growth, expected) in [
            (0, 63 * MIB, None),
            (0, 64 * MIB, Some(RewriteReason::Quiet)),
            (1_024 * MIB, 255 * MIB, None),
            (1_024 * MIB, 256 * MIB, Some(RewriteReason::Quiet)),
        ] {
            assert_eq!(decide(&file(base, growth), &QUIET), expected, "{base} + {growth}");
        }
    }

    #[test]
    fn while_there_is_a_backlog_much_is_written_or_a_coupon_opens_it_is_not_quiet() {
        let busy = [
            Activity { waiting: 1_001, ..QUIET },
            Activity { bytes_per_second: Some(65_537.0), ..QUIET },
            Activity { bytes_per_second: None, ..QUIET },
            Activity { opening: NearestOpening::Near, ..QUIET },
        ];
        for activity in busy {
            assert_eq!(decide(&file(0, 2_047 * MIB), &activity), None, "{activity:?}");
        }
        let moderate =
            Activity { waiting: 1_000, bytes_per_second: Some(65_536.0), opening: NearestOpening::Soon };
        assert_eq!(decide(&file(0, 64 * MIB), &moderate), Some(RewriteReason::Quiet));
    }

    #[test]
    fn ahead_of_an_opening_a_large_file_is_rewritten_although_it_is_not_quiet() {
        let soon = Activity { waiting: 5_000, opening: NearestOpening::Soon, ..QUIET };
        assert_eq!(decide(&file(0, 511 * MIB), &soon), None);
        assert_eq!(decide(&file(0, 512 * MIB), &soon), Some(RewriteReason::BeforeOpening));
    }

    #[test]
    fn a_rewrite_that_takes_long_begins_earlier() {
        let now = Timestamp::UNIX_EPOCH;
        let opening = |rewrite, in_seconds| {
            let (near, soon) = NearestOpening::ahead(rewrite);
            let first = Some(now + SignedDuration::from_secs(in_seconds)).filter(|first| *first < now + soon);
            NearestOpening::of(first, now, near)
        };
        for rewrite in [None, Some(Duration::from_secs(30))] {
            assert_eq!(opening(rewrite, 59), NearestOpening::Near);
            assert_eq!(opening(rewrite, 60), NearestOpening::Soon);
            assert_eq!(opening(rewrite, 600), NearestOpening::Far);
        }
        let long = Some(Duration::from_secs(300));
        assert_eq!(opening(long, 599), NearestOpening::Near);
        assert_eq!(opening(long, 600), NearestOpening::Soon);
        assert_eq!(opening(long, 1_200), NearestOpening::Far);
    }

    #[test]
    fn in_need_it_is_rewritten_at_any_time_but_not_twice_at_once() {
        let rush = Activity { waiting: 500_000, bytes_per_second: Some(1e7), opening: NearestOpening::Near };
        let large = file(1_024 * MIB, 2_048 * MIB);
        assert_eq!(decide(&large, &rush), Some(RewriteReason::Need));
        assert_eq!(decide(&file(8_192 * MIB, 4_095 * MIB), &rush), None, "a large base allows for more");
        assert_eq!(decide(&file(8_192 * MIB, 4_096 * MIB), &rush), Some(RewriteReason::Need));
        assert_eq!(decide(&AppendOnlyFile { is_rewriting: true, ..large }, &rush), None);
    }
}
