//! `couponctl`: noun, then verb.
//!
//! `dev`, `check`, `recover`, `audit`, `key`, `ledger`, `upgrade` and `partition` connect to the servers themselves; `bench` starts its own;
//! `rush` reads the ledger if it is given its URI. Every other command goes through the HTTP API alone, knows no more
//! than its JSON, and so works against any deployment.

mod action;
mod audit;
mod bench;
mod check;
pub mod client;
mod completion;
mod coupon;
mod dead_letter;
mod dev;
mod export;
mod issue;
mod key;
mod ledger;
mod lines;
mod man;
mod outcome;
mod output;
mod partition;
mod progress;
mod prompt;
mod queue;
mod recover;
mod rush;
mod service;
mod table;
mod upgrade;
mod user;
mod user_coupon;
mod watch;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::client::Noun;
use crate::{config, process};

/// Runs, steers and examines the Coupon System.
///
/// `dev` starts everything on this machine; `check` examines an environment, `recover` certifies the data in its
/// Redis again, and `audit` compares Redis with the ledger; `key` makes API keys; `bench` measures on servers of its
/// own. The other commands talk to a running API: --api-url or COUPON_API_URL names it, and --token or COUPON_TOKEN
/// gives the key. Each command has an example in its --help.
// No `Debug`: there are keys and passwords in it.
#[derive(Parser)]
#[command(
    name = "couponctl",
    version,
    propagate_version = true,
    after_long_help = "\
Examples:
  couponctl dev
  couponctl coupon create --id summer --name Summer --total 100 \\
      --ends-at 2036-01-01T00:00:00Z
  couponctl user create u1
  couponctl issue u1 summer --wait
  couponctl watch
  couponctl rush --users 10000

Exit codes:
  0  ok
  1  failed, or the API answered with a problem
  2  the command line is wrong
  3  a threshold was missed, or the accounts drifted (rush, bench, audit)
  4  a promise is broken (rush, audit)
  5  the environment is wrong (dev, check, recover, audit, key, ledger,
     upgrade, rush, bench)"
)]
pub struct CtlCommand {
    #[command(subcommand)]
    task: CtlSubcommand,
}

#[derive(Subcommand)]
enum CtlSubcommand {
    Dev(dev::DevArgs),
    Check(check::CheckArgs),
    Recover(recover::RecoverArgs),
    Audit(audit::AuditArgs),
    Key(key::KeyArgs),
    Ledger(ledger::LedgerArgs),
    Upgrade(upgrade::UpgradeArgs),
    Partition(partition::PartitionArgs),
    /// Creates coupons, shows their stock and changes them
    Coupon(Noun<coupon::CouponVerb>),
    /// Registers, shows and deletes users
    User(Noun<user::UserVerb>),
    /// Shows, uses, restores and revokes the coupons that users hold
    UserCoupon(Noun<user_coupon::UserCouponVerb>),
    Issue(issue::IssueArgs),
    /// Shows what became of a request
    Issuance(Noun<issue::IssuanceVerb>),
    /// Follows the outcomes of all requests
    Outcome(Noun<outcome::OutcomeVerb>),
    /// Shows how many requests wait for a decision
    Queue(Noun<queue::QueueVerb>),
    /// Lists the workers
    Worker(Noun<worker::WorkerVerb>),
    /// Shows, redrives and discards dead letters: entries that workers set aside after failing again and again
    DeadLetter(Noun<dead_letter::DeadLetterVerb>),
    /// Shows the record of operators' actions
    Action(Noun<action::ActionVerb>),
    /// Pauses and resumes the whole service
    Service(Noun<service::ServiceVerb>),
    Watch(watch::WatchArgs),
    Rush(rush::RushArgs),
    Bench(bench::BenchArgs),
    Completion(completion::Completion),
    Man(man::ManArgs),
}

/// Runs `couponctl`: parses the command line and carries out the command.
///
/// The binary calls this and nothing else, so that the code of its tasks is generated once, with this crate, and
/// not in each binary again.
#[tokio::main]
pub async fn main() -> ExitCode {
    process::exit(config::parse::<CtlCommand>().run().await)
}

