//! The confirmation of commands that cannot be undone.

use std::io::{IsTerminal, Write};

use anyhow::bail;
use clap::{Args, CommandFactory, error::ErrorKind};

use super::CtlCommand;

/// Confirmation on the command line, for a command that cannot be undone.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct ConfirmArgs {
    /// Do not ask for confirmation; required if there is no terminal to ask on
    #[arg(long)]
    yes: bool,
}

impl ConfirmArgs {
    /// Asks on a terminal, unless `--yes` was given.
    ///
    /// # Errors
    ///
    /// If the answer is no, or `--yes` is missing and there is no terminal.
    pub(super) fn or_ask(self, question: &str) -> anyhow::Result<()> {
        if self.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            let why = "this cannot be undone, and there is no terminal to ask on: give --yes";
            return Err(CtlCommand::command().error(ErrorKind::MissingRequiredArgument, why).into());
        }
        eprint!("{question} [y/N] ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if !["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()) {
            bail!("nothing was done");
        }
        Ok(())
    }
}
