//! What the handlers work with, by topic. A handler takes the part that it needs, and the whole [`App`] if it needs
//! several.

pub(crate) mod bulk_actions;
pub(crate) mod coupon_catalog;
mod coupon_reader;
mod coupon_snapshot;
pub(crate) mod drain_rate;
pub(crate) mod holdings;
pub(crate) mod issuance_pipeline;
mod issued_counts;
pub(crate) mod limits;
pub(crate) mod placements;
pub(crate) mod user_directory;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRef;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::background;
use super::wire::links::Links;
use crate::access::{Access, ActionLog};
use crate::config::ApiConfig;
use crate::http::cors::Origins;
use crate::http::host::{HostName, Hosts};
use crate::http::request::CompleteLayer;
use crate::issuance::pressure::TurnedAway;
use crate::issuance::shares::Refills;
use crate::issuance::{Feed, Lookup, Reservations};
use crate::process::Backends;
use crate::process::gauges::{GaugeReader, ProcessSizes};
use crate::process::health::Probe;
use crate::redis::Partition;
use crate::runtime::shutdown;
use crate::user::{PendingDeletions, RegisteredUsers};
use bulk_actions::BulkActions;
use coupon_catalog::CouponCatalog;
use drain_rate::DrainRate;
use holdings::Holdings;
use issuance_pipeline::{IssuancePipeline, Lane};
use limits::RequestLimits;
use placements::PlacementReader;
use user_directory::UserDirectory;

/// Everything that the handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// The parts of an [`App`].
pub struct Parts {
    pub(crate) access: AccessControl,
    pub(crate) catalog: Arc<CouponCatalog>,
    pub(crate) issuing: Arc<IssuancePipeline>,
    pub(crate) holdings: Arc<Holdings>,
    pub(crate) bulk_actions: BulkActions,
    pub(crate) users: Arc<UserDirectory>,
    pub(crate) limits: RequestLimits,
    pub(crate) links: Arc<Links>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) background: background::Settings,
}

/// Who may send requests, from which pages and to which hosts, and the record of what operators did.
pub(crate) struct AccessControl {
    pub access: Arc<Access>,
    pub actions: ActionLog,
    /// `None` lets no site's scripts read.
    pub origins: Option<Origins>,
    /// The hosts that requests may name if the service asks for no credentials.
    pub allowed_hosts: Vec<HostName>,
}

