//! `couponctl completion`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{CtlCommand, client};

/// Prints a script with which a shell completes commands and flags.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  couponctl completion bash > ~/.local/share/bash-completion/completions/couponctl
  couponctl completion fish > ~/.config/fish/completions/couponctl.fish")]
pub(super) struct Completion {
    /// Shell that runs the script
    #[arg(value_enum)]
    shell: Shell,
}

impl Completion {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut CtlCommand::command(), "couponctl", &mut script);
        client::print(&String::from_utf8_lossy(&script))
    }
}
