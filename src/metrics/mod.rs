//! Metrics of this process: one recorder, installed at first use, and a handle for each metric that a request
//! or a worker counts. Incrementing a handle is one atomic operation; its name is resolved once.
//!
//! [`names`] is the table of all metrics. Gauges of the queue and of stock are properties of a partition and not
//! of this process; [`crate::process`] reads them and exports them beside these.

pub mod names;

use std::sync::{LazyLock, Once};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use names::{ALL, Kind};

static RECORDER: LazyLock<PrometheusHandle> = LazyLock::new(|| {
    let recorder = recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("another metrics recorder is installed already: /metrics will be empty");
    }
    handle
});

/// A recorder with the help text of every metric and the buckets of every histogram.
pub(crate) fn recorder() -> PrometheusRecorder {
    let mut builder = PrometheusBuilder::new();
    for metric in ALL {
        if let Kind::Histogram(buckets) = metric.kind {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(metric.name.into()), buckets)
                .expect("every histogram of the table has buckets");
        }
    }
    let recorder = builder.build_recorder();
    metrics::with_local_recorder(&recorder, || {
        for metric in ALL {
            match metric.kind {
                Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
                Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
                Kind::Histogram(_) => metrics::describe_histogram!(metric.name, metric.help),
            }
        }
    });
    recorder
}

/// Everything that this process has counted, in Prometheus's text format.
pub fn render() -> String {
    start();
    RECORDER.render()
}

/// Sorts the samples of histograms into their buckets. A process that is never scraped must call this now and
/// then: until then its histograms keep every sample.
pub(crate) fn upkeep() {
    RECORDER.run_upkeep();
}

macro_rules! handles {
    (
        handles { $($kind:ident $make:ident: $($name:ident)*;)* }
        families { $($family:ident $label:literal $values:expr;)* }
        caches { $($lookups:ident $cache:literal;)* }
    ) => {
        $($(
            /// The metric of this name in [`names`].
            pub static $name: LazyLock<$kind> = LazyLock::new(|| $make(names::$name));
        )*)*
        $(
            /// The metric of this name in [`names`], a counter for each value of its label.
            pub static $family: LazyLock<Family> = LazyLock::new(|| Family::new(names::$family, $label, &$values));
        )*
        $(
            /// Hits and misses of this cache, in [`names::CACHE_LOOKUPS`].
            pub static $lookups: LazyLock<CacheLookups> = LazyLock::new(|| CacheLookups::new($cache));
        )*

        /// Makes every handle, so that each metric is exported as zero before anything is counted: a counter
        /// that appears with its first increment hides that increment from Prometheus.
        pub(crate) fn start() {
            static STARTED: Once = Once::new();
            STARTED.call_once(|| {
                $($(LazyLock::force(&$name);)*)*
                $(LazyLock::force(&$family);)*
                $(LazyLock::force(&$lookups);)*
                CREDENTIAL_SOURCES.into_iter().for_each(|source| credentials_stale_for(source, Duration::ZERO));
                build_info();
            });
        }
    };
}

handles! {
    handles {
        Counter counter: ACCEPTED REPLAYED ISSUED ACCEPTED_NOT_ISSUED CLAIMED RESTORED DEAD_LETTERED BREAKER_OPENED
            PRESSED RESTS LOST AUDITED ADOPTED UNLIMITED MOVED DRAINED DRY;
        Histogram histogram: RESERVE_BATCH RESERVE_SECONDS LEDGER_INSERT_SECONDS SETTLE_SECONDS RECOVERY_SECONDS HELD_SECONDS;
        Gauge gauge: BREAKER_OPEN CONNECTIONS AUDIT_LAST KEYS_EXPIRING;
    }
    families {
        DROPPED "reason" ["slow-head", "slow-reader", "address", "crowd"];
        LIMITED "limit" ["user", "address", "held"];
        REFUSED "problem" [
            "already-issued", "sold-out", "not-started", "ended", "paused", "key-reused", "archived", "overloaded",
            "unavailable",
        ];
        REJECTED "reason" ["already-issued", "sold-out", "discarded"];
        REWRITES_ASKED "reason" ["quiet", "before-opening", "need"];
        RECOVERIES "result" ["verified", "rebuilt", "superseded", "failed"];
        REDEEMED "change" ["used", "restored", "revoked"];
        REDEMPTION_REFUSED "problem" ["already-used", "not-used", "expired", "revoked"];
        CREDENTIALS_STALE "source" CREDENTIAL_SOURCES;
    }
    caches {
        OUTCOME_CACHE "outcomes";
        USER_CACHE "users";
        TOKEN_CACHE "tokens";
    }
}

// A handle that is made before the recorder is installed never counts anything.

fn counter(name: &'static str) -> Counter {
    LazyLock::force(&RECORDER);
    metrics::counter!(name)
}

fn histogram(name: &'static str) -> Histogram {
    LazyLock::force(&RECORDER);
    metrics::histogram!(name)
}

fn gauge(name: &'static str) -> Gauge {
    LazyLock::force(&RECORDER);
    metrics::gauge!(name)
}

/// Sets [`names::BUILD_INFO`]. Cargo does not know the revision of what it builds, and a build script that asks git
/// would fail or lie outside a clone; so whoever builds may name it.
fn build_info() {
    let revision = option_env!("COUPON_REVISION").unwrap_or_default();
    metrics::gauge!(names::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION"), "revision" => revision)
        .set(1.0);
}

/// The values of the label `source` of the credentials' metrics.
const CREDENTIAL_SOURCES: [&str; 2] = ["keys", "tokens"];

/// Sets [`names::CREDENTIALS_STALE_SECONDS`] of one source.
pub(crate) fn credentials_stale_for(source: &'static str, age: Duration) {
    LazyLock::force(&RECORDER);
    metrics::gauge!(names::CREDENTIALS_STALE_SECONDS, "source" => source).set(age.as_secs_f64());
}

/// A counter for each of a few known values of one label.
pub struct Family(Vec<(&'static str, Counter)>);

impl Family {
    pub(crate) fn new(name: &'static str, label: &'static str, values: &[&'static str]) -> Self {
        LazyLock::force(&RECORDER);
        Family(values.iter().map(|value| (*value, metrics::counter!(name, label => *value))).collect())
    }

    /// Increments the counter of `value`, which must be one of the declared values.
    pub fn count(&self, value: &str) {
        let counter = self.0.iter().find(|(known, _)| *known == value);
        debug_assert!(counter.is_some(), "{value:?} is not declared");
        if let Some((_, counter)) = counter {
            counter.increment(1);
        }
    }
}

/// Hits and misses of one cache.
pub struct CacheLookups {
    hits: Counter,
    misses: Counter,
}

impl CacheLookups {
    fn new(cache: &'static str) -> Self {
        LazyLock::force(&RECORDER);
        let counter = |result: &'static str| metrics::counter!(names::CACHE_LOOKUPS, "cache" => cache, "result" => result);
        CacheLookups { hits: counter("hit"), misses: counter("miss") }
    }

    /// Counts a hit.
    pub fn hit(&self) {
        self.hits.increment(1);
    }

    /// Counts a miss.
    pub fn miss(&self) {
        self.misses.increment(1);
    }
}
