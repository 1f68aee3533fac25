//! `couponctl service`.

use clap::Subcommand;
use serde_json::Value;

use super::action::ReasonArgs;
use super::client::{ApiRequest, Noun};

#[derive(Debug, Subcommand)]
pub(super) enum ServiceVerb {
    /// Stops accepting requests for every coupon; accepted ones are still decided
    #[command(after_long_help = "Example:\n  couponctl service pause --reason 'MongoDB is being moved'")]
    Pause(ReasonArgs),
    /// Accepts requests again
    #[command(after_long_help = "Example:\n  couponctl service resume")]
    Resume(ReasonArgs),
}

impl Noun<ServiceVerb> {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (path, why) = match self.verb {
            ServiceVerb::Pause(why) => ("/pause", why),
            ServiceVerb::Resume(why) => ("/resume", why),
        };
        self.api.open()?.send_and_show(ApiRequest::post(path).reason(why.reason), state).await
    }
}

fn state(body: &Value) -> String {
    if body["paused"] == true {
        "The service is paused: nothing new is accepted. `couponctl service resume` goes on.".into()
    } else {
        "The service accepts requests.".into()
    }
}
