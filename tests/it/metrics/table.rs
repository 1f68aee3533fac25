//! The actions that move metrics, and which metric each moves.

use coupon_system::metrics::names;

/// An action that moves metrics. Those of the worker are read from a new worker process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MetricAction {
    /// Three requests for a new coupon are accepted while no worker runs.
    Accept,
    /// A poll waits for one of them, which no worker decides.
    Wait,
    /// A user repeats one of the requests.
    Repeat,
    /// Requests for coupons that are sold out, ended and not open, by an unknown user, and for an unknown route.
    Refuse,
    /// An operator creates sixty coupons.
    MakeMany,
    /// A worker starts and decides what is queued.
    StartWorker,
    /// Three more requests come, and then a worker.
    Issue,
    /// A user polls an outcome twice.
    Poll,
    /// A service uses an issued coupon, uses it with another reference, undoes the use twice, and revokes it.
    Redeem,
    /// A request is accepted for the last unit, which the ledger gives to another user.
    Reject,
    /// A worker dies with an entry in hand.
    Die,
    /// The test trims the stream.
    Trim,
    /// MongoDB refuses a record.
    Poison,
    /// The ledger accepts no records.
    Break,
    /// One address opens more connections than it may.
    Crowd,
    /// Forty users ask while Redis makes them wait.
    Press,
    /// An API has said that callers wait, and a worker comes to a long queue.
    MakeWay,
    /// One user exceeds the rate limit.
    Hammer,
    /// The API uses a second of processor time.
    Work,
    /// A key that is used has a day to live.
    ExpireKey,
    /// The secret of users' tokens becomes unusable.
    SpoilSecret,
    /// The certificate is deleted until this API has rebuilt the data.
    Recover,
    /// The ledger gets a record that Redis does not know.
    InsertLate,
    /// Redis rewrites its append-only file, a key a second.
    Rewrite,
    /// The process that rewrites the append-only file is killed.
    KillRewrite,
    /// The append-only file grows, and then nothing happens.
    Grow,
    /// Redis becomes a replica of a server that does not exist.
    Follow,
    /// The certificate is closed, and another holder has the lease.
    Uncertify,
    LoseRedis,
    /// The deployment gets two more partitions, the API starts anew, and a user requests a coupon in one of them.
    Spread,
    /// The same, with a coupon of two units in two shares, which three users of one share want.
    EmptyShare,
}

/// How a metric moves.
#[derive(Debug, Clone, Copy)]
pub enum Movement {
    Up,
    To(f64),
}

/// The process that serves the metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MetricSource {
    Api,
    Worker,
}

