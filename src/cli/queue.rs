//! `couponctl queue`.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{ApiArgs, Request};
use super::table::{details, value};

/// Shows how much waits to be decided.
#[derive(Debug, Args)]
pub(super) struct Queue {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Shows the backlog, the dead letters and the oldest request
    #[command(after_long_help = "Example:\n  couponctl queue show")]
    Show,
}

impl Queue {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Verb::Show = self.verb;
        self.api.open()?.send_and_show(Request::get("/queue"), queue).await
    }
}

fn queue(body: &Value) -> String {
    details(&[
        ("backlog", value(body, "/backlog")),
        ("in flight", value(body, "/inFlight")),
        ("dead letters", value(body, "/deadLetters")),
        ("oldest since", value(body, "/oldestAt")),
        ("read at", value(body, "/readAt")),
    ])
}
