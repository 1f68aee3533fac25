//! `couponctl dead-letter`.

use clap::Subcommand;
use serde_json::Value;

use super::client::{ApiRequest, Noun};
use super::issue;
use super::prompt::ConfirmArgs;
use super::table::Member::{Text, Time};
use super::table::{aside, details, number, page_table, sentence, value, words};
use crate::ids::IssuanceId;

#[derive(Debug, Subcommand)]
pub(super) enum DeadLetterVerb {
    /// Lists dead letters, each with its reason
    #[command(after_long_help = "Example:\n  couponctl dead-letter list")]
    List {
        /// Continue after the page that printed this cursor
        #[arg(long)]
        cursor: Option<String>,
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
    },
    /// Rejects a dead letter for good and frees its unit
    #[command(after_long_help = "\
Example:
  couponctl dead-letter discard 01a206a0-caad-7000-95cf-bcf9c90eb941 --yes")]
    Discard {
        /// Id of the issuance
        id: IssuanceId,
        #[command(flatten)]
        yes: ConfirmArgs,
    },
}

impl Noun<DeadLetterVerb> {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let session = self.api.open()?;
        match self.verb {
            DeadLetterVerb::List { cursor } => {
                session.send_and_show(ApiRequest::get("/dead-letters").query("cursor", cursor), list).await
            }
            DeadLetterVerb::Show { id } => {
                session.send_and_show(ApiRequest::get(format!("/dead-letters/{id}")), letter).await
            }
            DeadLetterVerb::Redrive { id } => {
                let request = ApiRequest::post(format!("/dead-letters/{id}/redrive"));
                let words = |body: &Value| {
                    format!(
                        "On its way again; `couponctl issuance show {id} --wait` tells what becomes of it.\n{}",
                        letter(body)
                    )
                };
                session.send_and_show(request, words).await
            }
            DeadLetterVerb::Discard { id, yes } => {
                yes.or_ask(&format!("Reject issuance {id} for good, and give its unit to somebody else?"))?;
                let request = ApiRequest::post(format!("/dead-letters/{id}/discard"));
                session.send_and_show(request, issue::issuance).await
            }
        }
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
    // A page may be empty though more follow: dead letters have no order.
    let nothing = if page["nextCursor"].is_null() { "No dead letters." } else { "None on this page." };
    page_table(page, &columns, nothing)
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
