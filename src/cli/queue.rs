//! `couponctl queue`.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{ApiArgs, ApiRequest};
use super::table::{details, value};

/// Shows how many requests wait for a decision.
#[derive(Debug, Args)]
pub(super) struct QueueArgs {
    #[command(subcommand)]
    verb: QueueVerb,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Subcommand)]
enum QueueVerb {
    /// Shows the backlog, the dead letters and the time of the oldest waiting request
    #[command(after_long_help = "Example:\n  couponctl queue show")]
    Show,
}

impl QueueArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let QueueVerb::Show = self.verb;
        self.api.open()?.send_and_show(ApiRequest::get("/queue"), queue).await
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
