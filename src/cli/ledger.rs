//! `couponctl ledger`.

use std::time::Instant;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::action::{ReasonArgs, recorded};
use super::progress::ProgressLine;
use crate::access::ActionLog;
use crate::access::action::command_status;
use crate::config::MongoConfig;
use crate::failure::SetUpError;
use crate::issuance::ledger::migration::{MigrationOutcome, MigrationStep, OlderPrograms, migrate};
use crate::{Failure, mongo};

/// Brings the ledger of an older version into the form of this one.
///
/// The command connects to MongoDB itself. A deployment that began with this version does not need it.
#[derive(Debug, Args)]
pub(super) struct LedgerArgs {
    #[command(subcommand)]
    verb: LedgerVerb,
}

#[derive(Debug, Subcommand)]
enum LedgerVerb {
    /// Gives every record its partition, and builds the indexes that a sharded MongoDB can hold
    ///
    /// APIs and workers of this version may serve meanwhile. Make sure that no process of an older version runs, or will
    /// run again: MongoDB refuses what it writes from the beginning of the migration on, so that its requests become
    /// dead letters. The command looks for connections of such processes, and refuses to begin while it sees one; it
    /// does not see those whose --mongodb-uri sets another appName, nor, behind mongos, those of other mongos.
    ///
    /// You may interrupt the command, and run it again: it goes on where it was. It needs the right to change a
    /// collection (collMod, in the role dbAdmin), which the processes themselves do not need.
    #[command(after_long_help = "\
Examples:
  couponctl ledger migrate
  couponctl ledger migrate --json")]
    Migrate(MigrateArgs),
}

#[derive(Debug, Args)]
struct MigrateArgs {
    /// Begin although processes of an older version are connected to this MongoDB: they use other databases of it
    #[arg(long)]
    ignore_connections: bool,
    /// Print JSON: {"result": "migrated" | "nothing-to-do", "records", "seconds"}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    mongodb: MongoConfig,
    #[command(flatten)]
    why: ReasonArgs,
}

impl LedgerArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let LedgerVerb::Migrate(arguments) = self.verb;
        let database = arguments.mongodb.connect().await?;
        let target = "user_coupons".to_owned();
        let input = recorded(Value::Null, arguments.why.reason.as_ref());
        let begun = ActionLog::begin_command(&database, "couponctl ledger migrate", target, input).await?;
        let migrated = begun.carry_out(arguments.migrate(&database), command_status).await;
        mongo::close(&database).await;
        migrated
    }
}

impl MigrateArgs {
    async fn migrate(&self, database: &mongo::Database) -> anyhow::Result<()> {
        let (progress, started) = (ProgressLine::start(), Instant::now());
        let shown = progress.clone();
        let older = if self.ignore_connections { OlderPrograms::Ignore } else { OlderPrograms::Refuse };
        let migrated = migrate(database, older, move |step| show(&shown, &step)).await;
        progress.finish();
        let (result, records) = match migrated {
            Ok(MigrationOutcome::Before) => ("nothing-to-do", 0),
            Ok(MigrationOutcome::Now { records }) => ("migrated", records),
            Err(Failure::Misconfigured { why, .. }) => return Err(SetUpError(vec![why]).into()),
            Err(failure) => return Err(failure.into()),
        };
        let seconds = started.elapsed().as_secs_f64();
        if self.json {
            println!("{}", json!({"result": result, "records": records, "seconds": seconds}));
        } else if result == "migrated" {
            println!("Migrated: {records} records were filled in ({seconds:.1} s).");
        } else {
            println!("The ledger has the form of this version; there is nothing to do.");
        }
        Ok(())
    }
}

fn show(progress: &ProgressLine, step: &MigrationStep) {
    match step {
        MigrationStep::ConnectionsUnknown => {
            progress.say("MongoDB does not tell who is connected: make sure that no older process runs");
        }
        MigrationStep::Fenced => progress.say("MongoDB takes no records of older versions any more"),
        MigrationStep::Filled { records, of } => progress.at("filling records in", *records, *of),
        MigrationStep::Indexing { name } => progress.state(&format!("building the index {name}"), true),
        MigrationStep::Switched => progress.state("complete; waiting until all processes know", true),
        MigrationStep::Dropped { name } => progress.say(&format!("dropped the index {name}")),
    }
}
