//! The table of metrics: every name with its kind, its labels, what bounds their values, and its help text,
//! which is the documentation of its constant too. A test holds that nothing else is exported.

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// The name ends with its unit (`_seconds`, `_bytes`, `_units`), a counter's with `_total`.
    pub name: &'static str,
    pub kind: Kind,
    /// Each label, and the set that its values come from.
    pub labels: &'static [(&'static str, &'static str)],
    pub help: &'static str,
}

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// The upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// Of one call or request.
const LATENCY: Kind = Kind::Histogram(&[
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
]);
/// Of one batch of at most 256.
const BATCH: Kind = Kind::Histogram(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]);
/// Of a recovery: from nothing to millions of records.
const OUTAGE: Kind = Kind::Histogram(&[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]);
const COUNTER: Kind = Kind::Counter;
const GAUGE: Kind = Kind::Gauge;

macro_rules! metrics {
    ($($name:ident $kind:ident $text:literal [$($label:literal: $bound:literal),*] $help:literal;)*) => {
        $(#[doc = $help] pub const $name: &str = $text;)*

        /// Every metric, in the order of the table.
        pub const ALL: &[Metric] = &[$(Metric {
            name: $text,
            kind: $kind,
            labels: &[$(($label, $bound)),*],
            help: $help,
        },)*];
    };
}

metrics! {
    // Requests, of an API or of a worker's own listener.
    REQUESTS COUNTER "http_requests_total"
        ["method": "eight", "route": "templates, or unmatched", "code": "statuses of the API", "problem": "the problem codes, or empty"]
        "Requests that the process answered, by route template, HTTP status code and problem code.";
    REQUEST_SECONDS LATENCY "http_request_duration_seconds"
        ["method": "eight", "route": "templates, or unmatched", "code": "1xx to 5xx"]
        "Seconds from the head of a request to its answer, by the class of the HTTP status code: code=~\"5..\" selects here what it selects of http_requests_total.";
    CONNECTIONS GAUGE "http_connections_open" []
        "Open connections of clients. Add the processes up.";
    DROPPED COUNTER "http_connections_dropped_total" ["reason": "four"]
        "Connections that the server closed because of the client: slow-head (a request did not arrive in time), slow-reader (the client did not read an answer), address (one address had too many connections), crowd (the connection was idle, and the server needed its place).";
    LIMITED COUNTER "http_rate_limited_total" ["limit": "user, address, held"]
        "Requests that the API answered with 429, by the limit that they exceeded.";
    UNLIMITED COUNTER "http_rate_limit_unanswered_total" []
        "Requests that the rate limiter admitted because Redis did not answer it.";

    // Reserving, in an API.
    RESERVE_BATCH BATCH "coupon_reserve_batch_requests" []
        "Requests that shared one call of the reserve script.";
    RESERVE_SECONDS LATENCY "coupon_reserve_seconds" []
        "Seconds of a call of the reserve script, including fsync and the round trip to Redis; failed calls count too.";
    PRESSED COUNTER "coupon_pressed_windows_total" []
        "Tenths of a second in which callers waited long at this API until they were accepted, or were turned away: workers make way for them.";
    ACCEPTED COUNTER "coupon_accepted_total" []
        "Requests that the API accepted: it reserved a unit and queued the issuance, which is not issued yet.";
    REPLAYED COUNTER "coupon_replayed_total" []
        "Requests that the API recognised as repetitions of an earlier one.";
    REFUSED COUNTER "coupon_refused_total" ["problem": "nine"]
        "Requests that the reserve script refused, by problem code. sold-out, already-issued, not-started, ended, paused, archived and key-reused are normal business; overloaded (the backlog is full) and unavailable (what Redis holds for the request is damaged) are incidents. Those that the API refused before (unknown users, invalid requests) are in http_requests_total alone.";

    // Deciding and settling, in a worker.
    LEDGER_INSERT_SECONDS LATENCY "coupon_ledger_insert_seconds" []
        "Seconds of an insert of one batch into the ledger, until a majority has journalled it; failed inserts count too.";
    SETTLE_SECONDS LATENCY "coupon_settle_seconds" []
        "Seconds of a call of the settle script, for one batch; failed calls count too.";
    ISSUED COUNTER "coupon_issued_total" []
        "Issuances that the worker settled as issued.";
    REJECTED COUNTER "coupon_rejected_total" ["reason": "those of a rejection"]
        "Issuances that were accepted and then settled as rejected, by reason. discarded is what an operator decided. already-issued and sold-out are incidents, unlike those problems of coupon_refused_total: Redis had lost data. Alert on any increase of them.";
    ACCEPTED_NOT_ISSUED COUNTER "coupon_accepted_not_issued_total" []
        "Accepted requests that ended without a coupon: a user was answered 202 and then rejected, for any reason (coupon_rejected_total says which).";
    MOVED COUNTER "coupon_moved_units_total" []
        "Units that were moved from one share of a coupon to another, which had none left.";
    DRY COUNTER "coupon_dry_requests_total" []
        "Requests that found their share of a coupon empty while another share might have had a unit. They are held until a unit is moved there, or all shares are found empty (coupon_held_request_seconds).";
    HELD_SECONDS LATENCY "coupon_held_request_seconds" []
        "Seconds that requests were held because their share of a coupon was empty.";
    DRAINED COUNTER "coupon_drained_total" []
        "Times that this process found every share of a coupon empty at one instant, and told the shares: for half a second each answers by itself that the coupon is sold out.";
    CLAIMED COUNTER "coupon_claimed_entries_total" []
        "Queue entries that the worker took over from workers that are gone.";
    RESTORED COUNTER "coupon_restored_entries_total" []
        "Queue entries that were missing from the stream and that a worker appended again. Only damage to Redis causes it.";
    DEAD_LETTERED COUNTER "coupon_dead_lettered_total" []
        "Entries that a worker made dead letters because MongoDB refused them or their coupon is missing.";
    BREAKER_OPEN GAUGE "coupon_worker_breaker_open" []
        "1 while the worker's circuit breaker is open: the worker can decide nothing and reads nothing. A process that runs several workers reports how many breakers are open. Add the processes up.";
    RESTS COUNTER "coupon_worker_rests_total" []
        "Rests of the worker between two batches, because an API said that callers wait: it drains a part of the time, so that they do not.";
    BREAKER_OPENED COUNTER "coupon_worker_breaker_opened_total" []
        "Times that a worker's breaker opened.";

    // Redemption, in an API.
    REDEEMED COUNTER "coupon_redemptions_total" ["change": "used, restored, revoked"]
        "Changes of held coupons: used, a use undone (restored), revoked. Repetitions of the same request do not count.";
    REDEMPTION_REFUSED COUNTER "coupon_redemptions_refused_total" ["problem": "already-used, not-used, expired, revoked"]
        "Changes of held coupons that the API refused, by problem code.";

    // The queue, as every process reads it from Redis.
    BACKLOG GAUGE "coupon_backlog_issuances" []
        "Accepted issuances that are not decided, without dead letters. Take the max over processes.";
    DEAD_LETTERS GAUGE "coupon_dead_letters" []
        "Dead letters: entries that workers set aside, for an operator to redrive or discard. Take the max over processes.";
    STREAM_ENTRIES GAUGE "coupon_stream_entries" []
        "Entries in the stream, including those of dead letters; an entry may hold many issuances. Take the max over processes.";
    OLDEST_AGE_SECONDS GAUGE "coupon_oldest_in_flight_age_seconds" []
        "Seconds since the acceptance of the oldest undecided request, without dead letters; 0 if there is none. Take the max over processes.";
    WORKERS_ALIVE GAUGE "coupon_workers_alive" []
        "Workers with a fresh heartbeat. Take the max over processes.";

    // Each partition by itself, if there are several; the other gauges are of all of them together.
    PARTITION_CERTIFIED GAUGE "coupon_partition_certified" ["partition": "one for each, 1,025 at most"]
        "1 while the data of this partition is certified; else the API answers 503 to requests for its coupons. Not exported if there is only one partition. Take the min over processes.";
    PARTITION_BACKLOG GAUGE "coupon_partition_backlog_issuances" ["partition": "one for each, 1,025 at most"]
        "Accepted issuances of this partition that are not decided, without dead letters. Not exported if there is only one partition. Take the max over processes.";

    // Stock of the newest current coupons, as every process reads it from Redis.
    STOCK_TOTAL GAUGE "coupon_stock_total_units" ["coupon": "the newest fifty current ones"]
        "Units of the coupon. Take the max over processes.";
    STOCK_REMAINING GAUGE "coupon_stock_remaining_units" ["coupon": "the newest fifty current ones"]
        "Free units of the coupon. Take the max over processes.";
    STOCK_RESERVED GAUGE "coupon_stock_reserved_units" ["coupon": "the newest fifty current ones"]
        "Units of the coupon that are reserved and not decided. Take the max over processes.";
    STOCK_ISSUED GAUGE "coupon_stock_issued_units" ["coupon": "the newest fifty current ones"]
        "Issued units of the coupon. Take the max over processes.";
    STOCK_LEFT_OUT GAUGE "coupon_stock_left_out_coupons" []
        "Current coupons whose stock is not exported, because there are more than fifty. Take the max over processes.";

    // Recovery.
    CERTIFIED GAUGE "coupon_certified" []
        "1 while the data in Redis is certified; 0 while it is not, or Redis does not answer. While it is 0, the API answers 503 to requests. Take the min over processes.";
    WRITABLE GAUGE "coupon_redis_writable" []
        "1 while Redis accepts the writes of a request; 0 while it is not certified, does not answer, or refuses them: it is a replica (READONLY), its disk or its memory is full (MISCONF, OOM), or it lacks replicas (NOREPLICAS). Take the min over processes.";
    RECOVERIES COUNTER "coupon_recoveries_total" ["result": "four"]
        "Recoveries by this process: verified (the data was intact), rebuilt, superseded by another process, failed.";
    RECOVERY_SECONDS OUTAGE "coupon_recovery_seconds" []
        "Seconds of a recovery, whatever its result.";
    LOST COUNTER "coupon_lost_answers_total" []
        "Polls that the API answered with 404 for an id that is older than the last recovery of Redis's data: Redis lost the accepted request, or the id is made up. Each poll of a client counts.";
    STALE GAUGE "coupon_figures_stale" []
        "1 if the last attempt to read queue, stock or certificate failed: their gauges then show older values. Take the max over processes.";

    // Redis's append-only file, as every process reads it from Redis.
    AOF_BYTES GAUGE "coupon_redis_aof_bytes" []
        "Size of Redis's append-only file. Take the max over processes.";
    AOF_BASE_BYTES GAUGE "coupon_redis_aof_base_bytes" []
        "Size of the append-only file after its last rewrite, or at the start of Redis if that was later. What lies between this and its size now goes with the next rewrite. Take the max over processes.";
    AOF_REWRITING GAUGE "coupon_redis_aof_rewriting" []
        "1 while Redis rewrites its append-only file; requests may take longer meanwhile. Take the max over processes.";
    AOF_REWRITE_FAILED GAUGE "coupon_redis_aof_rewrite_failed" []
        "1 if Redis's last rewrite of the append-only file failed: its log says why. Until one succeeds the file grows. Take the max over processes.";
    AOF_REWRITE_SECONDS GAUGE "coupon_redis_aof_last_rewrite_seconds" []
        "Seconds of the last rewrite of the append-only file, in whole seconds; 0 if there was none since Redis started. Take the max over processes.";
    FORK_SECONDS GAUGE "coupon_redis_last_fork_seconds" []
        "Seconds for which Redis stood still to fork for its last rewrite; 0 if there was none since Redis started. Take the max over processes.";
    REWRITES_ASKED COUNTER "coupon_redis_aof_rewrites_asked_total" ["reason": "quiet, before-opening, need"]
        "Rewrites of the append-only file that this API asked Redis for: at a quiet time (quiet), up to ten minutes before a coupon opens (before-opening), or because the file had outgrown its bound (need).";

    // Audits, of an API: the processes take turns.
    AUDITED COUNTER "coupon_audited_coupons_total" []
        "Loaded coupons whose accounts the process compared with the ledger.";
    AUDIT_FINDINGS COUNTER "coupon_audit_findings_total" ["finding": "those of couponctl audit"]
        "Findings of audits, by their code. A finding that is not repaired counts in each audit. Alert on any increase.";
    ADOPTED COUNTER "coupon_audit_adopted_total" []
        "Records that an audit counted late: a worker wrote them after a recovery had read the ledger.";
    AUDIT_LAST GAUGE "coupon_audit_last_timestamp_seconds" []
        "Unix time at which this process last completed an audit of all loaded coupons; 0 if it never did. Take the max over processes.";

    // Access, of an API.
    CREDENTIALS_STALE COUNTER "coupon_credentials_stale_total" ["source": "keys, tokens"]
        "Failed attempts to refresh API keys, or the keys of users' tokens: the process goes on with the older ones. Alert on a lasting increase: credentials revoked meanwhile still work.";
    CREDENTIALS_STALE_SECONDS GAUGE "coupon_credentials_stale_seconds" ["source": "keys, tokens"]
        "Seconds since the process could last refresh its API keys, or the keys of users' tokens; 0 while it can. Take the max over processes.";
    KEYS_EXPIRING GAUGE "coupon_keys_expiring" []
        "API keys that expire within seven days and were used within the last one. Their owners need new ones. Take the max over processes.";

    // Waiters and caches, of an API.
    WAITERS GAUGE "coupon_waiters" []
        "Requests and streams that wait for an outcome. Add the processes up.";
    CACHE_LOOKUPS COUNTER "coupon_cache_lookups_total" ["cache": "outcomes, users, tokens", "result": "hit, miss"]
        "Lookups in the caches of outcomes, of registered users and of verified tokens.";
    CACHE_ENTRIES GAUGE "coupon_cache_entries" ["cache": "outcomes, users, tokens"]
        "Entries in the caches of outcomes, of registered users and of verified tokens. Add the processes up.";

    // The process.
    BUILD_INFO GAUGE "coupon_build_info" ["version": "one", "revision": "one, or empty"]
        "1, labelled with the version of the program and, if COUPON_REVISION named it to the build, with the revision of its source.";
    RESIDENT_BYTES GAUGE "process_resident_memory_bytes" []
        "Resident memory of the process, in bytes.";
    OPEN_FDS GAUGE "process_open_fds" []
        "Open file descriptors of the process.";
    CPU_SECONDS COUNTER "process_cpu_seconds_total" []
        "User and system processor time of the process, in seconds.";
    START_SECONDS GAUGE "process_start_time_seconds" []
        "Start time of the process, in seconds since the Unix epoch.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_end_as_prometheus_wants_them_to() {
        let mut names: Vec<_> = ALL.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }

    #[test]
    fn a_gauge_says_how_to_put_those_of_several_processes_together() {
        const RULES: [&str; 3] =
            ["Take the max over processes.", "Take the min over processes.", "Add the processes up."];
        // Those of the process itself are known to everybody, by Prometheus's own names.
        let own = |metric: &Metric| metric.name.starts_with("process_") || metric.name == BUILD_INFO;
        for gauge in ALL.iter().filter(|metric| metric.kind == Kind::Gauge && !own(metric)) {
            assert!(RULES.iter().any(|rule| gauge.help.ends_with(rule)), "{}: {}", gauge.name, gauge.help);
        }
    }
}
