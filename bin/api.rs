//! The API process.

use std::process::ExitCode;

use coupon_system::config::ApiCommand;
use coupon_system::http::files;
use coupon_system::{api, boot, config, shutdown, telemetry};

#[tokio::main]
async fn main() -> ExitCode {
    boot::exit(run(config::parse()).await)
}

async fn run(command: ApiCommand) -> anyhow::Result<()> {
    telemetry::start(command.log.log_format, &command.log.log)?;
    files::raise_limit();
    let shutdown = shutdown::on_signal()?;
    let listener = boot::bind(command.api.listen, "--listen")?;
    let backends = boot::connect(&command.redis, &command.mongodb).await?;
    api::run(listener, backends, &command.api, shutdown).await
}
