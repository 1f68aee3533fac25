//! `couponctl rush`: rehearses a campaign and judges the result.

mod progress;
mod tables;

use std::path::PathBuf;

use anyhow::Context;
use clap::{ArgAction, Args};

use self::progress::RunProgress;
use self::tables::tables;
use super::client::{API_URL_FLAG, ApiUrl, BearerToken, Confidential, TOKEN_FLAG, print};
use super::output::{self, ExistingFile};
use crate::coupon::MAX_TOTAL;
use crate::failure::{Fault, SetUpError};
use crate::ids::{CouponId, SHARES_MAX};
use crate::issuance::Ledger;
use crate::mongo;
use crate::runtime::{fd_limit, shutdown};
use crate::rush::arrivals::ArrivalShape;
use crate::rush::expect::Expectation;
use crate::rush::report::RunReport;
use crate::rush::run::RunSettings;
use crate::rush::virtual_users::{FollowMode, RetryPolicy};
use crate::rush::{run, verdict};

const DURATION_SECONDS: f64 = 10.0;
const USERS: u64 = 10_000;
const REQUESTS_MAX: f64 = 10_000_000.0;
const USERS_MAX: i64 = 2_000_000;

/// Rehearses a campaign against a deployment, and judges the result.
///
/// The rush sends each request when it is planned, however slow the service is, and follows every accepted one to its
/// outcome. Then it compares what users were told with what the service holds. Each user sends an Idempotency-Key of
/// this run, so that a repeated request is the same attempt.
///
/// Each user comes once. Two of --users, --rate and --duration determine the third; with all three, users come again
/// in turn. Ctrl-C ends the sending, and the rush judges what it has sent.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  couponctl rush --users 20000 --duration 5
  couponctl rush --coupon summer --user-prefix u --users 1000 --rate 200
  couponctl rush --users 100000 --arrivals spike --double-clicks 0.1 --early-birds 0.05 \\
      --expect 'accept.p99<500ms' --expect 'dropped<=0' --report rush.html

An expectation compares (<, <=, >, >=) one of these figures with a value: accept, refuse,
outcome or send with .p50, .p90, .p99, .p999 or .max (a time: us, ms, s); sellout, drain (a
time); dropped, faults, backlog.peak; rate.offered, rate.accepted, rate.issued (per second).

Exit codes:
  0  every promise was kept, every expectation met
  1  the rush failed
  2  the command line is wrong
  3  an expectation was missed
  4  a promise was broken: oversold, duplicates, lost, stuck, unexpected or indeterminate
  5  the run could not be set up")]
pub(super) struct RushArgs {
    /// URL of the API to load
    #[arg(
        long,
        alias = "api-url",
        env = "COUPON_API_URL",
        default_value = "http://127.0.0.1:3000",
        value_name = "URL"
    )]
    url: Confidential,

    /// Operator's API key, which the rush sends with every request
    #[arg(long, env = "COUPON_TOKEN")]
    token: Option<Confidential>,

    /// How requests are spread over the duration
    #[arg(long, value_enum, default_value = "constant")]
    arrivals: ArrivalShape,

    /// Requests per second, on average
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,

    /// Seconds from the first request to the last (default: 10)
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    duration: Option<f64>,

    /// Number of users, 1 to 2000000, whom the rush registers (default: 10000)
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=USERS_MAX as u64))]
    users: Option<u64>,

    /// Use existing users, whose ids are this prefix and a number from 0
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    user_prefix: Option<String>,

    /// Request this existing coupon instead of a new one
    #[arg(long, value_name = "ID", conflicts_with = "total")]
    coupon: Option<CouponId>,

    /// Units of the new coupon (default: half the number of users)
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=u64::from(MAX_TOTAL)))]
    total: Option<u64>,

    /// Shares of the new coupon: parts of the data that sell it at the same time (default: the service chooses)
    #[arg(long, value_name = "N", conflicts_with = "coupon", value_parser = clap::value_parser!(u32).range(1..=SHARES_MAX as i64))]
    shares: Option<u32>,

    /// Share of requests, 0 to 1, that users send twice within milliseconds
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    double_clicks: f64,

    /// Share of users, 0 to 1, who also come before the coupon opens
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    early_birds: f64,

    /// What users do after a 429, a 503 or no answer
    #[arg(long, value_enum, default_value = "none")]
    retry: RetryPolicy,

    /// How users learn their outcome
    #[arg(long, value_enum, default_value = "poll")]
    follow: FollowMode,

    /// Seed of an earlier run, to make the same plan (default: random; the report shows it)
    #[arg(long)]
    seed: Option<u32>,

    /// Connections for requests; half as many more follow accepted requests
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    connections: u64,

    /// Most requests that are due and unanswered; the rush drops and counts those beyond
    #[arg(long, value_name = "REQUESTS", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    in_flight_max: u64,

    /// Seconds to wait for an answer at most
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = positive)]
    answer_max: f64,

    /// Seconds to follow undecided requests at most, from the last request
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = positive)]
    drain_max: f64,

    /// Users whose holdings the rush reads after the run, at most
    #[arg(long, value_name = "USERS", default_value_t = 10_000)]
    verify: u64,

    /// URI of the MongoDB with the ledger, to judge by the ledger too
    #[arg(long, env = "COUPON_MONGODB_URI", value_name = "URI")]
    mongodb_uri: Option<String>,

    /// Name of the ledger's database
    #[arg(long, env = "COUPON_MONGODB_DATABASE", default_value = "coupon", value_name = "NAME")]
    mongodb_database: String,

    /// Expectation that the figures must meet, such as 'accept.p99<50ms'; may be repeated
    #[arg(long, value_name = "EXPECTATION", action = ArgAction::Append)]
    expect: Vec<Expectation>,

    /// Write a report with plots to this file, a self-contained page
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,

    /// Print the report as JSON instead of tables
    #[arg(long)]
    json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1e7 => Ok(value),
        _ => Err("must be a number above 0".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("must be a number from 0 to 1".into()),
    }
}

