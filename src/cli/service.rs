//! `couponctl service`.

use clap::Subcommand;
use serde_json::Value;

use super::client::{ApiRequest, Noun};

#[derive(Debug, Subcommand)]
pub(super) enum ServiceVerb {
    /// Stops accepting requests for every coupon; accepted ones are still decided
    #[command(after_long_help = "Example:\n  couponctl service pause")]
    Pause,
    /// Accepts requests again
    #[command(after_long_help = "Example:\n  couponctl service resume")]
    Resume,
}

impl Noun<ServiceVerb> {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let path = match self.verb {
            ServiceVerb::Pause => "/pause",
            ServiceVerb::Resume => "/resume",
        };
        self.api.open()?.send_and_show(ApiRequest::post(path), state).await
    }
}

fn state(body: &Value) -> String {
    if body["paused"] == true {
        "The service is paused: nothing new is accepted. `couponctl service resume` goes on.".into()
    } else {
        "The service accepts requests.".into()
    }
}
