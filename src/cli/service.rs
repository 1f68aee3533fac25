//! `couponctl service`.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{ApiArgs, Request};

/// Pauses and resumes the whole service.
#[derive(Debug, Args)]
pub(super) struct Service {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Stops accepting any request; what was accepted is decided
    #[command(after_long_help = "Example:\n  couponctl service pause")]
    Pause,
    /// Accepts requests again
    #[command(after_long_help = "Example:\n  couponctl service resume")]
    Resume,
}

impl Service {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let path = match self.verb {
            Verb::Pause => "/pause",
            Verb::Resume => "/resume",
        };
        self.api.open()?.send_and_show(Request::post(path), state).await
    }
}

fn state(body: &Value) -> String {
    if body["paused"] == true {
        "The service is paused: nothing new is accepted. `couponctl service resume` goes on.".into()
    } else {
        "The service accepts requests.".into()
    }
}
