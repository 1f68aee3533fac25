//! What an API process does beside answering: it keeps the partitions certified, brings what operators changed to
//! Redis, audits the accounts, deletes users, has Redis rewrite its append-only file at quiet times, and goes on with
//! actions whose requests were answered.

use std::sync::Arc;
use std::time::Duration;

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
    tasks.spawn(admin_sync::keep_within_validity(coupons.clone(), drained.clone()));
    let Settings { audit_every, user_cache, tombstone_retention_days } = app.background;
    for (partition, lane) in partitions.iter().zip(&app.issuing.lanes) {
        tasks.spawn(admin_sync::reconcile(
            Arc::clone(partition),
            coupons.clone(),
            app.catalog.services.clone(),
            drained.clone(),
        ));
        let pressure = lane.reservations.pressure();
        tasks.spawn(pressure::keep_saying(Arc::clone(pressure), Arc::clone(partition), drained.clone()));
        let is_busy = pressure.is_busy();
        tasks.spawn(recovery::keep_retiring(
            Arc::clone(partition),
            coupons.clone(),
            Arc::clone(&is_busy),
            drained.clone(),
        ));
        if let Some(every) = audit_every {
            let auditor = Auditor::new(Arc::clone(partition), ledger.clone(), coupons.clone());
            tasks.spawn(audit::keep_auditing(auditor, every, is_busy, drained.clone()));
        }
    }
    let is_busy = app.issuing.lanes.first().reservations.pressure().is_busy();
    let rewriter = AofRewriter::new(partitions.clone(), coupons.clone(), RewriteBounds::default());
    tasks.spawn(rewriter.run(drained.clone()));
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
    tasks.spawn(eraser.run(deletion_due, drained.clone()));
    let retention =
        Retention::new(partitions.clone(), ledger.clone(), coupons.clone(), tombstone_retention_days);
    if let Some(retention) = retention {
        tasks.spawn(retention.run(is_busy, drained.clone()));
    }
    tasks.spawn(app.bulk_actions.clone().finish(drained.clone()));
    tasks.close();
    tasks
}
