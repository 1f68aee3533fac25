//! `couponctl upgrade`.

use clap::{Args, Subcommand};

use super::client::print;
use super::prompt::ConfirmArgs;
use crate::access::ActionLog;
use crate::access::action::command_status;
use crate::config::MongoConfig;
use crate::ids::PartitionId;
use crate::mongo;
use crate::recovery::IdSecrets;

/// Ends an upgrade from an older version.
///
/// Connects to MongoDB by itself. A deployment that began with this version needs none of it.
#[derive(Debug, Args)]
pub(super) struct UpgradeArgs {
    #[command(subcommand)]
    verb: UpgradeVerb,
}

#[derive(Debug, Subcommand)]
enum UpgradeVerb {
    /// Says that no process of an older version runs any more, nor will
    ///
    /// Users who are registered from then on, by APIs that start from then on, get a secret of their own,
    /// which the ids of their keyed issuances are made with: when they are deleted, nobody can compute what
    /// was theirs. An older version does not know it, and would give the same Idempotency-Key another id.
    #[command(after_long_help = "Example:\n  couponctl upgrade finish --yes")]
    Finish {
        #[command(flatten)]
        mongodb: MongoConfig,
        #[command(flatten)]
        yes: ConfirmArgs,
    },
}

impl UpgradeArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let UpgradeVerb::Finish { mongodb, yes } = self.verb;
        yes.or_ask("Does no process of an older version run any more, and will none be started again?")?;
        let database = mongodb.connect().await?;
        let target = PartitionId::ONE.to_string();
        let begun = ActionLog::begin_command(&database, "couponctl upgrade finish", target, None).await?;
        let finished = async {
            print(if IdSecrets::give_to_users(&database, PartitionId::ONE).await? {
                "it was finished before: users who are registered get secrets"
            } else {
                "restart the APIs, one after another: users who are registered by those that start from now on get secrets"
            })
        };
        let finished = begun.carry_out(finished, command_status).await;
        mongo::close(&database).await;
        finished
    }
}
