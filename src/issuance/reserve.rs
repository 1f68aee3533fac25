//! Takes units and queues issuances, atomically, many requests in one script.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::coupon_index::CouponIndex;
use super::pressure::{Pressure, TurnedAway};
use super::{InFlight, IssuanceId, KeyTag, outcome_metrics};
use crate::Failure;
use crate::http::Code;
use crate::ids::{CouponId, UserId};
use crate::redis::{LuaScript, Partition, Reply, keys};
use crate::runtime::batch::{Batcher, Bounds};
use crate::runtime::traces::TraceParent;

static RESERVE: LuaScript = LuaScript::promised(include_str!("reserve.lua"));

/// One script call holds Redis up for as long as its batch takes, about two milliseconds for the largest.
/// One call at a time: with two, a batch is a third smaller (17 requests instead of 26 at 64 connections, 66 instead of
/// 101 at 1,024), and with three a half. There each request costs API and Redis more; at 16 and at 256 connections rounds
/// differ by more than that.
const BOUNDS: Bounds = Bounds { batch: 256, calls: 1, waiting: 16_384, wait: Duration::from_millis(200) };

/// Digits of the length of an answer at most: it is a value of Redis's, of 512 MiB at most.
const LENGTH_DIGITS_MAX: usize = 9;

/// Ids in one answer at most. (`reserve.lua` has it too.)
pub const TOLD_MAX: usize = 20;

/// An `Idempotency-Key` is remembered until at least this many requests were accepted after its own.
/// (`reserve.lua` has it too.)
pub const KEYS_REMEMBERED: u64 = 250_000;

/// The letters of the script's answers. (`reserve.lua` has them too, with what follows each.)
mod letter {
    pub(super) const ACCEPTED: u8 = b'A';
    pub(super) const REPLAYED: u8 = b'R';
    pub(super) const REPLAY_ISSUED: u8 = b'K';
    pub(super) const REPLAY_REJECTED: u8 = b'J';
    pub(super) const KEY_REUSED: u8 = b'U';
    pub(super) const AT_LIMIT: u8 = b'H';
    pub(super) const SOLD_OUT: u8 = b'S';
    pub(super) const DRAINED: u8 = b'T';
    pub(super) const DRY: u8 = b'Y';
    pub(super) const NOT_STARTED: u8 = b'N';
    pub(super) const ENDED: u8 = b'E';
    pub(super) const PAUSED: u8 = b'P';
    pub(super) const ARCHIVED: u8 = b'X';
    pub(super) const NOT_LOADED: u8 = b'L';
    pub(super) const BACKLOG_FULL: u8 = b'B';
    pub(super) const DAMAGED: u8 = b'D';
}

/// How the API queues what one call accepts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum QueueEntries {
    /// Each issuance has a stream entry of its own.
    #[default]
    OfOne,
    /// One stream entry holds all of them. Workers of earlier versions cannot read it.
    OfMany,
}

/// A request for one unit. Its id is new, or made from its key.
#[derive(Debug, Clone)]
pub struct Request {
    pub id: IssuanceId,
    pub coupon: CouponId,
    pub user: UserId,
    /// The request's key, if it has one.
    pub key: Option<KeyTag>,
    /// The request's span, if it is sampled.
    pub trace: Option<Arc<TraceParent>>,
}

/// The script's answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reserved {
    /// A unit was taken and the issuance is queued.
    Accepted(QueuedIssuance),
    /// The same request is in flight already.
    Replayed(QueuedIssuance),
    /// The same key's request was issued.
    ReplayIssued(IssuanceId),
    /// The same key's request was rejected, and stays so.
    ReplayRejected(IssuanceId),
    /// The key is that of an accepted request of the same user for another coupon.
    KeyReused,
    /// The user has as many as the limit allows: these are the newest [`TOLD_MAX`] of them.
    AtLimit {
        issued: Vec<IssuanceId>,
        in_flight: Vec<IssuanceId>,
    },
    SoldOut,
    /// All shares of the coupon were empty a while ago: it is sold out, and the shares are to be looked at again soon.
    Drained,
    /// This share of the coupon has no unit left, and another may have one.
    Dry,
    NotStarted {
        now: Timestamp,
        starts_at: Timestamp,
    },
    Ended,
    Paused,
    Archived,
    /// Redis does not have the coupon: it must be loaded, is over, or does not exist.
    NotLoaded {
        now: Timestamp,
    },
    /// The bound of queued issuances is reached.
    BacklogFull,
    /// Cannot be answered: what Redis holds of this coupon, this user or this issuance is damaged. Says what.
    Damaged(String),
}

