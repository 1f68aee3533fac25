//! The API process.

use std::process::ExitCode;

use coupon_system::config::ApiCommand;
use coupon_system::runtime::{fd_limit, shutdown, telemetry};
use coupon_system::{api, config, process};

#[tokio::main]
async fn main() -> ExitCode {
    process::exit(run(config::parse()).await)
}

async fn run(command: ApiCommand) -> anyhow::Result<()> {
    telemetry::start(command.log.log_format, &command.log.log)?;
    fd_limit::raise_limit();
    let shutdown = shutdown::on_signal()?;
    let listener = process::bind(command.api.listen, "--listen")?;
    let backends = process::connect(&command.redis, &command.mongodb).await?;
    api::run(listener, backends, &command.api, shutdown).await
}
