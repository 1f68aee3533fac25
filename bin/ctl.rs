//! The operators' tool.

use std::process::ExitCode;

use clap::Parser;
use coupon_system::boot;
use coupon_system::cli::Command;

#[tokio::main]
async fn main() -> ExitCode {
    boot::exit(Command::parse().run().await)
}
