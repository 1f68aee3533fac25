//! `couponctl queue`.

use clap::Subcommand;
use serde_json::Value;

use super::client::{ApiRequest, Noun};
use super::table::{details, value};

#[derive(Debug, Subcommand)]
pub(super) enum QueueVerb {
    /// Shows the backlog, the dead letters and the time of the oldest waiting request
    #[command(after_long_help = "Example:\n  couponctl queue show")]
    Show,
}

impl Noun<QueueVerb> {
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
