//! `couponctl issue` and `couponctl issuance`: requesting a coupon, and what becomes of a request.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{ApiArgs, ApiRequest, ApiResponse, CallError, Noun, PrintingClient};
use super::table::{clean, details, value};
use crate::ids::{CouponId, IssuanceId, UserId};
use crate::issuance::IdempotencyKey;

/// The least and the most pause between two polls, whatever the API advises.
const POLL_MIN: Duration = Duration::from_millis(20);
const POLL_MAX: Duration = Duration::from_secs(5);
/// The pause after a poll that met a temporary problem.
const POLL_AFTER_PROBLEM: Duration = Duration::from_secs(1);

/// Requests a coupon for a user.
///
/// An accepted request is not yet issued: --wait waits for the decision, and the exit code is then 1 if the request is
/// rejected or not decided in time. The command is safe to repeat while the request is queued, and with the same --key
/// for ever.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  couponctl issue u1 summer --wait
  couponctl issue u1 summer --key order-42")]
pub(super) struct IssueArgs {
    /// The user's id
    user: UserId,
    /// The coupon's id
    coupon: CouponId,
    /// Idempotency key of this attempt: requests with the same key have the same outcome for ever
    #[arg(long, value_parser = idempotency_key)]
    key: Option<String>,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum IssuanceVerb {
    /// Shows what became of a request: queued, issued or rejected
    #[command(after_long_help = "\
Example:
  couponctl issuance show 01a206a0-caad-7000-95cf-bcf9c90eb941")]
    Show {
        /// Id that the API gave the request
        id: IssuanceId,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

/// How long to wait for a decision.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct WaitArgs {
    /// Wait for the decision, this many seconds at most (30 if no number is given)
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "30",
        value_parser = clap::value_parser!(u16).range(1..=3600)
    )]
    wait: Option<u16>,
}

/// Reads an `Idempotency-Key`.
pub(super) fn idempotency_key(text: &str) -> Result<String, String> {
    text.parse::<IdempotencyKey>().map(|_| text.to_owned())
}

impl IssueArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let session = self.api.open()?;
        let body = json!({"userId": self.user.as_str(), "couponId": self.coupon.as_str()});
        let request = ApiRequest::post("/user-coupons").header("idempotency-key", self.key).body(body);
        let accepted = session.send(request).await?;
        self.wait.then_show(&session, accepted).await
    }
}

impl Noun<IssuanceVerb> {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let session = self.api.open()?;
        let IssuanceVerb::Show { id, wait } = self.verb;
        let answer = session.send(ApiRequest::get(format!("/issuances/{id}"))).await?;
        wait.then_show(&session, answer).await
    }
}

impl WaitArgs {
    /// Waits if `--wait` is given, and shows the issuance.
    ///
    /// # Errors
    ///
    /// If a wait ends without an issued unit, or a poll fails.
    async fn then_show(self, session: &PrintingClient, mut answer: ApiResponse) -> anyhow::Result<()> {
        let Some(seconds) = self.wait else { return session.show(&answer, issuance) };
        poll(session, &mut answer, Duration::from_secs(seconds.into())).await?;
        session.show(&answer, issuance)?;
        let id = answer.body["id"].as_str().unwrap_or_default();
        match answer.body["state"].as_str() {
            Some("issued") => Ok(()),
            Some("queued") => bail!(
                "it was not decided within {seconds} s; it is accepted and will be\n  next: `couponctl issuance \
                 show {id} --wait` waits on, `couponctl worker list` shows whether anybody works"
            ),
            Some("rejected") => {
                let problem = &answer.body["problem"];
                let text = |name: &str| clean(problem[name].as_str().unwrap_or_default());
                bail!("it was rejected: {} ({})", text("title"), text("code"))
            }
            other => bail!(
                "it is in a state that this couponctl does not know: {}\n  next: use the couponctl of the API's version",
                clean(other.unwrap_or("none"))
            ),
        }
    }
}

/// Polls as often as the API advises, until the issuance is decided or `wait` is over.
async fn poll(session: &PrintingClient, answer: &mut ApiResponse, wait: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + wait;
    let mut after = poll_after(answer);
    while answer.body["state"] == "queued" {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        tokio::time::sleep(after.min(left)).await;
        let id = answer.body["id"].as_str().unwrap_or_default();
        match session.api.send(ApiRequest::get(format!("/issuances/{id}"))).await {
            Ok(newer) => {
                after = poll_after(&newer);
                *answer = newer;
            }
            // The request was accepted, so that the issuance exists: the service will answer again.
            Err(error) if error.is_retryable() && Instant::now() < deadline => after = POLL_AFTER_PROBLEM,
            Err(error) => return Err(told(session, error)?.into()),
        }
    }
    Ok(())
}

/// A problem that ends the wait is shown like any other.
fn told(session: &PrintingClient, error: CallError) -> anyhow::Result<CallError> {
    if let (CallError::Problem { answer: problem, .. }, true) = (&error, session.is_json()) {
        super::client::print(&problem.raw)?;
    }
    Ok(error)
}

fn poll_after(answer: &ApiResponse) -> Duration {
    let ms = answer.body["pollAfterMs"].as_u64().unwrap_or(0);
    Duration::from_millis(ms).clamp(POLL_MIN, POLL_MAX)
}

/// An issuance, a line a property.
pub(super) fn issuance(issuance: &Value) -> String {
    let estimate = issuance["estimatedWaitMs"].as_u64().map(|ms| format!("about {ms} ms"));
    let state = match issuance["state"].as_str().unwrap_or_default() {
        "queued" => "queued: accepted, and not yet decided".to_owned(),
        decided => decided.to_owned(),
    };
    details(&[
        ("issuance", value(issuance, "/id")),
        ("state", Some(state)),
        ("why", value(issuance, "/problem/detail")),
        ("coupon", value(issuance, "/couponId")),
        ("user", value(issuance, "/userId")),
        ("serial", value(issuance, "/serial")),
        ("ahead", value(issuance, "/ahead")),
        ("wait", estimate),
        ("accepted", value(issuance, "/acceptedAt")),
        ("decided", value(issuance, "/decidedAt")),
        ("user coupon", value(issuance, "/userCoupon")),
    ])
}
