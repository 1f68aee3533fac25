//! `couponctl dead-letter`.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::action;
use super::client::{ApiRequest, Noun, PageArgs, PrintingClient};
use super::issue;
use super::progress::ProgressLine;
use super::prompt::ConfirmArgs;
use super::table::Member::{Text, Time};
use super::table::{aside, details, number, page_table, sentence, value, words};
use crate::access::action::reason;
use crate::ids::{CouponId, IssuanceId, UserId};

/// How often the command asks how far an action is.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long it goes on asking an API that does not answer.
const SILENCE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub(super) enum DeadLetterVerb {
    /// Lists dead letters, the oldest first, each with its reason
    #[command(after_long_help = "\
Examples:
  couponctl dead-letter list
  couponctl dead-letter list --coupon summer --reason validation --min-age 15m")]
    List {
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Shows one dead letter
    #[command(after_long_help = "\
Example:
  couponctl dead-letter show 01a206a0-caad-7000-95cf-bcf9c90eb941")]
    Show {
        /// Id of the issuance
        id: IssuanceId,
    },
    /// Puts a dead letter back into the queue, once its cause is repaired
    #[command(after_long_help = "\
Example:
  couponctl dead-letter redrive 01a206a0-caad-7000-95cf-bcf9c90eb941")]
    Redrive {
        /// Id of the issuance
        id: IssuanceId,
        #[command(flatten)]
        why: WhyArgs,
    },
    /// Rejects a dead letter for good and frees its unit
    #[command(after_long_help = "\
Example:
  couponctl dead-letter discard 01a206a0-caad-7000-95cf-bcf9c90eb941 --yes")]
    Discard {
        /// Id of the issuance
        id: IssuanceId,
        #[command(flatten)]
        why: WhyArgs,
        #[command(flatten)]
        yes: ConfirmArgs,
    },
    /// Puts all dead letters that match back into the queue, and shows how far it is
    #[command(after_long_help = "\
Examples:
  couponctl dead-letter redrive-all --coupon summer --why 'The record is repaired'
  couponctl dead-letter redrive-all --everything --why 'MongoDB takes records again'

The API goes on when this command is ended. What was redriven is no dead letter any
more, so the command can be run again at any time. One such action runs at a time.")]
    RedriveAll(BulkArgs),
    /// Rejects all dead letters that match for good, frees their units, and shows how far it is
    #[command(after_long_help = "\
Example:
  couponctl dead-letter discard-all --coupon summer --min-age 2d --why 'Refunded' --yes

The API goes on when this command is ended. What was discarded is no dead letter any
more, so the command can be run again at any time. One such action runs at a time.")]
    DiscardAll {
        #[command(flatten)]
        bulk: BulkArgs,
        #[command(flatten)]
        yes: ConfirmArgs,
    },
}

/// Which dead letters are meant: those that fit everything that is given.
#[derive(Debug, Clone, Args)]
pub(super) struct FilterArgs {
    /// Only those of this coupon
    #[arg(long, value_name = "ID")]
    coupon: Option<CouponId>,
    /// Only those of this user
    #[arg(long, value_name = "ID")]
    user: Option<UserId>,
    /// Only those whose reason has this part, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only those set aside at least so long ago, such as 15m or 2d
    #[arg(long, value_name = "DURATION")]
    min_age: Option<String>,
    /// Only those set aside at most so long ago, such as 15m or 2d
    #[arg(long, value_name = "DURATION")]
    max_age: Option<String>,
}

#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("meant").required(true).multiple(true)
    .args(["coupon", "user", "reason", "min_age", "max_age", "everything"]))]
pub(super) struct BulkArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Every dead letter is meant
    #[arg(long, conflicts_with_all = ["coupon", "user", "reason", "min_age", "max_age"])]
    everything: bool,
    /// Why it is done, for the record of operators' actions: 1 to 200 characters
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    why: String,
}

/// Why something is done to one dead letter. As of the bulk commands, whose `--reason` is that of the dead letters.
#[derive(Debug, Clone, Args)]
pub(super) struct WhyArgs {
    /// Why it is done, for the record of operators' actions: 1 to 200 characters
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    why: Option<String>,
}

impl FilterArgs {
    /// What is given, by its names in the API.
    fn members(&self) -> impl Iterator<Item = (&'static str, String)> {
        let FilterArgs { coupon, user, reason, min_age, max_age } = self.clone();
        let members = [
            ("couponId", coupon.map(|coupon| coupon.to_string())),
            ("userId", user.map(|user| user.to_string())),
            ("reason", reason),
            ("minAge", min_age),
            ("maxAge", max_age),
        ];
        members.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }

    fn query(&self, request: ApiRequest) -> ApiRequest {
        self.members().fold(request, |request, (name, value)| request.query(name, Some(value)))
    }
}

impl BulkArgs {
    fn body(&self) -> Value {
        if self.everything {
            return json!({"all": true, "reason": self.why});
        }
        let filter: Map<_, _> =
            self.filter.members().map(|(name, value)| (name.to_owned(), value.into())).collect();
        json!({"filter": filter, "reason": self.why})
    }
}