impl Reserved {
    /// The code that a client is refused with. `None` where it is not refused: a unit was taken now or before, or
    /// the coupon must be loaded, or a unit moved here, first.
    pub fn code(&self) -> Option<Code> {
        match self {
            Reserved::Accepted(_)
            | Reserved::Replayed(_)
            | Reserved::ReplayIssued(_)
            | Reserved::ReplayRejected(_)
            | Reserved::Dry
            | Reserved::NotLoaded { .. } => None,
            Reserved::KeyReused => Some(Code::KeyReused),
            Reserved::AtLimit { .. } => Some(Code::AlreadyIssued),
            Reserved::SoldOut | Reserved::Drained => Some(Code::SoldOut),
            Reserved::NotStarted { .. } => Some(Code::NotStarted),
            Reserved::Ended => Some(Code::Ended),
            Reserved::Paused => Some(Code::Paused),
            Reserved::Archived => Some(Code::Archived),
            Reserved::BacklogFull => Some(Code::Overloaded),
            Reserved::Damaged(_) => Some(Code::Unavailable),
        }
    }
}

/// An issuance that waits for its decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuedIssuance {
    pub id: IssuanceId,
    pub accepted_at: Timestamp,
    pub progress: QueueProgress,
}

/// How far the queue has come towards an issuance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueProgress {
    /// Redis's time of this reading.
    pub now: Timestamp,
    /// The number of issuances that were settled in this epoch.
    pub settled: u64,
    /// The number of issuances ahead of it: an estimate that never grows while no entry is set aside.
    pub ahead: u64,
}

impl QueueProgress {
    /// Counts as ahead: those accepted before `sequence`, less those settled or set aside.
    pub(super) fn new(now: Timestamp, sequence: u64, settled: u64, dead: u64) -> Self {
        let ahead = sequence.saturating_sub(1).saturating_sub(settled).saturating_sub(dead);
        QueueProgress { now, settled, ahead }
    }
}

/// Makes reservations in batches. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reservations {
    batcher: Batcher<Request, Reserved>,
    pressure: Arc<Pressure>,
}

impl Reservations {
    /// Starts the batcher. At most `backlog_max` issuances are queued and not settled.
    pub fn start(
        partition: Arc<Partition>,
        backlog_max: u64,
        queue_entries: QueueEntries,
        turned_away: TurnedAway,
    ) -> Self {
        let batcher = Batcher::start("reserve", BOUNDS, move |requests: Vec<Request>| {
            let partition = Arc::clone(&partition);
            async move {
                let started = Instant::now();
                let answered = reserve(&partition, &requests, backlog_max, queue_entries).await;
                outcome_metrics::reserved(started, requests.len(), &answered);
                Ok(requests.iter().zip(answered?).map(of_one).collect())
            }
        });
        Reservations { batcher, pressure: Arc::new(Pressure::new(turned_away)) }
    }

    /// Reserves one unit, or says why not.
    ///
    /// # Errors
    ///
    /// If Redis fails, is too slow or holds something damaged. That leaves open whether the unit was taken; the same
    /// request again finds out.
    pub async fn reserve(&self, request: Request) -> Result<Reserved, Failure> {
        let asked = Instant::now();
        let answer = self.batcher.ask(request).await;
        self.pressure.answered(&answer, asked.elapsed());
        answer
    }

    /// Whether a request would be refused now, because too many wait.
    pub fn refuses(&self) -> bool {
        self.batcher.refuses()
    }

    /// How long callers wait here.
    pub(crate) fn pressure(&self) -> &Arc<Pressure> {
        &self.pressure
    }
}

/// The answer to one request of a batch: damage is its own failure.
fn of_one((request, answer): (&Request, Reserved)) -> Result<Reserved, Failure> {
    match answer {
        Reserved::Damaged(what) => Err(Failure::Damaged {
            what: "the state of this request in Redis",
            why: format!("coupon {}, issuance {}: {what} is damaged", request.coupon, request.id),
        }),
        answer => Ok(answer),
    }
}

/// Makes one batch of reservations: one call of `reserve.lua`. It serves coupons in the order in which they first
/// appear, and the requests for each in their order.
///
/// # Errors
///
/// If Redis fails, or its data is not certified.
pub async fn reserve(
    partition: &Partition,
    requests: &[Request],
    backlog_max: u64,
    queue_entries: QueueEntries,
) -> Result<Vec<Reserved>, Failure> {
    let (coupons, groups) = CouponIndex::grouped(requests.iter().map(|request| &request.coupon));
    let mut reply = partition
        .call(&RESERVE, "reserve", |epoch, call| {
            coupons.add_queue_and_coupons(epoch, call);
            for key in epoch.used_keys() {
                call.key(key);
            }
            call.key(keys::trace_parents(partition.id()));
            call.arg(backlog_max).arg(u8::from(queue_entries == QueueEntries::OfMany));
            for group in &groups {
                call.arg(group.len());
                for request in group.iter().map(|place| &requests[*place]) {
                    call.arg(request.user.as_str());
                    let id = request.id.as_bytes().as_slice();
                    match (&request.key, &request.trace) {
                        (Some(key), None) => call.arg([id, key.as_bytes()].concat()),
                        (None, None) => call.arg(id),
                        (key, Some(trace)) => {
                            let key = key.as_ref().map_or(&[][..], |key| key.as_bytes());
                            call.arg([id, key, trace.as_bytes()].concat())
                        }
                    };
                }
            }
        })
        .await?;
    let now = time(&mut reply)?;
    let (sequence, settled, dead) = (reply.number()?, reply.number()?, reply.number()?);
    let letters = reply.bytes()?;
    let mut read = ReplyReader { now, sequence, settled, dead, rest: &letters };
    let mut answers = Vec::with_capacity(requests.len());
    for place in groups.into_iter().flatten() {
        let answer = read.next(requests[place].id).ok_or_else(|| reply.wrong())?;
        answers.push((place, answer));
    }
    answers.sort_unstable_by_key(|(place, _)| *place);
    Ok(answers.into_iter().map(|(_, answer)| answer).collect())
}

