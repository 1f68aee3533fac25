//! The worker process.

use std::process::ExitCode;

use coupon_system::config::WorkerCommand;
use coupon_system::http::files;
use coupon_system::{boot, config, shutdown, telemetry, worker};

#[tokio::main]
async fn main() -> ExitCode {
    boot::exit(run(config::parse()).await)
}

async fn run(command: WorkerCommand) -> anyhow::Result<()> {
    telemetry::start(command.log.log_format, &command.log.log)?;
    files::raise_limit();
    let shutdown = shutdown::on_signal()?;
    let listener = boot::bind(command.worker.metrics_listen, "--metrics-listen")?;
    let backends = boot::connect(&command.redis, &command.mongodb).await?;
    worker::run(listener, backends, command.worker.pace.into(), shutdown).await
}