fn prefix(text: &str) -> Result<String, String> {
    // With the largest number that may follow the prefix.
    format!("{text}{USERS_MAX}").parse::<crate::ids::UserId>().map(|_| text.to_owned())
}

impl RushArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let settings = self.settings()?;
        let ledger = self.ledger().await?;
        // If the report cannot be written, the user must hear it before the run.
        let opened = self.report.as_deref().map(|path| {
            let file = output::open(path, ExistingFile::Append);
            file.map_err(|error| {
                SetUpError(vec![format!("cannot write {} (--report): {error}", path.display())])
            })
        });
        let page_file = opened.transpose()?;
        fd_limit::raise_limit();
        let stop = shutdown::on_signal()?;
        let progress = RunProgress::new(&settings);
        let measured = run::run(&settings, &stop, &|phase, seen| progress.tell(phase, seen)).await?;
        let users_max = usize::try_from(self.verify).unwrap_or(usize::MAX);
        let verdict = verdict::judge(&settings, &measured, users_max, ledger.as_ref()).await;
        progress.end();
        let verdict = verdict.context("the run cannot be judged")?;
        let report = RunReport::new(settings, measured, verdict, &self.expect);
        if let (Some(path), Some((_, file))) = (&self.report, page_file) {
            let page = report.html()?;
            let written = std::fs::write(path, page).and_then(|()| file.keep());
            written.with_context(|| format!("cannot write {}", path.display()))?;
        }
        print(&if self.json { serde_json::to_string_pretty(&report)? } else { tables(&report) })?;
        judged(&report)
    }

    /// The ledger, if `--mongodb-uri` is given. One query shows before the run whether it answers.
    async fn ledger(&self) -> anyhow::Result<Option<Ledger>> {
        let Some(uri) = &self.mongodb_uri else { return Ok(None) };
        let wrong =
            |why: String| SetUpError(vec![format!("the ledger cannot be read (--mongodb-uri): {why}")]);
        let database = mongo::connect(uri, &self.mongodb_database).await;
        let ledger = Ledger::new(&database.map_err(wrong)?);
        let any = "rush".parse().map_err(wrong)?;
        ledger.issued_count(&any).await.map_err(|failure| wrong(failure.chain()))?;
        Ok(Some(ledger))
    }

    fn settings(&self) -> anyhow::Result<RunSettings> {
        let (users, rate, duration) = (self.users.map(|users| users as f64), self.rate, self.duration);
        let (users, requests, duration) = match (users, rate, duration) {
            (Some(users), Some(rate), Some(duration)) => (users, rate * duration, duration),
            (Some(users), Some(rate), None) => (users, users, users / rate),
            (Some(users), None, duration) => (users, users, duration.unwrap_or(DURATION_SECONDS)),
            (None, Some(rate), duration) => {
                let duration = duration.unwrap_or(DURATION_SECONDS);
                (rate * duration, rate * duration, duration)
            }
            (None, None, duration) => (USERS as f64, USERS as f64, duration.unwrap_or(DURATION_SECONDS)),
        };
        let (users, requests) = (users.ceil(), requests.ceil());
        let fits = requests <= REQUESTS_MAX && users <= USERS_MAX as f64;
        if !fits {
            let why = format!(
                "{requests} requests of {users} users: there can be {REQUESTS_MAX} of {USERS_MAX} at most\n"
            );
            return Err(clap::Error::raw(clap::error::ErrorKind::ValueValidation, why).into());
        }
        let ms = |seconds: f64| (seconds * 1_000.0) as u64;
        Ok(RunSettings {
            url: self.url.read::<ApiUrl>(API_URL_FLAG)?.to_string(),
            token: match &self.token {
                Some(token) => Some(token.read::<BearerToken>(TOKEN_FLAG)?.as_str().to_owned()),
                None => None,
            },
            arrivals: self.arrivals,
            requests: requests as usize,
            users: users as usize,
            duration_ms: ms(duration).max(1),
            user_prefix: self.user_prefix.clone(),
            coupon: self.coupon.as_ref().map(ToString::to_string),
            total: self.total.unwrap_or((users as u64 / 2).clamp(1, MAX_TOTAL.into())),
            shares: self.shares,
            double_clicks: self.double_clicks,
            early_birds: self.early_birds,
            retry: self.retry,
            follow: self.follow,
            seed: self.seed.unwrap_or_else(rand::random).into(),
            connections: self.connections as usize,
            in_flight_max: usize::try_from(self.in_flight_max).unwrap_or(usize::MAX),
            answer_max_ms: ms(self.answer_max).max(1),
            drain_max_ms: ms(self.drain_max),
        })
    }
}

/// Turns the verdict into the result of the command.
fn judged(report: &RunReport) -> anyhow::Result<()> {
    let broken: Vec<String> = report
        .verdict
        .judged
        .iter()
        .filter(|one| !one.ok)
        .map(|one| format!("{} {} ({})", one.count, one.what, one.means))
        .collect();
    if !broken.is_empty() {
        return Err(Fault::Invariant(format!("broken: {}", broken.join("; "))).into());
    }
    let missed: Vec<String> =
        report.expectations.iter().filter(|met| !met.ok).map(ToString::to_string).collect();
    if missed.is_empty() {
        Ok(())
    } else {
        Err(Fault::Threshold(format!("missed: {}", missed.join("; "))).into())
    }
}
