//! `couponctl action`.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{ApiRequest, Noun, PageArgs};
use super::table::{aside, cell, details, more, rows, sentence, table, time, value, words};
use crate::access::action::{self, ActionId};

#[derive(Debug, Subcommand)]
pub(super) enum ActionVerb {
    /// Lists operators' actions, newest first: who, when, what, and how it ended
    #[command(after_long_help = "Example:\n  couponctl action list --limit 10")]
    List {
        #[command(flatten)]
        page: PageArgs,
    },
    /// Shows one action, and how far it is
    #[command(after_long_help = "\
Example:
  couponctl action show 01a206a0-caad-7000-95cf-bcf9c90eb941")]
    Show {
        /// Id of the action
        id: ActionId,
    },
}

/// Why a command changes something.
#[derive(Debug, Clone, Args)]
pub(super) struct ReasonArgs {
    /// Why it is done, for the record of operators' actions: 1 to 200 characters
    #[arg(long, value_name = "TEXT", value_parser = action::reason)]
    pub reason: Option<String>,
}

/// What the record keeps of a command that does something past the API: `input`, and the reason if one is given.
pub(super) fn recorded(mut input: Value, reason: Option<&String>) -> Option<String> {
    if let Some(reason) = reason {
        input["reason"] = reason.as_str().into();
    }
    (!input.is_null()).then(|| input.to_string())
}

impl Noun<ActionVerb> {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let session = self.api.open()?;
        match self.verb {
            ActionVerb::List { page } => {
                session.send_and_show(ApiRequest::get("/operator-actions").page(page), list).await
            }
            ActionVerb::Show { id } => {
                session.send_and_show(ApiRequest::get(format!("/operator-actions/{id}")), one).await
            }
        }
    }
}

fn list(page: &Value) -> String {
    let columns = [
        words("WHEN"),
        words("WHO"),
        aside("KEY"),
        sentence("ACTION"),
        words("TARGET"),
        aside("INPUT"),
        words("ENDED"),
        aside("REQUEST"),
    ];
    let rows = rows(page, |action| {
        let method = cell(action, "/action");
        vec![
            time(action, "/at"),
            cell(action, "/who"),
            cell(action, "/keyId"),
            // The action of a command is its name; that of a request is method and path, and the target repeats the
            // path.
            if method.starts_with("couponctl ") {
                method
            } else {
                method.split(' ').next().unwrap_or_default().to_owned()
            },
            cell(action, "/target"),
            cell(action, "/input"),
            ended(action),
            cell(action, "/requestId"),
        ]
    });
    table(&columns, rows, "No actions.") + &more(page)
}

/// One action.
pub(super) fn one(action: &Value) -> String {
    details(&[
        ("action", value(action, "/id")),
        ("when", value(action, "/at")),
        ("who", value(action, "/who")),
        ("key", value(action, "/keyId")),
        ("what", value(action, "/action")),
        ("target", value(action, "/target")),
        ("input", value(action, "/input")),
        ("ended", Some(ended(action))),
        ("at", value(action, "/endedAt")),
        ("request", value(action, "/requestId")),
    ])
}

fn ended(action: &Value) -> String {
    let progress = &action["progress"];
    match (action["status"].as_u64(), action["code"].as_str()) {
        (None, _) if progress["running"] == true => {
            format!("running, {} of {}", progress["done"], progress["matched"])
        }
        (None, _) => "unknown".into(),
        (Some(status), None) => status.to_string(),
        (Some(status), Some(code)) => format!("{status} {code}"),
    }
}
