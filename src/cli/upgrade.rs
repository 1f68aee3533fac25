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

/// Finishes an upgrade from an older version.
///
/// The command connects to MongoDB itself. A deployment that began with this version does not need it.
#[derive(Debug, Args)]
pub(super) struct UpgradeArgs {
    #[command(subcommand)]
    verb: UpgradeVerb,
}

#[derive(Debug, Subcommand)]
enum UpgradeVerb {
    /// Declares that no process of an older version runs, or will run again
    ///
    /// APIs that start from then on give each user whom they register a secret. They derive the ids of the user's keyed
    /// issuances from it, so that nobody can compute these ids once the user is deleted. An older version does not know
    /// the secret, and would give the same Idempotency-Key another id.
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
