//! The API: routes, handlers, wire types, documentation and the try-it page.

mod actions;
mod admin;
mod coupon_reader;
mod coupons;
mod docs;
mod drain_rate;
mod exports;
mod guard;
mod issuance_events;
mod issuances;
mod issued_counts;
mod links;
mod live_figures;
mod open_requests;
mod openapi_problems;
mod operations;
mod outcomes;
mod pages;
mod problems;
mod public_lists;
pub mod query;
mod rate_limits;
mod record;
mod redemption;
mod router;
mod service;
mod shedding;
mod swagger;
mod user_coupons;
mod users;
mod wait;
pub mod wire;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::access::{Access, ActionLog};
use crate::audit::Auditor;
use crate::config::{self, ApiCommand, ApiConfig};
use crate::coupon::{CouponStore, Expiry, admin_sync};
use crate::http::connection_runtimes::ConnectionRuntimes;
use crate::http::cors::Origins;
use crate::http::host::{HostName, Hosts};
use crate::http::request::CompleteLayer;
use crate::http::server;
use crate::http::server::{Bounds, LoadShedder, ServedRouter};
use crate::ids::{CouponId, UserId};
use crate::issuance::{Feed, Ledger, Lookup, Reservations};
use crate::mongo::Database;
use crate::privacy::{DeletionWatcher, Eraser, Retention};
use crate::process::Backends;
use crate::process::gauges::{GaugeReader, ProcessSizes};
use crate::process::health::Probe;
use crate::recovery::Loader;
use crate::redemption::RedemptionStore;
use crate::redis::Partition;
use crate::runtime::{fd_limit, shutdown, telemetry};
use crate::service::ServiceStore;
use crate::user::{IdSecret, PendingDeletions, RegisteredUsers, UserStore};
use crate::{Failure, audit, process, recovery};
use coupon_reader::CouponReader;
pub use docs::openapi;
use drain_rate::DrainRate;
use issued_counts::IssuedCounts;
use links::Links;
use open_requests::OpenRequestLimits;
use public_lists::PublicLists;
use rate_limits::{AddressLimit, UserLimit};
pub use router::{ListenerScope, router};
use shedding::Shedding;

/// Coupons whose validity is remembered.
const VALIDITIES_CACHED: usize = 10_000;

/// What the handlers work with.
pub struct App {
    partition: Arc<Partition>,
    database: Database,
    coupons: CouponStore,
    looks: CouponReader,
    issued_counts: IssuedCounts,
    public_lists: PublicLists,
    users: UserStore,
    services: ServiceStore,
    ledger: Ledger,
    reservations: Reservations,
    lookup: Lookup,
    redemptions: RedemptionStore,
    feed: Feed,
    /// `None` trusts the caller's ids.
    registered: Option<RegisteredUsers>,
    /// What keyed issuances are named with where the caller's ids are trusted.
    id_secret: Option<IdSecret>,
    /// Users that are remembered at most.
    user_cache: usize,
    deletions: Arc<PendingDeletions>,
    deletion_delay: Duration,
    /// Told that a deletion is due.
    deletion_due: Arc<Notify>,
    tombstone_retention_days: u32,
    /// Places for those who listen to the live figures.
    listeners: Arc<Semaphore>,
    /// Places for those who export, and who follow the outcomes.
    exports: Arc<Semaphore>,
    followers: Arc<Semaphore>,
    /// Cancelled when the process is asked to stop: from then on it is not ready.
    asked_to_stop: CancellationToken,
    probe: Probe,
    /// Cancelled when it does stop: nothing new is accepted, and nobody waits any longer.
    stopping: CancellationToken,
    loader: Loader,
    /// A coupon's validity never changes.
    validities: Cache<CouponId, Expiry>,
    links: Links,
    pace: DrainRate,
    /// `None` audits nothing.
    audit_every: Option<Duration>,
    metrics: Arc<GaugeReader>,
    access: Arc<Access>,
    actions: ActionLog,
    bounds: Bounds,
    user_limit: UserLimit,
    address_limit: Option<AddressLimit>,
    held: OpenRequestLimits,
    /// `None` lets no site's scripts read.
    origins: Option<Origins>,
    /// Where nobody is asked for credentials.
    allowed_hosts: Vec<HostName>,
}

