//! The API: routes, handlers, wire types, documentation and the try-it page.

mod coupons;
mod docs;
mod documented;
mod exports;
mod issuance_events;
mod issuances;
mod links;
mod live;
mod operations;
mod outcomes;
mod pace;
mod pages;
mod problems;
pub mod query;
mod router;
mod service;
mod steering;
mod user_coupons;
mod users;
mod wait;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use mongodb::Database;
use quick_cache::sync::Cache;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::audit::{self, Auditor};
use crate::boot::{self, Backends};
use crate::config::ApiConfig;
use crate::coupon::{CouponId, CouponStore, Validity, steer};
use crate::http::metrics::{CacheSize, Watch};
use crate::http::server;
use crate::issuance::{Feed, Ledger, Lookup, Reservations};
use crate::partition::Partition;
use crate::recovery::{self, Loader};
use crate::service::ServiceStore;
use crate::user::{RegisteredUsers, UserStore};
pub use docs::openapi;
use links::Links;
use pace::Pace;
pub use router::router;

/// Coupons whose validity is remembered.
const VALIDITIES_CACHED: usize = 10_000;

/// What the handlers work with.
pub struct App {
    partition: Arc<Partition>,
    database: Database,
    coupons: CouponStore,
    users: UserStore,
    services: ServiceStore,
    ledger: Ledger,
    reservations: Reservations,
    lookup: Lookup,
    feed: Feed,
    /// `None` trusts the caller's ids.
    registered: Option<RegisteredUsers>,
    /// Places for those who listen to the live figures.
    listeners: Arc<Semaphore>,
    /// Places for those who export, and who follow the outcomes.
    exports: Arc<Semaphore>,
    followers: Arc<Semaphore>,
    /// Cancelled when the process is asked to stop.
    stopping: CancellationToken,
    loader: Loader,
    /// A coupon's validity never changes.
    validities: Cache<CouponId, Validity>,
    links: Links,
    pace: Pace,
    /// `None` audits nothing.
    audit_every: Option<Duration>,
    metrics: Arc<Watch>,
}

impl App {
    /// Starts what the handlers work with. With `stopping`, every request that waits is answered.
    pub fn start(
        backends: &Backends,
        config: &ApiConfig,
        stopping: CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let partition = &backends.partition;
        let limits = &config.limits;
        let lookup = Lookup::start(Arc::clone(partition), backends.ledger.clone(), limits.outcome_cache);
        let registered = limits
            .require_registered_users
            .then(|| RegisteredUsers::start(backends.users.clone(), limits.user_cache));
        let caches = cache_sizes(&lookup, registered.as_ref());
        Ok(Arc::new(App {
            metrics: Watch::start(Arc::clone(partition), backends.coupons.clone(), caches),
            partition: Arc::clone(partition),
            database: backends.database.clone(),
            coupons: backends.coupons.clone(),
            users: backends.users.clone(),
            services: ServiceStore::new(&backends.database),
            ledger: backends.ledger.clone(),
            reservations: Reservations::start(Arc::clone(partition), limits.backlog_max),
            feed: Feed::start(Arc::clone(partition), lookup.clone(), stopping.clone()),
            listeners: Arc::new(Semaphore::new(live::LISTENERS_MAX)),
            exports: Arc::new(Semaphore::new(exports::EXPORTS_MAX)),
            followers: Arc::new(Semaphore::new(outcomes::FOLLOWERS_MAX)),
            stopping,
            lookup,
            registered,
            loader: backends.loader(),
            validities: Cache::new(VALIDITIES_CACHED),
            links: Links::new(config.public_url.as_deref())?,
            pace: Pace::default(),
            audit_every: (limits.audit_every > 0).then(|| Duration::from_secs(limits.audit_every.into())),
        }))
    }

    /// How many requests and streams wait for an outcome now.
    pub fn waiting(&self) -> usize {
        self.feed.waiting()
    }
}

/// What the metrics tell of the caches.
fn cache_sizes(lookup: &Lookup, registered: Option<&RegisteredUsers>) -> Vec<CacheSize> {
    let lookup = lookup.clone();
    let mut sizes: Vec<CacheSize> = vec![("outcomes", Box::new(move || lookup.cached()))];
    if let Some(registered) = registered.cloned() {
        sizes.push(("users", Box::new(move || registered.cached())));
    }
    sizes
}

/// Runs an API process until `shutdown`.
pub async fn run(
    listener: TcpListener,
    backends: Backends,
    config: &ApiConfig,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let app = App::start(&backends, config, shutdown.clone())?;
    serve(listener, app, &backends, shutdown).await
}

/// Serves the API on `listener`, keeps the partition certified and its accounts audited, until `shutdown`: the one that
/// `app` was started with.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    backends: &Backends,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    tracing::info!(listen = %boot::address(&listener)?, "serving the API");
    let drained = CancellationToken::new();
    let keeping = tokio::spawn(backends.keeper().run(drained.clone()));
    let reconciling = tokio::spawn(steer::reconcile(
        Arc::clone(&backends.partition),
        backends.coupons.clone(),
        ServiceStore::new(&backends.database),
        drained.clone(),
    ));
    let retiring = tokio::spawn(recovery::keep_retiring(Arc::clone(&backends.partition), drained.clone()));
    let auditing = app.audit_every.map(|every| {
        let Backends { partition, ledger, coupons, .. } = backends.clone();
        tokio::spawn(audit::watch(Auditor::new(partition, ledger, coupons), every, drained.clone()))
    });
    server::serve(listener, router(app), shutdown).await;
    drained.cancel();
    let auditing = futures::future::OptionFuture::from(auditing);
    let _ = tokio::join!(keeping, reconciling, retiring, auditing);
    Ok(())
}
