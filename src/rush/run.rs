//! A rush from beginning to end: set up, send, follow, drain.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::api::ServiceClient;
use super::arrivals::ArrivalShape;
use super::follow::{self, PollProgress};
use super::open_loop::{self, LoadBounds, Workload};
use super::plan::{LoadProfile, RequestPlan};
use super::sample::{TimelineSample, TimelineSampler};
use super::setup::{self, CouponOffer};
use super::target::LoadTarget;
use super::virtual_users::{FollowMode, LastKnown, RetryPolicy, RunSetup, VirtualUsers};
use super::{ExchangeError, RawResponse};
use crate::failure::SetUpError;

/// Connections for what follows a request, for each connection for requests.
const FOLLOWING_SHARE: usize = 2;
/// Polls after the run are not measured, and may take their time. They must not overload the service, which refuses
/// more than a thousand operations of its database at once.
const ASK_MAX: Duration = Duration::from_secs(30);
const ASK_CONNECTIONS_MAX: usize = 256;
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The settings of a run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunSettings {
    pub url: String,
    /// The API key that is sent with every request. In no report.
    #[serde(skip)]
    pub token: Option<String>,
    pub arrivals: ArrivalShape,
    /// Regular requests, without second clicks and early birds.
    pub requests: usize,
    pub users: usize,
    pub duration_ms: u64,
    /// Existing users are named by this and a number from 0; `None` registers new ones.
    pub user_prefix: Option<String>,
    /// An existing coupon; `None` makes one.
    pub coupon: Option<String>,
    /// Units of the coupon that is made.
    pub total: u64,
    /// Its shares; `None` leaves that to the service.
    pub shares: Option<u32>,
    pub double_clicks: f64,
    pub early_birds: f64,
    pub retry: RetryPolicy,
    pub follow: FollowMode,
    pub seed: u64,
    pub connections: usize,
    pub in_flight_max: usize,
    pub answer_max_ms: u64,
    pub drain_max_ms: u64,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunPhase {
    SettingUp,
    Sending,
    Draining,
    Judging,
}

/// What was measured.
pub struct RunResult {
    pub offer: CouponOffer,
    pub people: Arc<VirtualUsers>,
    pub started_at: Timestamp,
    pub samples: Vec<TimelineSample>,
    /// From the start to the last answer to a request.
    pub sending: Duration,
    /// From the last acceptance to the moment when nothing of the coupon was reserved any more;
    /// `None` if that was not seen.
    pub drain: Option<Duration>,
    /// It was ended by a signal.
    pub ended_early: bool,
    /// Of this process, from the start to the end of the drain.
    pub cpu: Duration,
}

/// Called as the run goes on: with the users, once they exist, and the latest sample.
pub type PhaseCallback<'a> =
    &'a (dyn Fn(RunPhase, Option<(&Arc<VirtualUsers>, Option<TimelineSample>)>) + Sync);

/// Runs a rush. Cancelling `stop` ends the sending early; what was accepted is followed all the same.
///
/// # Errors
///
/// If the service cannot be reached or set up for the run; the message says what to do.
pub async fn run(
    settings: &RunSettings,
    stop: &CancellationToken,
    tell: PhaseCallback<'_>,
) -> anyhow::Result<RunResult> {
    let set_up = |why: String| SetUpError(vec![why]);
    let target =
        Arc::new(LoadTarget::new(&settings.url).map_err(set_up)?.with_token(settings.token.as_deref()));
    tell(RunPhase::SettingUp, None);
    let mut api = ServiceClient::new(Arc::clone(&target));
    let name = format!("rush-{}", crate::ids::random_id());
    let users = match &settings.user_prefix {
        Some(prefix) => (0..settings.users).map(|number| format!("{prefix}{number}")).collect(),
        None => setup::register(&mut api, settings.users).await.map_err(set_up)?,
    };
    let plan = RequestPlan::new(&LoadProfile {
        shape: settings.arrivals,
        arrivals: settings.requests,
        duration: Duration::from_millis(settings.duration_ms),
        users: settings.users,
        double_clicks: settings.double_clicks,
        early_birds: settings.early_birds,
        seed: settings.seed,
    });
    let has_early_birds = settings.early_birds > 0.0;
    let offer = match &settings.coupon {
        Some(coupon) => setup::take(&mut api, coupon, has_early_birds).await,
        None => setup::make(&mut api, &name, settings.total, settings.shares, has_early_birds).await,
    };
    let offer = offer.map_err(set_up)?;

    let (later, lanes) = follow::lanes(settings.connections.div_ceil(FOLLOWING_SHARE));
    let moments: Arc<[Duration]> = plan.moments.clone().into();
    let cast = RunSetup {
        target: Arc::clone(&target),
        plan,
        start: offer.start,
        users,
        coupon: offer.id.clone(),
        key: name,
        retry: settings.retry,
        follow: settings.follow,
    };
    let people = Arc::new(VirtualUsers::new(cast, later));
    let over = CancellationToken::new();
    let bounds = settings.bounds();
    let following = lanes.start(&people, bounds.answer_max, &over);
    let sampler = TimelineSampler::start(Arc::clone(&people), over.clone());
    let cpu_before = cpu_time();
    let until_start = offer.start.saturating_duration_since(Instant::now());
    let started_at = Timestamp::now() + until_start;

    let sending = open_loop::run(&target, moments, offer.start, bounds, Arc::clone(&people), stop.clone());
    tokio::pin!(sending);
    loop {
        tell(RunPhase::Sending, Some((&people, *sampler.latest.borrow())));
        if tokio::time::timeout(TELL_EVERY, &mut sending).await.is_ok() {
            break;
        }
    }
    let (sent_at, ended_early) = (Instant::now(), stop.is_cancelled());
    let deadline = sent_at + Duration::from_millis(settings.drain_max_ms);
    while Instant::now() < deadline {
        tell(RunPhase::Draining, Some((&people, *sampler.latest.borrow())));
        let latest = *sampler.latest.borrow();
        if following.pending() == 0 && latest.is_some_and(|sample| is_drained(&people, &sample)) {
            break;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let cpu = cpu_time().saturating_sub(cpu_before);
    over.cancel();
    following.ended().await;
    let samples = sampler.ended().await;
    let drain = drained(&people, &samples);
    tell(RunPhase::Judging, Some((&people, samples.last().copied())));
    ask_the_undecided(settings, &people).await;
    let sending = sent_at.saturating_duration_since(offer.start);
    Ok(RunResult { offer, people, started_at, samples, sending, drain, ended_early, cpu })
}

const TELL_EVERY: Duration = Duration::from_millis(200);

impl RunSettings {
    /// How much the generator takes on.
    fn bounds(&self) -> LoadBounds {
        LoadBounds {
            connections: self.connections,
            in_flight_max: self.in_flight_max,
            answer_max: Duration::from_millis(self.answer_max_ms),
        }
    }
}

/// Whether nothing of the coupon was reserved any more when this was seen.
fn is_drained(people: &VirtualUsers, sample: &TimelineSample) -> bool {
    let seen_at = Duration::from_millis(sample.at_ms);
    let follows = people.live.last_accept.get().is_none_or(|accepted| accepted < seen_at);
    follows && sample.stock.is_some_and(|stock| stock.reserved == 0)
}

/// How long the drain took.
fn drained(people: &VirtualUsers, samples: &[TimelineSample]) -> Option<Duration> {
    let last_accept = people.live.last_accept.get()?;
    let first = samples.iter().rev().take_while(|sample| is_drained(people, sample)).last()?;
    Some(Duration::from_millis(first.at_ms) - last_accept)
}

/// Asks once more for every outcome that a user was not told.
async fn ask_the_undecided(settings: &RunSettings, people: &Arc<VirtualUsers>) {
    let users: Vec<u32> = (0..people.count() as u32)
        .filter(|user| people.person(*user).last_known == LastKnown::Accepted)
        .collect();
    ask(settings, Arc::new(FinalPolls { people: Arc::clone(people), users })).await;
}

/// Sends the requests of a crowd as fast as they are answered.
pub(super) async fn ask<C: Workload + OneShotWorkload>(settings: &RunSettings, crowd: Arc<C>) {
    let schedule: Arc<[Duration]> = vec![Duration::ZERO; crowd.count()].into();
    let connections = settings.connections.min(ASK_CONNECTIONS_MAX);
    let bounds = LoadBounds { connections, in_flight_max: usize::MAX, answer_max: ASK_MAX };
    let target = Arc::clone(&crowd.people().target);
    open_loop::run(&target, schedule, Instant::now(), bounds, crowd, CancellationToken::new()).await;
}

/// A crowd that asks each of some users' questions once.
pub(super) trait OneShotWorkload {
    fn people(&self) -> &VirtualUsers;
    fn count(&self) -> usize;
}

struct FinalPolls {
    people: Arc<VirtualUsers>,
    users: Vec<u32>,
}

impl OneShotWorkload for FinalPolls {
    fn people(&self) -> &VirtualUsers {
        &self.people
    }

    fn count(&self) -> usize {
        self.users.len()
    }
}

impl Workload for FinalPolls {
    fn write(&self, number: usize, request: &mut Vec<u8>) {
        if let Some(id) = self.people.person(self.users[number]).id {
            self.people.target.write("GET", &format!("/issuances/{id}"), "", b"", request);
        }
    }

    fn answered(
        &self,
        number: usize,
        _: Instant,
        _: Instant,
        answer: Result<RawResponse<'_>, ExchangeError>,
    ) {
        match follow::asked(&self.people, self.users[number], answer) {
            // Decided now, or stuck: which, the user's state says.
            PollProgress::Over | PollProgress::Again(_) => {}
        }
    }

    fn dropped(&self, _: usize) {}
}

/// The processor time that this process has used.
pub(crate) fn cpu_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(used.tv_sec).unwrap_or(0), u32::try_from(used.tv_nsec).unwrap_or(0))
}
