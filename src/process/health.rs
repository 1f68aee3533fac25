//! Liveness and readiness, for load balancers and orchestrators. Neither reveals an address or an error's text.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::mongo::Database;
use axum::Json;
use axum::response::{IntoResponse, Response};
use futures::future::join_all;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::gauges::{GaugeReader, ProcessSizes};
use super::metrics_route;
use crate::coupon::CouponStore;
use crate::http::problem::jittered_ms;
use crate::http::request::{CompleteLayer, RefuseLayer};
use crate::http::{Code, Problem};
use crate::ids::PartitionId;
use crate::recovery::Writable;
use crate::redis::{Partition, Partitions};
use crate::{mongo, recovery};

/// A part that does not answer within this is not ready.
const PROBE_MAX: Duration = Duration::from_secs(2);
/// How long an answer is shared.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// Whether a process can do its work, and which part does not do its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Readiness {
    /// Whether requests can be served.
    pub ready: bool,
    /// The parts without which it goes on, for now: some requests are refused, or wait. A partition that does not serve is
    /// named by its number.
    #[schema(example = json!(["mongodb"]))]
    pub degraded: Vec<String>,
    pub redis: PartState,
    pub mongodb: PartState,
    /// The process was asked to stop.
    #[serde(skip)]
    stopping: bool,
}

/// The state of one part. Those that can do more come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Part)]
pub(crate) enum PartState {
    Ok,
    /// It answers, and its data is being recovered.
    WarmingUp,
    /// It answers, and refuses every write that a request needs: it is a replica, its disk or its memory is full, or
    /// it lacks replicas.
    RefusesWrites,
    Unavailable,
}

/// Probes Redis and MongoDB for all readiness requests of a process: at most once a second, and once at a time.
pub(crate) struct Probe {
    partitions: Partitions,
    database: Database,
    /// The last answer.
    last: Arc<Mutex<Option<CachedProbe>>>,
}

/// When Redis and MongoDB answered, and what.
type CachedProbe = (Instant, ProbedStates);

/// What Redis and MongoDB answered.
#[derive(Clone)]
struct ProbedStates {
    /// The best state of a partition: as long as one serves, its coupons can be requested.
    redis: PartState,
    mongodb: PartState,
    /// The partitions that do not serve, if there are several.
    away: Arc<[PartitionId]>,
}

impl Probe {
    /// A probe that has not asked yet.
    pub fn new(partitions: Partitions, database: Database) -> Self {
        Probe { partitions, database, last: Arc::default() }
    }

    /// Whether the process can do its work, by answers that are a second old at most. Without Redis nothing can be
    /// done; `needs_mongodb` says whether nothing can be done without MongoDB either, and `stopping` whether the
    /// process was asked to stop.
    pub(crate) async fn readiness(&self, needs_mongodb: bool, stopping: &CancellationToken) -> Readiness {
        let mut last = Arc::clone(&self.last).lock_owned().await;
        let states = match &*last {
            Some((at, states)) if at.elapsed() < SHARED_FOR => states.clone(),
            _ => {
                let (partitions, database) = (self.partitions.clone(), self.database.clone());
                // In a task of its own: the next one to ask waits for it, though this one goes away.
                let asking = tokio::spawn(async move {
                    let states = ask(&partitions, database).await;
                    *last = Some((Instant::now(), states.clone()));
                    states
                });
                asking.await.unwrap_or(ProbedStates {
                    redis: PartState::Unavailable,
                    mongodb: PartState::Unavailable,
                    away: [].into(),
                })
            }
        };
        Readiness::of(states, needs_mongodb, stopping.is_cancelled())
    }
}

/// Asks Redis and MongoDB at the same time; Redis as a request does.
async fn ask(partitions: &Partitions, database: Database) -> ProbedStates {
    let ping = mongo::command(&database, "answer a ping", "ping");
    let (redis, mongodb) = tokio::join!(
        join_all(partitions.iter().map(|partition| ask_one(partition))),
        tokio::time::timeout(PROBE_MAX, ping),
    );
    let away = partitions.iter().zip(&redis).filter(|(_, state)| **state != PartState::Ok);
    ProbedStates {
        redis: redis.iter().copied().min().unwrap_or(PartState::Unavailable),
        mongodb: if let Ok(Ok(_)) = mongodb { PartState::Ok } else { PartState::Unavailable },
        away: away.filter(|_| !partitions.is_one()).map(|(partition, _)| partition.id()).collect(),
    }
}

async fn ask_one(partition: &Partition) -> PartState {
    match tokio::time::timeout(PROBE_MAX, recovery::writable(partition)).await {
        Ok(Ok(Writable::Yes)) => PartState::Ok,
        Ok(Ok(Writable::Uncertified)) => PartState::WarmingUp,
        Ok(Ok(Writable::Refused)) => PartState::RefusesWrites,
        _ => PartState::Unavailable,
    }
}

impl Readiness {
    fn of(states: ProbedStates, needs_mongodb: bool, stopping: bool) -> Self {
        let ProbedStates { redis, mongodb, away } = states;
        let parts = [("redis", redis), ("mongodb", mongodb)].into_iter();
        let parts = parts.filter(|(_, part)| *part != PartState::Ok).map(|(name, _)| name.to_owned());
        let degraded = parts.chain(away.iter().map(|id| format!("partition {id}"))).collect();
        let ready = redis == PartState::Ok && (mongodb == PartState::Ok || !needs_mongodb) && !stopping;
        Readiness { ready, degraded, redis, mongodb, stopping }
    }
}

impl IntoResponse for Readiness {
    fn into_response(self) -> Response {
        if self.ready {
            return Json(self).into_response();
        }
        let problem = match self.redis {
            _ if self.stopping => {
                Problem::new(Code::Unavailable).with_detail("This process is about to stop.")
            }
            PartState::WarmingUp => Problem::new(Code::WarmingUp),
            _ => Problem::new(Code::Unavailable),
        };
        problem
            .with("degraded", self.degraded)
            .with("redis", self.redis.as_str())
            .with("mongodb", self.mongodb.as_str())
            .with("stopping", self.stopping)
            .retry_after_ms(jittered_ms(1_000))
            .into_response()
    }
}

impl PartState {
    fn as_str(self) -> &'static str {
        match self {
            PartState::Ok => "ok",
            PartState::WarmingUp => "warmingUp",
            PartState::RefusesWrites => "refusesWrites",
            PartState::Unavailable => "unavailable",
        }
    }
}

/// The routes of a process that serves nothing else, and needs both parts for what it does. It is not ready
/// once it was asked to stop.
pub fn router(partitions: Partitions, database: Database, stopping: CancellationToken) -> axum::Router {
    let watch = GaugeReader::start(partitions.clone(), CouponStore::new(&database), ProcessSizes::default());
    let probe = Arc::new(Probe::new(partitions, database));
    let ready = move || {
        let (probe, stopping) = (Arc::clone(&probe), stopping.clone());
        async move { probe.readiness(true, &stopping).await }
    };
    axum::Router::new()
        .route("/livez", axum::routing::get(async || "ok"))
        .route("/healthz", axum::routing::get(async || "ok"))
        .route("/readyz", axum::routing::get(ready))
        .route("/metrics", metrics_route::route(&watch))
        .layer((CompleteLayer::default(), RefuseLayer::default()))
}
