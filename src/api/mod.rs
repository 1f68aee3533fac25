//! The API: routes, handlers, wire types, documentation and the try-it page.

mod actions;
mod coupons;
mod docs;
mod guard;
mod issuance_events;
mod issuances;
mod links;
mod live;
mod operations;
mod pace;
mod pages;
mod query;
mod record;
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

use crate::access::{Access, ActionLog};
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
pub use router::{Side, router};

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
    access: Arc<Access>,
    actions: ActionLog,
}

impl App {
    /// Starts what the handlers work with. With `stopping`, every request that waits is answered.
    pub async fn start(
        backends: &Backends,
        config: &ApiConfig,
        stopping: CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let tokens = config.access.tokens()?;
        let access = Access::start(config.access.open, tokens, &backends.database, &stopping).await?;
        match &access {
            Access::Open => tracing::warn!("open: nobody is asked for credentials"),
            Access::Closed { keys, tokens } => {
                tracing::info!(keys = keys.active(), tokens = tokens.is_some(), "credentials are asked for");
            }
        }
        let access = Arc::new(access);
        let partition = &backends.partition;
        let limits = &config.limits;
        let lookup = Lookup::start(Arc::clone(partition), backends.ledger.clone(), limits.outcome_cache);
        let registered = limits
            .require_registered_users
            .then(|| RegisteredUsers::start(backends.users.clone(), limits.user_cache));
        let caches = cache_sizes(&lookup, registered.as_ref(), &access);
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
            stopping,
            lookup,
            registered,
            loader: backends.loader(),
            validities: Cache::new(VALIDITIES_CACHED),
            links: Links::new(config.public_url.as_deref())?,
            pace: Pace::default(),
            audit_every: (limits.audit_every > 0).then(|| Duration::from_secs(limits.audit_every.into())),
            actions: ActionLog::start(&backends.database),
            access,
        }))
    }

    /// How many requests and streams wait for an outcome now.
    pub fn waiting(&self) -> usize {
        self.feed.waiting()
    }
}

/// What the metrics tell of the caches.
fn cache_sizes(
    lookup: &Lookup,
    registered: Option<&RegisteredUsers>,
    access: &Arc<Access>,
) -> Vec<CacheSize> {
    let (lookup, access) = (lookup.clone(), Arc::clone(access));
    let mut sizes: Vec<CacheSize> = vec![
        ("outcomes", Box::new(move || lookup.cached())),
        ("tokens", Box::new(move || access.tokens_remembered())),
    ];
    if let Some(registered) = registered.cloned() {
        sizes.push(("users", Box::new(move || registered.cached())));
    }
    sizes
}

/// Where the API is served.
pub struct Listeners {
    pub public: TcpListener,
    /// Where operators' routes are served, beside all others; they are then not on the public one.
    pub operators: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    fn from(public: TcpListener) -> Self {
        Listeners { public, operators: None }
    }
}

/// Runs an API process until `shutdown`.
pub async fn run(
    public: TcpListener,
    backends: Backends,
    config: &ApiConfig,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let operators = match config.access.operator_listen {
        Some(address) => Some(boot::bind(address, "--operator-listen").await?),
        None => None,
    };
    let app = App::start(&backends, config, shutdown.clone()).await?;
    serve(Listeners { public, operators }, app, &backends, shutdown).await
}

/// Serves the API, keeps the partition certified and its accounts audited, until `shutdown`: the one that
/// `app` was started with.
pub async fn serve(
    listeners: impl Into<Listeners>,
    app: Arc<App>,
    backends: &Backends,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Listeners { public, operators } = listeners.into();
    if let Some(operators) = &operators {
        tracing::info!(operator_listen = %boot::address(operators)?, "serving operators");
    }
    tracing::info!(listen = %boot::address(&public)?, "serving the API");
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
    let side = if operators.is_some() { Side::Public } else { Side::Whole };
    let serving_operators = operators
        .map(|operators| server::serve(operators, router(Arc::clone(&app), Side::Whole), shutdown.clone()));
    let serving_operators = futures::future::OptionFuture::from(serving_operators);
    tokio::join!(server::serve(public, router(app, side), shutdown), serving_operators);
    drained.cancel();
    let auditing = futures::future::OptionFuture::from(auditing);
    let _ = tokio::join!(keeping, reconciling, retiring, auditing);
    Ok(())
}
