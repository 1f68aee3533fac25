//! Every metric of the table changes when the thing that it counts happens, is served, and has a bounded number of
//! series. Each action has a test.
//!
//! The API and the worker are processes of their own here, so that no other test changes their metrics.

mod scrape;
mod stage;
mod table;

use std::collections::{BTreeMap, BTreeSet};

use coupon_system::issuance::Reason;
use coupon_system::metrics::names;
use coupon_system::process::gauges::COUPONS_MAX;
use mongodb::bson::{DateTime, Document, doc};

use crate::helpers::eventually;

use self::stage::MetricsStage;
use self::table::{MetricAction, MetricSource, Movement, ROWS};

#[test]
fn every_declared_metric_has_a_row() {
    let declared: BTreeSet<_> = names::ALL.iter().map(|metric| metric.name).collect();
    let tested: BTreeSet<_> = ROWS.iter().map(|row| row.0).collect();
    assert_eq!(declared, tested, "each metric has a row, and each row a metric");
}

#[test]
fn every_reason_of_a_rejection_has_its_counter() {
    let exported = coupon_system::metrics::render();
    let reason = |line: &str| {
        let labels = line.strip_prefix(names::REJECTED)?.strip_prefix("{reason=\"")?;
        Some(labels.split_once('"')?.0.to_owned())
    };
    let counted: BTreeSet<_> = exported.lines().filter_map(reason).collect();
    let declared: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str().to_owned()).collect();
    assert_eq!(counted, declared);
}

/// Performs the action on a system of its own, and waits until each of its metrics has moved.
async fn moves_its_metrics(action: MetricAction) -> MetricsStage {
    let mut stage = MetricsStage::start().await;
    // Actions leave requests that no worker decides.
    stage.system.leaves_in_flight();
    for earlier in before(action) {
        stage.perform(*earlier).await;
    }
    let before = stage.scrape(MetricSource::Api).await;
    stage.perform(action).await;
    let rows = ROWS.iter().filter(|row| row.2 == action);
    assert_ne!(rows.clone().count(), 0, "{action:?} has no row");
    for (metric, labels, _, of, moves) in rows {
        // The worker is a new process, which has counted nothing.
        let before = match of {
            MetricSource::Api => before.sum(metric, labels).unwrap_or_default(),
            MetricSource::Worker => 0.0,
        };
        eventually(&format!("{action:?} moves {metric} {labels:?} of the {of:?} {moves:?}"), async || {
            let now = stage.scrape(*of).await.sum(metric, labels)?;
            let moved = match moves {
                Movement::Up => now > before,
                Movement::To(value) => now == *value,
            };
            moved.then_some(())
        })
        .await;
    }
    stage.only_declared().await;
    stage
}

/// The actions that must come before this one.
fn before(action: MetricAction) -> &'static [MetricAction] {
    match action {
        MetricAction::Wait | MetricAction::Repeat => &[MetricAction::Accept],
        MetricAction::Poll | MetricAction::Redeem => &[MetricAction::Accept, MetricAction::StartWorker],
        MetricAction::Break => &[MetricAction::StartWorker],
        _ => &[],
    }
}

/// Makes a test for each name and its action.
macro_rules! moves {
    ($($name:ident: $action:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            moves_its_metrics(MetricAction::$action).await;
        }
    )*};
}

moves! {
    accepted_requests_move_the_queue_the_stock_and_what_they_took: Accept;
    a_wait_is_counted_while_it_lasts: Wait;
    a_repeat_is_counted_as_a_replay: Repeat;
    refusals_are_counted_by_their_code: Refuse;
    a_worker_tells_of_its_process: StartWorker;
    issued_units_move_what_the_worker_and_the_stock_tell: Issue;
    polls_are_counted_by_whether_the_cache_answers: Poll;
    each_change_of_a_redemption_and_each_refusal_is_counted: Redeem;
    a_rejection_of_what_was_accepted_is_counted: Reject;
    what_a_dead_worker_held_is_counted_as_claimed: Die;
    an_entry_that_is_put_back_is_counted: Trim;
    a_dead_letter_is_counted_and_is_no_backlog: Poison;
    connections_beyond_the_limit_of_an_address_are_counted: Crowd;
    a_user_beyond_the_rate_is_counted: Hammer;
    callers_who_wait_long_are_told: Press;
    a_worker_that_makes_way_for_them_is_counted: MakeWay;
    processor_time_is_told: Work;
    each_of_several_partitions_is_told_by_itself: Spread;
    requests_at_an_empty_share_and_the_units_that_move_there_are_counted: EmptyShare;
    a_key_that_is_used_and_expires_soon_is_told: ExpireKey;
    a_secret_that_cannot_be_read_is_told_as_stale: SpoilSecret;
    a_recovery_is_counted_and_what_is_not_found_after_it: Recover;
    a_rewrite_of_the_append_only_file_is_told_while_it_runs_and_after: Rewrite;
    a_rewrite_that_fails_is_told: KillRewrite;
    a_file_that_grows_is_told_and_so_are_the_rewrites_that_are_asked_for: Grow;
    an_audit_counts_what_it_finds_and_adopts: InsertLate;
    a_redis_that_is_gone_is_told_as_stale_and_limits_nobody: LoseRedis;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_coupons_a_bounded_number_is_shown() {
    let stage = moves_its_metrics(MetricAction::MakeMany).await;
    let expected = [names::STOCK_ISSUED, names::STOCK_REMAINING, names::STOCK_RESERVED, names::STOCK_TOTAL]
        .map(|name| (name, COUPONS_MAX));
    // The API exports the stock of a coupon once it has read it.
    eventually("the bounded number of coupons is shown", async || {
        let scrape = stage.scrape(MetricSource::Api).await;
        let mut coupons = BTreeMap::<&str, usize>::new();
        for (name, labels) in scrape.series.keys() {
            if labels.contains("coupon=") {
                *coupons.entry(name).or_default() += 1;
            }
        }
        assert!(coupons.values().all(|shown| *shown <= COUPONS_MAX), "{coupons:?}");
        coupons.into_iter().eq(expected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_breaker_is_told_while_it_is_open_and_closes_once_the_ledger_takes_records() {
    let stage = moves_its_metrics(MetricAction::Break).await;
    let ledger = stage.system.backends.database.collection::<Document>("user_coupons");
    ledger.drop().await.expect("the view goes");
    stage.rename_ledger("kept", "user_coupons").await;
    stage.comes_to(MetricSource::Worker, names::BREAKER_OPEN, 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_told_as_not_writable_until_it_is_a_primary_again() {
    let stage = moves_its_metrics(MetricAction::Follow).await;
    stage.redis(&["REPLICAOF", "NO", "ONE"]).await;
    stage.comes_to(MetricSource::Api, names::WRITABLE, 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_certificate_is_told_until_there_is_one_again() {
    let stage = moves_its_metrics(MetricAction::Uncertify).await;
    stage.lease(doc! {"until": DateTime::from_millis(0)}).await;
    stage.comes_to(MetricSource::Api, names::CERTIFIED, 1.0).await;
}
