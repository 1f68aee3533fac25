//! Requests at random moments (Poisson), each timed from the moment it was planned for. Each user asks once, and does not
//! try again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;

use super::env::user;
use super::program::ChildProgram;
use crate::ids::CouponId;
use crate::rush::arrivals::ArrivalShape;
use crate::rush::live::LatencyHistogram;
use crate::rush::open_loop::{LoadBounds, Workload};
use crate::rush::report::Percentiles;
use crate::rush::{ExchangeError, LoadTarget, RawResponse, open_loop};

/// The time that it takes to connect and read the coupon once. Together they must take less time
/// than a connection may idle ([`crate::rush`] makes those anew).
const CONNECTING: Duration = Duration::from_micros(250);
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// The same arrivals in every run.
const SEED: u64 = 1;

const ACCEPTED: u16 = 202;
const REFUSED: u16 = 503;

/// What came of the requests.
pub(super) struct PacedAnswers {
    pub accepted: u32,
    /// Turned away with 503.
    pub refused: u32,
    /// How often anything else came of one.
    pub otherwise: BTreeMap<String, u32>,
    /// To the 202, and to the 503; `None` if there was none.
    pub accept: Option<Percentiles>,
    pub refuse: Option<Percentiles>,
    /// To the moment of sending: what the generator itself adds.
    pub send: Option<Percentiles>,
    /// From the first planned moment to the last answer.
    pub took: Duration,
}

/// Users who each ask once.
struct PacedWorkload {
    target: Arc<LoadTarget>,
    coupon: CouponId,
    accepted: AtomicU32,
    refused: AtomicU32,
    accept: LatencyHistogram,
    refuse: LatencyHistogram,
    send: LatencyHistogram,
    otherwise: Mutex<BTreeMap<String, u32>>,
}

impl Workload for PacedWorkload {
    fn write_first(&self, request: &mut Vec<u8>) {
        self.target.write("GET", &format!("/coupons/{}", self.coupon), "", b"", request);
    }

    fn write(&self, number: usize, request: &mut Vec<u8>) {
        let user = user(u32::try_from(number).unwrap_or(u32::MAX));
        let body = format!(r#"{{"userId":"{user}","couponId":"{}"}}"#, self.coupon);
        self.target.write("POST", "/user-coupons", "", body.as_bytes(), request);
    }

    fn answered(
        &self,
        _: usize,
        planned: Instant,
        sent: Instant,
        answer: Result<RawResponse<'_>, ExchangeError>,
    ) {
        self.send.record(sent - planned);
        let (count, latency) = match answer {
            Ok(answer) if answer.status == ACCEPTED => (&self.accepted, &self.accept),
            Ok(answer) if answer.status == REFUSED => (&self.refused, &self.refuse),
            other => {
                let what = match other {
                    Ok(answer) => answer.status.to_string(),
                    Err(fault) => fault.as_str().to_owned(),
                };
                let mut otherwise = self.otherwise.lock();
                *otherwise.entry(what).or_default() += 1;
                return;
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        latency.record(planned.elapsed());
    }

    fn dropped(&self, _: usize) {}
}

/// Sends a request for each of the users 0 to `requests`, at random moments within a time, over this many connections,
/// each of which has read the coupon before.
pub(super) async fn send(
    api: &ChildProgram,
    coupon: &CouponId,
    requests: u32,
    within: Duration,
    connections: usize,
) -> anyhow::Result<PacedAnswers> {
    let mut random = StdRng::seed_from_u64(SEED);
    let schedule = ArrivalShape::Poisson.schedule(requests as usize, within, &mut random);
    let target = Arc::new(LoadTarget::new(&api.url()).map_err(anyhow::Error::msg)?);
    let askers = Arc::new(PacedWorkload {
        target: Arc::clone(&target),
        coupon: coupon.clone(),
        accepted: AtomicU32::new(0),
        refused: AtomicU32::new(0),
        accept: LatencyHistogram::default(),
        refuse: LatencyHistogram::default(),
        send: LatencyHistogram::default(),
        otherwise: Mutex::default(),
    });
    let bounds = LoadBounds { connections, in_flight_max: usize::MAX, answer_max: ANSWER_MAX };
    // By then every connection is open, and has read the coupon.
    let began = Instant::now() + CONNECTING * u32::try_from(connections)?;
    open_loop::run(&target, schedule.into(), began, bounds, Arc::clone(&askers), CancellationToken::new())
        .await;
    let [accepted, refused] = [&askers.accepted, &askers.refused].map(|count| count.load(Ordering::Relaxed));
    let [accept, refuse, send] = [&askers.accept, &askers.refuse, &askers.send].map(Percentiles::of);
    let otherwise = askers.otherwise.lock().clone();
    Ok(PacedAnswers { accepted, refused, otherwise, accept, refuse, send, took: began.elapsed() })
}
