//! `couponctl dev`.

use clap::Args;

use crate::config::LogConfig;
use crate::dev::stack;
use crate::dev::stack::StackOptions;
use crate::runtime::telemetry;

/// Starts everything on this machine: Redis, MongoDB, the API, a worker, a demo coupon and users.
///
/// The two servers are child processes on free loopback ports; where they are missing they are
/// fetched first. Data stays in .coupon/dev from one run to the next. Ctrl-C stops everything.
#[derive(Args)]
pub struct DevArgs {
    #[command(flatten)]
    options: StackOptions,
    #[command(flatten)]
    log: LogConfig,
}

impl DevArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        telemetry::start(self.log.log_format, &self.log.log)?;
        stack::run(self.options).await
    }
}
