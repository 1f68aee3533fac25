//! Alive, and ready: for load balancers and orchestrators. Neither tells an address or an error's text.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use mongodb::Database;
use mongodb::bson::doc;
use serde::Serialize;
use utoipa::ToSchema;

use super::metrics::{self, Sizes, Watch};
use super::problem::jittered_ms;
use super::{Code, Problem};
use crate::coupon::CouponStore;
use crate::partition::Partition;
use crate::recovery::Writable;
use crate::{mongo, recovery};

/// A part that does not answer within this is not ready.
const PROBE_MAX: Duration = Duration::from_secs(2);

/// Whether each part of the service can do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    pub ready: bool,
    pub redis: Part,
    pub mongodb: Part,
}

/// The state of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    Ok,
    /// It answers, and its data is being recovered.
    WarmingUp,
    /// It answers, and refuses every write that a request needs: it follows another Redis, its disk or its
    /// memory is full, or it lacks replicas.
    RefusesWrites,
    Unavailable,
}

impl Readiness {
    /// Asks both parts, at the same time; Redis as a request does.
    pub async fn probe(partition: &Partition, database: &Database) -> Self {
        let database = database.clone();
        let ping = mongo::run("answer a ping", async move { database.run_command(doc! {"ping": 1}).await });
        let (redis, mongodb) = tokio::join!(
            tokio::time::timeout(PROBE_MAX, recovery::writable(partition)),
            tokio::time::timeout(PROBE_MAX, ping),
        );
        let redis = match redis {
            Ok(Ok(Writable::Yes)) => Part::Ok,
            Ok(Ok(Writable::Uncertified)) => Part::WarmingUp,
            Ok(Ok(Writable::Refused)) => Part::RefusesWrites,
            _ => Part::Unavailable,
        };
        let mongodb = if let Ok(Ok(_)) = mongodb { Part::Ok } else { Part::Unavailable };
        Readiness { ready: redis == Part::Ok && mongodb == Part::Ok, redis, mongodb }
    }
}

impl IntoResponse for Readiness {
    fn into_response(self) -> Response {
        if self.ready {
            return Json(self).into_response();
        }
        let warming_up = self.redis == Part::WarmingUp && self.mongodb == Part::Ok;
        let code = if warming_up { Code::WarmingUp } else { Code::Unavailable };
        Problem::new(code)
            .with("redis", self.redis.as_str())
            .with("mongodb", self.mongodb.as_str())
            .retry_after_ms(jittered_ms(1_000))
            .into_response()
    }
}

impl Part {
    fn as_str(self) -> &'static str {
        match self {
            Part::Ok => "ok",
            Part::WarmingUp => "warming-up",
            Part::RefusesWrites => "refuses-writes",
            Part::Unavailable => "unavailable",
        }
    }
}

/// The routes of a process that serves nothing else.
pub fn router(partition: Arc<Partition>, database: Database) -> axum::Router {
    let watch = Watch::start(Arc::clone(&partition), CouponStore::new(&database), Sizes::default());
    let probe = move || {
        let (partition, database) = (Arc::clone(&partition), database.clone());
        async move { Readiness::probe(&partition, &database).await }
    };
    axum::Router::new()
        .route("/healthz", axum::routing::get(async || "ok"))
        .route("/readyz", axum::routing::get(probe))
        .route("/metrics", metrics::route(&watch))
        .layer(super::request::CompleteLayer::default())
}
