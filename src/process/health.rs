//! Liveness and readiness, for load balancers and orchestrators. Neither reveals an address or an error's text.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::mongo::Database;
use axum::Json;
use axum::response::{IntoResponse, Response};
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
use crate::recovery::Writable;
use crate::redis::Partition;
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
    /// The parts without which it goes on, for now: some requests are refused, or wait.
    #[schema(example = json!(["mongodb"]))]
    pub degraded: Vec<&'static str>,
    pub redis: PartState,
    pub mongodb: PartState,
    /// The process was asked to stop.
    #[serde(skip)]
    stopping: bool,
}

/// The state of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
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
    partition: Arc<Partition>,
    database: Database,
    /// The last answer.
    last: Arc<Mutex<Option<CachedProbe>>>,
}

/// When Redis and MongoDB answered, and what.
type CachedProbe = (Instant, [PartState; 2]);

impl Probe {
    /// A probe that has not asked yet.
    pub fn new(partition: Arc<Partition>, database: Database) -> Self {
        Probe { partition, database, last: Arc::default() }
    }

    /// Whether the process can do its work, by answers that are a second old at most. Without Redis nothing can be
    /// done; `needs_mongodb` says whether nothing can be done without MongoDB either, and `stopping` whether the
    /// process was asked to stop.
    pub(crate) async fn readiness(&self, needs_mongodb: bool, stopping: &CancellationToken) -> Readiness {
        let mut last = Arc::clone(&self.last).lock_owned().await;
        let parts = match *last {
            Some((at, parts)) if at.elapsed() < SHARED_FOR => parts,
            _ => {
                let (partition, database) = (Arc::clone(&self.partition), self.database.clone());
                // In a task of its own: the next one to ask waits for it, though this one goes away.
                let asking = tokio::spawn(async move {
                    let parts = ask(&partition, database).await;
                    *last = Some((Instant::now(), parts));
                    parts
                });
                asking.await.unwrap_or([PartState::Unavailable; 2])
            }
        };
        Readiness::of(parts, needs_mongodb, stopping.is_cancelled())
    }
}

/// Asks Redis and MongoDB at the same time; Redis as a request does.
async fn ask(partition: &Partition, database: Database) -> [PartState; 2] {
    let ping = mongo::command(&database, "answer a ping", "ping");
    let (redis, mongodb) = tokio::join!(
        tokio::time::timeout(PROBE_MAX, recovery::writable(partition)),
        tokio::time::timeout(PROBE_MAX, ping),
    );
    let redis = match redis {
        Ok(Ok(Writable::Yes)) => PartState::Ok,
        Ok(Ok(Writable::Uncertified)) => PartState::WarmingUp,
        Ok(Ok(Writable::Refused)) => PartState::RefusesWrites,
        _ => PartState::Unavailable,
    };
    [redis, if let Ok(Ok(_)) = mongodb { PartState::Ok } else { PartState::Unavailable }]
}

impl Readiness {
    fn of([redis, mongodb]: [PartState; 2], needs_mongodb: bool, stopping: bool) -> Self {
        let parts = [("redis", redis), ("mongodb", mongodb)];
        let degraded =
            parts.into_iter().filter(|(_, part)| *part != PartState::Ok).map(|(name, _)| name).collect();
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
pub fn router(partition: Arc<Partition>, database: Database, stopping: CancellationToken) -> axum::Router {
    let watch =
        GaugeReader::start(Arc::clone(&partition), CouponStore::new(&database), ProcessSizes::default());
    let probe = Arc::new(Probe::new(partition, database));
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
