//! `couponctl worker`.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{ApiArgs, ApiRequest};
use super::table::{cell, sentence, table, time, words};

/// Lists the workers.
#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    #[command(subcommand)]
    verb: WorkerVerb,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Subcommand)]
enum WorkerVerb {
    /// Lists the workers, with their last heartbeats
    #[command(after_long_help = "Example:\n  couponctl worker list")]
    List,
}

impl WorkerArgs {
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