/// Whether the process is ready, what it holds, and when it stops.
pub(crate) struct Lifecycle {
    pub probe: Probe,
    pub gauges: Arc<GaugeReader>,
    /// Cancelled when the process is asked to stop: from then on it is not ready.
    pub asked_to_stop: CancellationToken,
    /// Cancelled when the process stops: from then on it accepts no request, and every request that waits is
    /// answered.
    pub stopping: CancellationToken,
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Lets a handler take one part.
macro_rules! part {
    ($($name:ident: $part:ty,)*) => {
        $(impl FromRef<App> for Arc<$part> {
            fn from_ref(app: &App) -> Self {
                Arc::clone(&app.$name)
            }
        })*
    };
}

part! {
    catalog: CouponCatalog,
    issuing: IssuancePipeline,
    holdings: Holdings,
    users: UserDirectory,
    links: Links,
}

impl FromRef<App> for ActionLog {
    fn from_ref(app: &App) -> Self {
        app.access.actions.clone()
    }
}

impl App {
    /// Starts what the handlers work with. From `asked_to_stop` on the process is not ready; after the delay of the
    /// configuration it stops.
    ///
    /// # Errors
    /// The configuration cannot be met, or MongoDB does not answer.
    pub async fn start(
        backends: &Backends,
        config: &ApiConfig,
        asked_to_stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let delay = Duration::from_secs(config.shutdown_delay.into());
        let stopping = shutdown::after(&asked_to_stop, delay);
        let tokens = config.access.tokens()?;
        let access = Access::start(config.access.open, tokens, &backends.database, &stopping).await?;
        if access.is_open() {
            tracing::warn!("open: requests need no credentials, until a first API key is created");
        } else {
            tracing::info!(keys = access.keys(), tokens = access.takes_tokens(), "requests need credentials");
        }
        let Backends { partitions, database, ledger, coupons, users, deployment, .. } = backends;
        let limits = &config.limits;
        let deletion_delay = Duration::from_secs(limits.user_deletion_delay.into());
        let deletions = Arc::new(PendingDeletions::new(deletion_delay));
        let lookup = Lookup::start(partitions, ledger.clone(), Arc::clone(&deletions), limits.outcome_cache);
        let registered = limits
            .require_registered_users
            .then(|| RegisteredUsers::start(users.clone(), Arc::clone(&deletions), limits.user_cache));
        let feed = Feed::start(partitions, lookup.clone(), stopping.clone());
        let actions = ActionLog::start(database);
        let placements = Arc::new(PlacementReader::start(partitions, coupons));
        let turned_away = TurnedAway::default();
        let lane = |partition: &Arc<Partition>| {
            let (partition, queue_entries) = (Arc::clone(partition), deployment.queue_entries);
            let turned_away = turned_away.clone();
            Lane {
                reservations: Reservations::start(partition, limits.backlog_max, queue_entries, turned_away),
                drain_rate: DrainRate::default(),
            }
        };
        let sizes = sizes(&feed, &lookup, registered.as_ref(), &access);
        Ok(App(Arc::new(Parts {
            bulk_actions: BulkActions {
                partitions: partitions.clone(),
                ledger: ledger.clone(),
                actions: actions.clone(),
                stopping: stopping.clone(),
                running: TaskTracker::new(),
            },
            lifecycle: Lifecycle {
                probe: Probe::new(partitions.clone(), database.clone()),
                gauges: GaugeReader::start(partitions.clone(), coupons.clone(), sizes),
                asked_to_stop,
                stopping,
            },
            catalog: Arc::new(CouponCatalog::start(backends, &placements)),
            issuing: Arc::new(IssuancePipeline {
                partitions: partitions.clone(),
                lanes: partitions.each(lane),
                placements,
                grown: issuance_pipeline::start_grown(database),
                refills: Refills::new(partitions.clone(), ledger.clone(), deployment.queue_entries),
                ledger: ledger.clone(),
                lookup,
                feed,
                turned_away: turned_away.clone(),
            }),
            holdings: Arc::new(Holdings::new(backends)),
            users: Arc::new(UserDirectory {
                store: users.clone(),
                registered,
                id_secret: deployment.id_secret,
                deletions,
                deletion_delay,
            }),
            limits: RequestLimits::start(&limits.ingress, &access, partitions),
            links: Arc::new(Links::new(config.public_url.as_deref())?),
            background: background::Settings::of(limits),
            access: AccessControl {
                access,
                actions,
                origins: Origins::new(&limits.ingress.cors_origins),
                allowed_hosts: limits.ingress.allowed_hosts.clone(),
            },
        })))
    }

    /// The layer that completes every answer.
    pub(crate) fn complete(&self) -> CompleteLayer {
        let prefix = self.links.prefix();
        let base = (!prefix.is_empty()).then(|| prefix.into());
        CompleteLayer { origins: self.access.origins.clone(), base }
    }

    /// The hosts that requests may name.
    pub(crate) fn hosts(&self) -> Hosts {
        let AccessControl { access, allowed_hosts, .. } = &self.access;
        if !access.is_open() {
            return Hosts::Any;
        }
        let public = self.links.authority().and_then(|authority| authority.host().parse().ok());
        Hosts::Own(public.into_iter().chain(allowed_hosts.iter().cloned()).collect())
    }

    /// How many requests and streams wait for an outcome now.
    pub fn waiting(&self) -> usize {
        self.issuing.feed.waiting()
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
