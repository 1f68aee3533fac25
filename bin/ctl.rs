//! The operators' tool.

use std::process::ExitCode;

use coupon_system::cli::CtlCommand;
use coupon_system::{config, process};

#[tokio::main]
async fn main() -> ExitCode {
    process::exit(config::parse::<CtlCommand>().run().await)
}