impl App {
    /// Starts what the handlers work with. From `asked_to_stop` on the process is not ready; once the delay
    /// of the configuration is over, every request that waits is answered.
    pub async fn start(
        backends: &Backends,
        config: &ApiConfig,
        asked_to_stop: CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let delay = Duration::from_secs(config.shutdown_delay.into());
        let stopping = shutdown::after(&asked_to_stop, delay);
        let tokens = config.access.tokens()?;
        let access = Access::start(config.access.open, tokens, &backends.database, &stopping).await?;
        if access.is_open() {
            tracing::warn!("open: nobody is asked for credentials, until a first API key is made");
        } else {
            tracing::info!(keys = access.keys(), tokens = access.takes_tokens(), "credentials are asked for");
        }
        let (partition, loader) = (&backends.partition, backends.loader());
        let limits = &config.limits;
        let deletion_delay = Duration::from_secs(limits.user_deletion_delay.into());
        let deletions = Arc::new(PendingDeletions::new(deletion_delay));
        let lookup = Lookup::start(
            Arc::clone(partition),
            backends.ledger.clone(),
            Arc::clone(&deletions),
            limits.outcome_cache,
        );
        let registered = limits.require_registered_users.then(|| {
            RegisteredUsers::start(backends.users.clone(), Arc::clone(&deletions), limits.user_cache)
        });
        let feed = Feed::start(Arc::clone(partition), lookup.clone(), stopping.clone());
        let sizes = sizes(&feed, &lookup, registered.as_ref(), &access);
        Ok(Arc::new(App {
            metrics: GaugeReader::start(Arc::clone(partition), backends.coupons.clone(), sizes),
            partition: Arc::clone(partition),
            database: backends.database.clone(),
            coupons: backends.coupons.clone(),
            looks: coupon_reader::start(backends.coupons.clone(), Arc::clone(partition), loader.clone()),
            issued_counts: IssuedCounts::start(backends.coupons.clone(), backends.ledger.clone()),
            public_lists: PublicLists::default(),
            users: backends.users.clone(),
            services: ServiceStore::new(&backends.database),
            ledger: backends.ledger.clone(),
            reservations: Reservations::start(Arc::clone(partition), limits.backlog_max),
            feed,
            listeners: Arc::new(Semaphore::new(live_figures::LISTENERS_MAX)),
            exports: Arc::new(Semaphore::new(exports::EXPORTS_MAX)),
            followers: Arc::new(Semaphore::new(outcomes::FOLLOWERS_MAX)),
            asked_to_stop,
            probe: Probe::new(Arc::clone(partition), backends.database.clone()),
            stopping,
            lookup,
            redemptions: RedemptionStore::new(&backends.database),
            registered,
            id_secret: backends.id_secret,
            user_cache: limits.user_cache,
            deletions,
            deletion_delay,
            deletion_due: Arc::default(),
            tombstone_retention_days: limits.tombstone_retention_days,
            loader,
            validities: Cache::new(VALIDITIES_CACHED),
            links: Links::new(config.public_url.as_deref())?,
            pace: DrainRate::default(),
            bounds: limits.ingress.bounds(),
            user_limit: UserLimit::start(&limits.ingress, partition),
            address_limit: AddressLimit::start(&limits.ingress, &access, partition),
            held: OpenRequestLimits::new(&limits.ingress),
            origins: Origins::new(&limits.ingress.cors_origins),
            allowed_hosts: limits.ingress.allowed_hosts.clone(),
            audit_every: (limits.audit_every > 0).then(|| Duration::from_secs(limits.audit_every.into())),
            actions: ActionLog::start(&backends.database),
            access,
        }))
    }

    /// Whether the user may request and be asked about: registered, if that is required, and not deleted.
    async fn knows(&self, user: &UserId) -> Result<bool, Failure> {
        Ok(self.find_user(user).await?.is_some())
    }

    /// What keyed issuances of the user are named with, if they may request and be asked about.
    async fn find_user(&self, user: &UserId) -> Result<Option<Option<IdSecret>>, Failure> {
        match &self.registered {
            Some(registered) => registered.find(user).await,
            None if user.is_pseudonym() || self.deletions.contains(user)? => Ok(None),
            None => Ok(Some(self.id_secret)),
        }
    }

    /// What completes every answer.
    fn complete(&self) -> CompleteLayer {
        let prefix = self.links.prefix();
        let base = (!prefix.is_empty()).then(|| prefix.into());
        CompleteLayer { origins: self.origins.clone(), base }
    }

    /// The hosts that requests may name.
    fn hosts(&self) -> Hosts {
        if !self.access.is_open() {
            return Hosts::Any;
        }
        let public = self.links.authority().and_then(|authority| authority.host().parse().ok());
        Hosts::Own(public.into_iter().chain(self.allowed_hosts.iter().cloned()).collect())
    }

    /// How many requests and streams wait for an outcome now.
    pub fn waiting(&self) -> usize {
        self.feed.waiting()
    }
}

