//! `couponctl dev`.

use clap::Args;

use crate::config::LogConfig;
use crate::dev::stack;
use crate::dev::stack::StackOptions;
use crate::process::TraceExporter;
use crate::runtime::telemetry;

/// Starts everything on this machine: Redis, MongoDB, the API, a worker, a demo coupon and users.
///
/// Redis and MongoDB run as child processes on free loopback ports; the command downloads them first if they are not
/// installed. It keeps their data in .coupon/dev from one run to the next. Ctrl-C stops everything.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  couponctl dev
  couponctl dev --fresh --workers 2 --listen 127.0.0.1:8080")]
pub struct DevArgs {
    #[command(flatten)]
    options: StackOptions,
    #[command(flatten)]
    log: LogConfig,
}

impl DevArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        telemetry::start(self.log.log_format, &self.log.log)?;
        let traces = TraceExporter::start("coupon-dev")?;
        let ended = stack::run(self.options).await;
        traces.finish().await;
        ended
    }
}
