//! Metrics of this process: one recorder, installed at first use, and ready-made handles for what is
//! counted on the way of a request. A handle costs an atomic operation; a name is looked up once.
//!
//! [`names`] is the table of all of them. What is a property of the queue or of the stock, and not of
//! this process, is gathered beside this ([`crate::process`]).

pub mod names;

use std::sync::LazyLock;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use names::{ALL, Kind};

static RECORDER: LazyLock<PrometheusHandle> = LazyLock::new(|| {
    let recorder = recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("another recorder was installed before: /metrics will be empty");
    }
    handle
});

/// A recorder that knows the help and the buckets of every metric.
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

/// Everything that this process has counted, as Prometheus text.
pub fn render() -> String {
    start();
    RECORDER.render()
}

/// Sorts what the histograms have collected into their buckets. Without it they grow until somebody
/// scrapes.
pub(crate) fn upkeep() {
    RECORDER.run_upkeep();
}

/// Shows everything from zero on: a counter that appears with its first increment hides it.
pub(crate) fn start() {
    static STARTED: LazyLock<()> = LazyLock::new(|| {
        for counter in [
            &ACCEPTED,
            &REPLAYED,
            &ISSUED,
            &ACCEPTED_NOT_ISSUED,
            &CLAIMED,
            &RESTORED,
            &DEAD_LETTERED,
            &LOST,
            &BREAKER_OPENED,
            &AUDITED,
            &ADOPTED,
            &UNLIMITED,
        ] {
            LazyLock::force(counter);
        }
        for histogram in
            [&RESERVE_BATCH, &RESERVE_SECONDS, &LEDGER_INSERT_SECONDS, &SETTLE_SECONDS, &RECOVERY_SECONDS]
        {
            LazyLock::force(histogram);
        }
        for family in [
            &REFUSED,
            &REJECTED,
            &RECOVERIES,
            &CREDENTIALS_STALE,
            &REDEEMED,
            &REDEMPTION_REFUSED,
            &DROPPED,
            &LIMITED,
        ] {
            LazyLock::force(family);
        }
        for cache in [&OUTCOME_CACHE, &USER_CACHE, &TOKEN_CACHE] {
            LazyLock::force(cache);
        }
        for source in CREDENTIAL_SOURCES {
            credentials_stale_for(source, Duration::ZERO);
        }
        BREAKER_OPEN.increment(0.0);
        AUDIT_LAST.increment(0.0);
        CONNECTIONS.increment(0.0);
    });
    LazyLock::force(&STARTED);
}

// A handle that is made before the recorder is installed stays mute for ever.

fn counter(name: &'static str) -> Counter {
    LazyLock::force(&RECORDER);
    metrics::counter!(name)
}

fn histogram(name: &'static str) -> Histogram {
    LazyLock::force(&RECORDER);
    metrics::histogram!(name)
}

macro_rules! handles {
    ($($kind:ident $make:ident: $($name:ident)*;)*) => {
        $($(
            /// See [`names`].
            pub static $name: LazyLock<$kind> = LazyLock::new(|| $make(names::$name));
        )*)*
    };
}

handles! {
    Counter counter: ACCEPTED REPLAYED ISSUED ACCEPTED_NOT_ISSUED CLAIMED RESTORED DEAD_LETTERED BREAKER_OPENED
        LOST AUDITED ADOPTED UNLIMITED;
    Histogram histogram: RESERVE_BATCH RESERVE_SECONDS LEDGER_INSERT_SECONDS SETTLE_SECONDS RECOVERY_SECONDS;
}

/// See [`names`].
pub static BREAKER_OPEN: LazyLock<Gauge> = LazyLock::new(|| {
    LazyLock::force(&RECORDER);
    metrics::gauge!(names::BREAKER_OPEN)
});

/// See [`names`].
pub static CONNECTIONS: LazyLock<Gauge> = LazyLock::new(|| {
    LazyLock::force(&RECORDER);
    metrics::gauge!(names::CONNECTIONS)
});

/// See [`names`].
pub static DROPPED: LazyLock<Family> = LazyLock::new(|| {
    Family::new(names::DROPPED, "reason", &["slow-head", "slow-reader", "address", "crowd"])
});

/// See [`names`].
pub static LIMITED: LazyLock<Family> =
    LazyLock::new(|| Family::new(names::LIMITED, "limit", &["user", "address", "held"]));

/// See [`names`].
pub static AUDIT_LAST: LazyLock<Gauge> = LazyLock::new(|| {
    LazyLock::force(&RECORDER);
    metrics::gauge!(names::AUDIT_LAST)
});

/// See [`names`].
pub static REFUSED: LazyLock<Family> = LazyLock::new(|| {
    let codes = [
        "already-issued",
        "sold-out",
        "not-started",
        "ended",
        "paused",
        "key-reused",
        "archived",
        "overloaded",
        "unavailable",
    ];
    Family::new(names::REFUSED, "code", &codes)
});

/// See [`names`].
pub static REJECTED: LazyLock<Family> =
    LazyLock::new(|| Family::new(names::REJECTED, "reason", &["already-issued", "sold-out", "discarded"]));

/// See [`names`].
pub static RECOVERIES: LazyLock<Family> = LazyLock::new(|| {
    Family::new(names::RECOVERIES, "result", &["verified", "rebuilt", "superseded", "failed"])
});

/// See [`names`].
pub static REDEEMED: LazyLock<Family> =
    LazyLock::new(|| Family::new(names::REDEEMED, "change", &["used", "restored", "revoked"]));

/// See [`names`].
pub static REDEMPTION_REFUSED: LazyLock<Family> = LazyLock::new(|| {
    Family::new(names::REDEMPTION_REFUSED, "code", &["already-used", "not-used", "expired", "revoked"])
});

/// See [`names::CACHE_LOOKUPS`].
pub static OUTCOME_CACHE: LazyLock<CacheLookups> = LazyLock::new(|| CacheLookups::new("outcomes"));

/// See [`names::CACHE_LOOKUPS`].
pub static USER_CACHE: LazyLock<CacheLookups> = LazyLock::new(|| CacheLookups::new("users"));

/// See [`names::CACHE_LOOKUPS`].
pub static TOKEN_CACHE: LazyLock<CacheLookups> = LazyLock::new(|| CacheLookups::new("tokens"));

/// See [`names`].
pub static CREDENTIALS_STALE: LazyLock<Family> =
    LazyLock::new(|| Family::new(names::CREDENTIALS_STALE, "source", &CREDENTIAL_SOURCES));

/// Where credentials are read from.
const CREDENTIAL_SOURCES: [&str; 2] = ["keys", "tokens"];

/// See [`names::CREDENTIALS_STALE_SECONDS`].
pub fn credentials_stale_for(source: &'static str, age: Duration) {
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

    /// Counts one of `value`, which is known.
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

    /// It was there.
    pub fn hit(&self) {
        self.hits.increment(1);
    }

    /// It was not.
    pub fn miss(&self) {
        self.misses.increment(1);
    }
}