/// What the metrics tell of what the process holds.
fn sizes(
    feed: &Feed,
    lookup: &Lookup,
    registered: Option<&RegisteredUsers>,
    access: &Arc<Access>,
) -> ProcessSizes {
    let (feed, lookup, access) = (feed.clone(), lookup.clone(), Arc::clone(access));
    let mut sizes = ProcessSizes { waiters: Some(Box::new(move || feed.waiting())), caches: Vec::new() };
    sizes.caches.push(("outcomes", Box::new(move || lookup.cached())));
    sizes.caches.push(("tokens", Box::new(move || access.tokens_remembered())));
    if let Some(registered) = registered.cloned() {
        sizes.caches.push(("users", Box::new(move || registered.cached())));
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

/// Runs the API process: parses the command line, connects, and serves until the process is asked to stop.
///
/// The binary calls this and nothing else, so that the code of its tasks is generated once, with this crate, and
/// not in each binary again.
#[tokio::main]
pub async fn main() -> ExitCode {
    process::exit(start(config::parse()).await)
}

async fn start(command: ApiCommand) -> anyhow::Result<()> {
    telemetry::start(command.log.log_format, &command.log.log)?;
    fd_limit::raise_limit();
    let shutdown = shutdown::on_signal()?;
    let listener = process::bind(command.api.listen, "--listen")?;
    let backends = process::connect(&command.redis, &command.mongodb).await?;
    run(listener, backends, &command.api, shutdown).await
}

/// Runs an API process until `shutdown`.
pub async fn run(
    public: TcpListener,
    backends: Backends,
    config: &ApiConfig,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let operators = match config.access.operator_listen {
        Some(address) => Some(process::bind(address, "--operator-listen")?),
        None => None,
    };
    let app = App::start(&backends, config, shutdown).await?;
    serve(Listeners { public, operators }, app, &backends).await
}

/// Serves the API, keeps the partition certified and its accounts audited, until the `app` stops.
pub async fn serve(
    listeners: impl Into<Listeners>,
    app: Arc<App>,
    backends: &Backends,
) -> anyhow::Result<()> {
    let Listeners { public, operators } = listeners.into();
    if let Some(operators) = &operators {
        tracing::info!(operator_listen = %process::address(operators)?, "serving operators");
    }
    tracing::info!(listen = %process::address(&public)?, "serving the API");
    let threads = ConnectionRuntimes::start()?;
    let drained = CancellationToken::new();
    let keeping = tokio::spawn(backends.recovery_supervisor().run(drained.clone()));
    let reconciling = tokio::spawn(admin_sync::reconcile(
        Arc::clone(&backends.partition),
        backends.coupons.clone(),
        ServiceStore::new(&backends.database),
        drained.clone(),
    ));
    let within_validity =
        tokio::spawn(admin_sync::keep_within_validity(backends.coupons.clone(), drained.clone()));
    let retiring = tokio::spawn(recovery::keep_retiring(
        Arc::clone(&backends.partition),
        backends.coupons.clone(),
        drained.clone(),
    ));
    let auditing = app.audit_every.map(|every| {
        let Backends { partition, ledger, coupons, .. } = backends.clone();
        tokio::spawn(audit::keep_auditing(Auditor::new(partition, ledger, coupons), every, drained.clone()))
    });
    let warming = app.registered.clone().map(|registered| {
        tokio::spawn(registered.keep_prefetching(app.users.clone(), app.user_cache, drained.clone()))
    });
    let learner = DeletionWatcher {
        users: app.users.clone(),
        deletions: Arc::clone(&app.deletions),
        registered: app.registered.clone(),
        lookup: app.lookup.clone(),
        due: Arc::clone(&app.deletion_due),
    };
    let Backends { partition, ledger, coupons, .. } = backends.clone();
    let eraser = Eraser::new(Arc::clone(&partition), ledger.clone(), app.database.clone());
    let retention = Retention::new(partition, ledger, coupons, app.tombstone_retention_days);
    let forgetting = tokio::spawn({
        let (due, drained) = (Arc::clone(&app.deletion_due), drained.clone());
        async move {
            let retaining = async {
                futures::future::OptionFuture::from(retention.map(|it| it.run(drained.clone()))).await
            };
            tokio::join!(learner.run(drained.clone()), eraser.run(due, drained.clone()), retaining);
        }
    });
    let serve = |listener, side, bounds| {
        let front: Arc<dyn LoadShedder> = Arc::new(Shedding::new(Arc::clone(&app)));
        let served = ServedRouter { router: router(Arc::clone(&app), side), front: Some(front) };
        server::serve(listener, served, bounds, &threads, app.stopping.clone())
    };
    match operators {
        None => serve(public, ListenerScope::Whole, app.bounds.clone()).await,
        Some(operators) => {
            let (of_public, of_operators) = app.bounds.clone().split();
            tokio::join!(
                serve(public, ListenerScope::Public, of_public),
                serve(operators, ListenerScope::Whole, of_operators)
            );
        }
    }
    drained.cancel();
    let auditing = futures::future::OptionFuture::from(auditing);
    let warming = futures::future::OptionFuture::from(warming);
    let _ = tokio::join!(keeping, reconciling, within_validity, retiring, auditing, forgetting, warming);
    Ok(())
}