/// Reads the answers of one batch, one after another.
struct ReplyReader<'a> {
    now: Timestamp,
    /// The sequence number given last.
    sequence: u64,
    settled: u64,
    dead: u64,
    rest: &'a [u8],
}

impl<'a> ReplyReader<'a> {
    /// Reads the next answer, to the request with this id; `None` if it has another shape than the
    /// script's contract says.
    fn next(&mut self, id: IssuanceId) -> Option<Reserved> {
        let now = self.now;
        let (letter, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(match *letter {
            letter::ACCEPTED => {
                self.sequence += 1;
                Reserved::Accepted(QueuedIssuance {
                    id,
                    accepted_at: now,
                    progress: self.progress(self.sequence),
                })
            }
            letter::REPLAYED => {
                let replay = self.more()?;
                self.replay(replay)
                    .unwrap_or_else(|| Reserved::Damaged("the in-flight value of the issuance".to_owned()))
            }
            letter::REPLAY_ISSUED => Reserved::ReplayIssued(IssuanceId::from_bytes(self.more()?)?),
            letter::REPLAY_REJECTED => Reserved::ReplayRejected(IssuanceId::from_bytes(self.more()?)?),
            letter::AT_LIMIT => at_limit(self.more()?).unwrap_or_else(|| {
                Reserved::Damaged("what the user holds of the coupon in Redis".to_owned())
            }),
            letter::KEY_REUSED => Reserved::KeyReused,
            letter::SOLD_OUT => Reserved::SoldOut,
            letter::DRAINED => Reserved::Drained,
            letter::DRY => Reserved::Dry,
            letter::NOT_STARTED => match starts_at(self.more()?) {
                Some(starts_at) => Reserved::NotStarted { now, starts_at },
                None => Reserved::Damaged("the field starts_at of the coupon in Redis".to_owned()),
            },
            letter::ENDED => Reserved::Ended,
            letter::PAUSED => Reserved::Paused,
            letter::ARCHIVED => Reserved::Archived,
            letter::NOT_LOADED => Reserved::NotLoaded { now },
            letter::BACKLOG_FULL => Reserved::BacklogFull,
            letter::DAMAGED => Reserved::Damaged(String::from_utf8_lossy(self.more()?).into_owned()),
            _ => return None,
        })
    }

    /// A replay: the id, and its in-flight value. `None` if that cannot be read.
    fn replay(&self, replay: &[u8]) -> Option<Reserved> {
        let (id, value) = replay.split_at_checked(16)?;
        let held = InFlight::parse(value)?;
        let progress = self.progress(held.sequence);
        Some(Reserved::Replayed(QueuedIssuance {
            id: IssuanceId::from_bytes(id)?,
            accepted_at: held.accepted_at,
            progress,
        }))
    }

    /// What follows a letter: its length, a colon, and that many bytes.
    fn more(&mut self) -> Option<&'a [u8]> {
        let colon = self.rest.iter().take(LENGTH_DIGITS_MAX + 1).position(|byte| *byte == b':')?;
        let length = std::str::from_utf8(&self.rest[..colon]).ok()?.parse().ok()?;
        let (more, rest) = self.rest[colon + 1..].split_at_checked(length)?;
        self.rest = rest;
        Some(more)
    }

    fn progress(&self, sequence: u64) -> QueueProgress {
        QueueProgress::new(self.now, sequence, self.settled, self.dead)
    }
}

/// Ids held, and in flight. `None` if one is no issuance's.
fn at_limit(told: &[u8]) -> Option<Reserved> {
    let (issued, ids) = told.split_first()?;
    let ids = ids.chunks(16).map(IssuanceId::from_bytes).collect::<Option<Vec<_>>>()?;
    let (issued, in_flight) = ids.split_at_checked(usize::from(*issued))?;
    Some(Reserved::AtLimit { issued: issued.to_vec(), in_flight: in_flight.to_vec() })
}

fn starts_at(text: &[u8]) -> Option<Timestamp> {
    let ms = std::str::from_utf8(text).ok()?.parse().ok()?;
    Timestamp::from_millisecond(ms).ok()
}

pub(super) fn time(reply: &mut Reply) -> Result<Timestamp, Failure> {
    let ms = i64::try_from(reply.number()?).ok();
    ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()).ok_or_else(|| reply.wrong())
}