impl CtlCommand {
    /// Carries the command out.
    pub async fn run(self) -> anyhow::Result<()> {
        let ended = match self.task {
            CtlSubcommand::Dev(dev) => dev.run().await,
            CtlSubcommand::Check(check) => check.run().await,
            CtlSubcommand::Recover(recover) => recover.run().await,
            CtlSubcommand::Audit(audit) => audit.run().await,
            CtlSubcommand::Key(key) => key.run().await,
            CtlSubcommand::Ledger(ledger) => ledger.run().await,
            CtlSubcommand::Upgrade(upgrade) => upgrade.run().await,
            CtlSubcommand::Partition(partition) => partition.run().await,
            CtlSubcommand::Coupon(coupon) => coupon.run().await,
            CtlSubcommand::User(user) => user.run().await,
            CtlSubcommand::UserCoupon(user_coupon) => user_coupon.run().await,
            CtlSubcommand::Issue(issue) => issue.run().await,
            CtlSubcommand::Issuance(issuance) => issuance.run().await,
            CtlSubcommand::Outcome(outcome) => outcome.run().await,
            CtlSubcommand::Queue(queue) => queue.run().await,
            CtlSubcommand::Worker(worker) => worker.run().await,
            CtlSubcommand::DeadLetter(dead_letter) => dead_letter.run().await,
            CtlSubcommand::Action(action) => action.run().await,
            CtlSubcommand::Service(service) => service.run().await,
            CtlSubcommand::Watch(watch) => watch.run().await,
            CtlSubcommand::Rush(rush) => rush.run().await,
            CtlSubcommand::Bench(bench) => bench.run().await,
            CtlSubcommand::Completion(completion) => completion.run(),
            CtlSubcommand::Man(man) => man.run(),
        };
        match ended {
            Err(error) if is_broken_pipe(&error) => Ok(()),
            ended => ended,
        }
    }
}

/// Whether the reader of standard output has closed it, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, ApiCommand, WorkerCommand};
    use clap::CommandFactory;

    #[test]
    fn every_command_says_what_it_does_and_gives_an_example() {
        fn walk(command: &clap::Command) {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name} says nothing of itself");
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{name}: {} says nothing of itself",
                    argument.get_id()
                );
            }
            let verbs: Vec<_> = command.get_subcommands().filter(|verb| verb.get_name() != "help").collect();
            let shown = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            if verbs.is_empty() {
                assert!(shown.contains("couponctl "), "{name} gives no example");
            }
            verbs.into_iter().for_each(walk);
        }
        let command = CtlCommand::command();
        command.clone().debug_assert();
        walk(&command);
    }

    #[test]
    fn every_example_is_a_command() {
        fn walk(command: &clap::Command, program: &str, examples: &mut Vec<String>) {
            let shown = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            let shown = shown.replace("\\\n", " ");
            let lines = shown.lines().filter(|line| line.trim().split(' ').next() == Some(program));
            examples.extend(lines.map(|line| line.split(['>', '|']).next().unwrap_or_default().to_owned()));
            command.get_subcommands().for_each(|verb| walk(verb, program, examples));
        }
        for command in [ApiCommand::command(), WorkerCommand::command(), CtlCommand::command()] {
            let mut examples = Vec::new();
            walk(&command, command.get_name(), &mut examples);
            assert!(examples.len() > if command.has_subcommands() { 20 } else { 1 });
            for example in examples {
                // Words, as a shell takes them apart: quotes hold one together.
                let mut words = Vec::new();
                for (number, part) in example.split('\'').enumerate() {
                    if number % 2 == 1 {
                        words.push(part.to_owned());
                    } else {
                        words.extend(part.split_whitespace().map(str::to_owned));
                    }
                }
                assert!(command.clone().try_get_matches_from(words).is_ok(), "{example}");
            }
        }
    }

    #[test]
    fn an_empty_variable_of_any_command_is_as_if_it_were_not_set() {
        fn variables(command: &clap::Command) -> usize {
            let own = command.get_arguments().filter(|argument| argument.get_env().is_some()).count();
            own + command.get_subcommands().map(variables).sum::<usize>()
        }
        for command in [ApiCommand::command(), WorkerCommand::command(), CtlCommand::command()] {
            assert!(variables(&command) > 5);
            assert_eq!(variables(&config::prepared(command.clone(), |_| false)), variables(&command));
            let empty = config::prepared(command, |_| true);
            assert_eq!(variables(&empty), 0);
            empty.debug_assert();
        }
    }
}
