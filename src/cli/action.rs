//! `couponctl action`.

use clap::Subcommand;
use serde_json::Value;

use super::client::{ApiRequest, Noun, PageArgs};
use super::table::{aside, cell, more, rows, sentence, table, time, words};

#[derive(Debug, Subcommand)]
pub(super) enum ActionVerb {
    /// Lists operators' actions, newest first: who, when, what, and how it ended
    #[command(after_long_help = "Example:\n  couponctl action list --limit 10")]
    List {
        #[command(flatten)]
        page: PageArgs,
    },
}

impl Noun<ActionVerb> {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let session = self.api.open()?;
        let ActionVerb::List { page } = self.verb;
        session.send_and_show(ApiRequest::get("/operator-actions").page(page), list).await
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

fn ended(action: &Value) -> String {
    match (action["status"].as_u64(), action["code"].as_str()) {
        (None, _) => "unknown".into(),
        (Some(status), None) => status.to_string(),
        (Some(status), Some(code)) => format!("{status} {code}"),
    }
}
