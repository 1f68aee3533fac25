//! `couponctl worker`.

use clap::Subcommand;
use serde_json::Value;

use super::client::{ApiRequest, Noun};
use super::table::{cell, sentence, table, time, words};

#[derive(Debug, Subcommand)]
pub(super) enum WorkerVerb {
    /// Lists the workers, with their last heartbeats
    #[command(after_long_help = "Example:\n  couponctl worker list")]
    List,
}

impl Noun<WorkerVerb> {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let WorkerVerb::List = self.verb;
        self.api.open()?.send_and_show(ApiRequest::get("/workers"), workers).await
    }
}

/// The workers, a line each.
pub(super) fn workers(body: &Value) -> String {
    let rows = body.as_array().into_iter().flatten().map(|worker| {
        let alive = if worker["alive"] == true { "yes" } else { "NO" };
        vec![cell(worker, "/consumer"), alive.into(), time(worker, "/lastHeartbeatAt"), cell(worker, "/says")]
    });
    table(
        &[words("WORKER"), words("ALIVE"), words("LAST HEARTBEAT"), sentence("SAYS")],
        rows.collect(),
        "No workers: what is accepted waits until one starts.",
    )
}
