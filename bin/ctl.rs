//! The operators' tool.

use std::process::ExitCode;

use coupon_system::cli::Command;
use coupon_system::{boot, config};

#[tokio::main]
async fn main() -> ExitCode {
    boot::exit(config::parse::<Command>().run().await)
}
