//! `couponctl`: noun, then verb.

mod check;
mod dev;

use clap::{Parser, Subcommand};

/// Runs and examines the Coupon System.
#[derive(Debug, Parser)]
#[command(name = "couponctl", version, propagate_version = true)]
pub struct Command {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Dev(dev::Dev),
    Check(check::Check),
}

impl Command {
    /// Carries the command out.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.task {
            Task::Dev(dev) => dev.run().await,
            Task::Check(check) => check.run().await,
        }
    }
}