/// A metric, the labels of its series, the action that must move it, the process that serves it, and the movement.
pub type MetricRow = (&'static str, &'static [&'static str], MetricAction, MetricSource, Movement);

pub const ROWS: &[MetricRow] = {
    use MetricAction::*;
    use MetricSource::{Api, Worker};
    use Movement::*;
    &[
        (
            names::REQUESTS,
            &["method=\"POST\"", "route=\"/user-coupons\"", "code=\"202\"", "problem=\"\""],
            Accept,
            Api,
            Up,
        ),
        (
            names::REQUEST_SECONDS,
            &["method=\"POST\"", "route=\"/user-coupons\"", "code=\"2xx\""],
            Accept,
            Api,
            Up,
        ),
        (names::RESERVE_BATCH, &[], Accept, Api, Up),
        (names::RESERVE_SECONDS, &[], Accept, Api, Up),
        (names::ACCEPTED, &[], Accept, Api, Up),
        (names::BACKLOG, &[], Accept, Api, To(3.0)),
        (names::STREAM_ENTRIES, &[], Accept, Api, To(3.0)),
        (names::OLDEST_AGE_SECONDS, &[], Accept, Api, Up),
        (names::STOCK_TOTAL, &["coupon=\"queued\""], Accept, Api, To(9.0)),
        (names::STOCK_REMAINING, &["coupon=\"queued\""], Accept, Api, To(6.0)),
        (names::STOCK_RESERVED, &["coupon=\"queued\""], Accept, Api, To(3.0)),
        (names::CACHE_ENTRIES, &["cache=\"users\""], Accept, Api, Up),
        (names::WAITERS, &[], Wait, Api, To(1.0)),
        (names::REPLAYED, &[], Repeat, Api, Up),
        (names::CACHE_LOOKUPS, &["cache=\"users\"", "result=\"hit\""], Repeat, Api, Up),
        (names::CACHE_LOOKUPS, &["cache=\"users\"", "result=\"miss\""], Refuse, Api, Up),
        (names::REFUSED, &["problem=\"sold-out\""], Refuse, Api, Up),
        (names::REFUSED, &["problem=\"ended\""], Refuse, Api, Up),
        (names::REFUSED, &["problem=\"not-started\""], Refuse, Api, Up),
        (names::REQUESTS, &["code=\"404\"", "problem=\"user-not-found\""], Refuse, Api, Up),
        (
            names::REQUESTS,
            &["method=\"other\"", "route=\"unmatched\"", "code=\"404\"", "problem=\"not-found\""],
            Refuse,
            Api,
            Up,
        ),
        (names::CONNECTIONS, &[], Crowd, Api, Up),
        (names::DROPPED, &["reason=\"address\""], Crowd, Api, Up),
        (names::PRESSED, &[], Press, Api, Up),
        (names::RESTS, &[], MakeWay, Worker, Up),
        (names::LIMITED, &["limit=\"user\""], Hammer, Api, Up),
        (names::STOCK_LEFT_OUT, &[], MakeMany, Api, Up),
        (names::RESIDENT_BYTES, &[], StartWorker, Worker, Up),
        (names::OPEN_FDS, &[], StartWorker, Worker, Up),
        (names::START_SECONDS, &[], StartWorker, Worker, Up),
        (names::BUILD_INFO, &["version=\"0.1.0\""], StartWorker, Worker, To(1.0)),
        (names::WORKERS_ALIVE, &[], Issue, Api, Up),
        (names::ISSUED, &[], Issue, Worker, To(3.0)),
        (names::LEDGER_INSERT_SECONDS, &[], Issue, Worker, Up),
        (names::SETTLE_SECONDS, &[], Issue, Worker, Up),
        (names::STOCK_ISSUED, &["coupon=\"newest\""], Issue, Api, To(3.0)),
        (names::CACHE_ENTRIES, &["cache=\"outcomes\""], Issue, Api, Up),
        (names::CACHE_LOOKUPS, &["cache=\"outcomes\"", "result=\"hit\""], Poll, Api, Up),
        (names::CACHE_LOOKUPS, &["cache=\"outcomes\"", "result=\"miss\""], Poll, Api, Up),
        (names::REDEEMED, &["change=\"used\""], Redeem, Api, To(1.0)),
        (names::REDEEMED, &["change=\"restored\""], Redeem, Api, To(1.0)),
        (names::REDEEMED, &["change=\"revoked\""], Redeem, Api, To(1.0)),
        (names::REDEMPTION_REFUSED, &["problem=\"already-used\""], Redeem, Api, To(1.0)),
        (names::REDEMPTION_REFUSED, &["problem=\"not-used\""], Redeem, Api, To(1.0)),
        (names::REJECTED, &["reason=\"sold-out\""], Reject, Worker, To(1.0)),
        (names::ACCEPTED_NOT_ISSUED, &[], Reject, Worker, To(1.0)),
        (names::CLAIMED, &[], Die, Worker, To(1.0)),
        (names::RESTORED, &[], Trim, Worker, To(1.0)),
        (names::DEAD_LETTERED, &[], Poison, Worker, To(1.0)),
        (names::DEAD_LETTERS, &[], Poison, Worker, To(1.0)),
        (names::BACKLOG, &[], Poison, Worker, To(0.0)),
        (names::OLDEST_AGE_SECONDS, &[], Poison, Worker, To(0.0)),
        (names::BREAKER_OPEN, &[], Break, Worker, To(1.0)),
        (names::BREAKER_OPENED, &[], Break, Worker, To(1.0)),
        (names::CPU_SECONDS, &[], Work, Api, Up),
        (names::CREDENTIALS_STALE, &["source=\"tokens\""], SpoilSecret, Api, Up),
        (names::CREDENTIALS_STALE_SECONDS, &["source=\"tokens\""], SpoilSecret, Api, Up),
        (names::KEYS_EXPIRING, &[], ExpireKey, Api, To(1.0)),
        (names::AUDITED, &[], InsertLate, Api, Up),
        (names::AUDIT_LAST, &[], InsertLate, Api, Up),
        (names::AUDIT_FINDINGS, &["finding=\"record-not-counted\""], InsertLate, Api, Up),
        (names::ADOPTED, &[], InsertLate, Api, Up),
        (names::RECOVERIES, &["result=\"rebuilt\""], Recover, Api, Up),
        (names::RECOVERY_SECONDS, &[], Recover, Api, Up),
        (names::LOST, &[], Recover, Api, Up),
        (names::AOF_REWRITING, &[], Rewrite, Api, To(1.0)),
        (names::FORK_SECONDS, &[], Rewrite, Api, Up),
        (names::AOF_REWRITE_SECONDS, &[], Rewrite, Api, Up),
        (names::AOF_BASE_BYTES, &[], Rewrite, Api, Up),
        (names::AOF_REWRITE_FAILED, &[], KillRewrite, Api, To(1.0)),
        (names::AOF_BYTES, &[], Grow, Api, Up),
        (names::REWRITES_ASKED, &["reason=\"quiet\""], Grow, Api, Up),
        (names::WRITABLE, &[], Follow, Api, To(0.0)),
        (names::CERTIFIED, &[], Uncertify, Api, To(0.0)),
        (names::PARTITION_CERTIFIED, &[], Spread, Api, To(3.0)),
        (names::PARTITION_BACKLOG, &[], Spread, Api, To(1.0)),
        (names::DRY, &[], EmptyShare, Api, Up),
        (names::HELD_SECONDS, &[], EmptyShare, Api, Up),
        (names::MOVED, &[], EmptyShare, Api, To(1.0)),
        (names::DRAINED, &[], EmptyShare, Api, Up),
        (names::STALE, &[], LoseRedis, Api, To(1.0)),
        (names::UNLIMITED, &[], LoseRedis, Api, Up),
    ]
};
