//! The worker process.

use std::process::ExitCode;

use coupon_system::config::WorkerCommand;
use coupon_system::runtime::{fd_limit, shutdown, telemetry};
use coupon_system::{config, process, worker};

#[tokio::main]
async fn main() -> ExitCode {
    process::exit(run(config::parse()).await)
}

async fn run(command: WorkerCommand) -> anyhow::Result<()> {
    telemetry::start(command.log.log_format, &command.log.log)?;
    fd_limit::raise_limit();
    let shutdown = shutdown::on_signal()?;
    let listener = process::bind(command.worker.metrics_listen, "--metrics-listen")?;
    let backends = process::connect(&command.redis, &command.mongodb).await?;
    worker::run(listener, backends, command.worker.concurrency, shutdown).await
}