impl Noun<DeadLetterVerb> {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let session = self.api.open()?;
        match self.verb {
            DeadLetterVerb::List { filter, page } => {
                let request = filter.query(ApiRequest::get("/dead-letters")).page(page);
                session.send_and_show(request, list).await
            }
            DeadLetterVerb::Show { id } => {
                session.send_and_show(ApiRequest::get(format!("/dead-letters/{id}")), letter).await
            }
            DeadLetterVerb::Redrive { id, why } => {
                let request = ApiRequest::post(format!("/dead-letters/{id}/redrive")).reason(why.why);
                let words = |body: &Value| {
                    format!(
                        "On its way again; `couponctl issuance show {id} --wait` tells what becomes of it.\n{}",
                        letter(body)
                    )
                };
                session.send_and_show(request, words).await
            }
            DeadLetterVerb::Discard { id, why, yes } => {
                yes.or_ask(&format!("Reject issuance {id} for good, and give its unit to somebody else?"))?;
                let request = ApiRequest::post(format!("/dead-letters/{id}/discard")).reason(why.why);
                session.send_and_show(request, issue::issuance).await
            }
            DeadLetterVerb::RedriveAll(bulk) => carry_out(&session, "redrive", "redriven", &bulk).await,
            DeadLetterVerb::DiscardAll { bulk, yes } => {
                let matching = bulk.filter.query(ApiRequest::get("/dead-letters")).query("limit", Some(1));
                let matched = session.send(matching).await?.body["matched"].clone();
                yes.or_ask(&format!(
                    "Reject {matched} dead letters for good, and give their units to others?"
                ))?;
                carry_out(&session, "discard", "discarded", &bulk).await
            }
        }
    }
}

/// Begins an action on all dead letters that match, shows how far it is, and prints how it ended.
async fn carry_out(session: &PrintingClient, verb: &str, done: &str, bulk: &BulkArgs) -> anyhow::Result<()> {
    let begun = session.send(ApiRequest::post(format!("/dead-letters/{verb}")).body(bulk.body())).await?;
    let path = format!("/operator-actions/{}", begun.body["id"].as_str().unwrap_or_default());
    let progress = ProgressLine::start();
    let (mut action, mut answered) = (begun, Instant::now());
    while action.body["endedAt"].is_null() && action.body["progress"]["running"] == true {
        let count = |name: &str| action.body["progress"][name].as_u64().unwrap_or_default();
        progress.at(done, count("done") + count("failed"), count("matched"));
        tokio::time::sleep(ASK_EVERY).await;
        match session.api.send(ApiRequest::get(path.as_str())).await {
            Ok(answer) => (action, answered) = (answer, Instant::now()),
            Err(error) if error.is_retryable() && answered.elapsed() < SILENCE_MAX => {}
            Err(error) => {
                let what = "the API may go on: `couponctl action list` shows how far it is";
                return Err(anyhow::Error::new(error).context(what));
            }
        }
    }
    progress.finish();
    session.show(&action, |body| {
        let count = |name: &str| body["progress"][name].as_u64().unwrap_or_default();
        format!(
            "{} of {} {done}, {} failed\n{}",
            count("done"),
            count("matched"),
            count("failed"),
            action::one(body)
        )
    })?;
    let told = &action.body;
    let away = match told["status"].as_u64() {
        Some(200) => String::new(),
        _ => {
            let asked = session.api.send(ApiRequest::get("/dead-letters").query("limit", Some(1))).await;
            asked.map(|answer| without(&answer.body)).unwrap_or_default()
        }
    };
    match (told["status"].as_u64(), told["progress"]["failed"].as_u64()) {
        (Some(200), Some(0)) => Ok(()),
        (Some(200), _) => bail!(
            "some could not be {done}\n  next: `couponctl dead-letter list` shows them; the log of the API says why"
        ),
        _ => bail!(
            "the action did not come to its end\n{away}  next: run the command again: what is done stays done"
        ),
    }
}

/// Dead letters, a line each.
pub(super) fn list(page: &Value) -> String {
    let columns = [
        (words("ISSUANCE"), Text("/id")),
        (aside("ATTEMPTS"), Text("/attempts")),
        (aside("SET ASIDE"), Time("/setAsideAt")),
        (words("COUPON"), Text("/payload/couponId")),
        (words("USER"), Text("/payload/userId")),
        (number("SERIAL"), Text("/payload/serial")),
        (sentence("REASON"), Text("/reason")),
    ];
    format!("{}{}", page_table(page, &columns, "No dead letters."), without(page))
}

/// A line that names the partitions that a page is without; nothing if it is of all.
fn without(page: &Value) -> String {
    let away = page["unavailablePartitions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named: Vec<_> = away.iter().map(ToString::to_string).collect();
    match named[..] {
        [] => String::new(),
        _ => format!("Partitions {} do not answer: what was set aside there is missing.\n", named.join(", ")),
    }
}

fn letter(letter: &Value) -> String {
    details(&[
        ("issuance", value(letter, "/id")),
        ("set aside", value(letter, "/setAsideAt")),
        ("attempts", value(letter, "/attempts")),
        ("reason", value(letter, "/reason")),
        ("coupon", value(letter, "/payload/couponId")),
        ("user", value(letter, "/payload/userId")),
        ("serial", value(letter, "/payload/serial")),
        ("accepted", value(letter, "/payload/acceptedAt")),
    ])
}
