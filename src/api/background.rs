//! What an API process does beside answering: it keeps the partitions certified, brings what operators changed to
//! Redis, audits the accounts, deletes users, has Redis rewrite its append-only file at quiet times, and goes on with
//! actions whose requests were answered.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::App;
use crate::audit::Auditor;
use crate::config::ApiLimits;
use crate::coupon::admin_sync;
use crate::issuance::pressure;
use crate::privacy::{DeletionWatcher, Eraser, Retention};
use crate::process::Backends;
use crate::process::aof_rewriter::{AofRewriter, RewriteBounds};
use crate::runtime::tasks::restarted;
use crate::{audit, recovery};

/// How the tasks are set up.
pub(crate) struct Settings {
    /// `None` audits nothing.
    audit_every: Option<Duration>,
    /// Registered users that are remembered at most.
    user_cache: usize,
    tombstone_retention_days: u32,
}

impl Settings {
    /// The settings of a configuration.
    pub fn of(config: &ApiLimits) -> Self {
        Settings {
            audit_every: (config.audit_every > 0).then(|| Duration::from_secs(config.audit_every.into())),
            user_cache: config.user_cache,
            tombstone_retention_days: config.tombstone_retention_days,
        }
    }
}

/// Starts the tasks. Each ends after `drained`.
pub(crate) fn start(app: &App, backends: &Backends, drained: &CancellationToken) -> TaskTracker {
    let Backends { partitions, database, ledger, coupons, .. } = backends;
    let tasks = TaskTracker::new();
    for supervisor in backends.recovery_supervisors() {
        tasks.spawn(supervisor.run(drained.clone()));
    }
    // What one of them panics over keeps neither the others nor the process from going on.
    let keep =
        |what: &'static str,
         start: Box<dyn Fn(CancellationToken) -> BoxFuture<'static, ()> + Send + Sync>| {
            let drained = drained.clone();
            tasks.spawn(async move { restarted(what, &drained, || start(drained.clone())).await })
        };
    let of_validity = coupons.clone();
    keep(
        "end coupons with their validity",
        Box::new(move |drained| admin_sync::keep_within_validity(of_validity.clone(), drained).boxed()),
    );
    let to_sync = (partitions.clone(), coupons.clone(), app.catalog.services.clone());
    keep(
        "bring operators' changes to Redis",
        Box::new(move |drained| {
            let (partitions, coupons, services) = to_sync.clone();
            admin_sync::reconcile(partitions, coupons, services, drained).boxed()
        }),
    );
    let Settings { audit_every, user_cache, tombstone_retention_days } = app.background;
    for (partition, lane) in partitions.iter().zip(&app.issuing.lanes) {
        let pressure = lane.reservations.pressure();
        let is_busy = pressure.is_busy();
        let said = (Arc::clone(pressure), Arc::clone(partition));
        keep(
            "say that callers wait",
            Box::new(move |drained| {
                let (pressure, partition) = said.clone();
                pressure::keep_saying(pressure, partition, drained).boxed()
            }),
        );
        let retired = (Arc::clone(partition), coupons.clone(), Arc::clone(&is_busy));
        keep(
            "retire coupons",
            Box::new(move |drained| {
                let (partition, coupons, is_busy) = retired.clone();
                recovery::keep_retiring(partition, coupons, is_busy, drained).boxed()
            }),
        );
        if let Some(every) = audit_every {
            let auditor = Auditor::new(Arc::clone(partition), ledger.clone(), coupons.clone());
            keep(
                "audit the accounts",
                Box::new(move |drained| {
                    audit::keep_auditing(auditor.clone(), every, Arc::clone(&is_busy), drained).boxed()
                }),
            );
        }
    }
    let is_busy = app.issuing.lanes.first().reservations.pressure().is_busy();
    let rewritten = (partitions.clone(), coupons.clone());
    keep(
        "have Redis rewrite its append-only file",
        Box::new(move |drained| {
            let (partitions, coupons) = rewritten.clone();
            AofRewriter::new(partitions, coupons, RewriteBounds::default()).run(drained).boxed()
        }),
    );
    let users = &app.users;
    if let Some(registered) = users.registered.clone() {
        tasks.spawn(registered.keep_prefetching(users.store.clone(), user_cache, drained.clone()));
    }
    let deletion_due = Arc::new(Notify::new());
    let watcher = DeletionWatcher {
        users: users.store.clone(),
        deletions: Arc::clone(&users.deletions),
        registered: users.registered.clone(),
        lookup: app.issuing.lookup.clone(),
        due: Arc::clone(&deletion_due),
    };
    tasks.spawn(watcher.run(drained.clone()));
    let eraser = Eraser::new(partitions.clone(), ledger.clone(), database.clone());
    keep(
        "delete users",
        Box::new(move |drained| eraser.clone().run(Arc::clone(&deletion_due), drained).boxed()),
    );
    let retention =
        Retention::new(partitions.clone(), ledger.clone(), coupons.clone(), tombstone_retention_days);
    if let Some(retention) = retention {
        keep(
            "delete old rejections",
            Box::new(move |drained| retention.clone().run(Arc::clone(&is_busy), drained).boxed()),
        );
    }
    tasks.spawn(app.bulk_actions.clone().finish(drained.clone()));
    tasks.close();
    tasks
}
