//! `couponctl man`.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};

use super::CtlCommand;
use crate::config::{ApiCommand, WorkerCommand, documented};

/// Writes the man pages of coupon-api, coupon-worker and couponctl, one for each command.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  couponctl man ~/.local/share/man/man1
  man couponctl-coupon-create")]
pub(super) struct ManArgs {
    /// Folder for the pages; the command makes it if it is missing
    folder: PathBuf,
}

impl ManArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let failed = || format!("cannot write man pages into {}", self.folder.display());
        fs::create_dir_all(&self.folder).with_context(failed)?;
        for program in [ApiCommand::command(), WorkerCommand::command(), CtlCommand::command()] {
            clap_mangen::generate_to(documented(program), &self.folder).with_context(failed)?;
        }
        Ok(())
    }
}
