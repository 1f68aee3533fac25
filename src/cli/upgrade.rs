//! `couponctl upgrade`.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::action::{ReasonArgs, recorded};
use super::client::print;
use super::prompt::ConfirmArgs;
use crate::access::ActionLog;
use crate::access::action::command_status;
use crate::config::MongoConfig;
use crate::ids::PartitionId;
use crate::mongo;
use crate::recovery::Deployment;

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
    ///
    /// They also queue all that they accept at once as one stream entry, which takes Redis less time and memory. A
    /// worker of an older version cannot read such an entry.
    #[command(after_long_help = "Example:\n  couponctl upgrade finish --yes")]
    Finish {
        #[command(flatten)]
        mongodb: MongoConfig,
        #[command(flatten)]
        why: ReasonArgs,
        #[command(flatten)]
        yes: ConfirmArgs,
    },
}

impl UpgradeArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let UpgradeVerb::Finish { mongodb, why, yes } = self.verb;
        yes.or_ask("Does no process of an older version run any more, and will none be started again?")?;
        let database = mongodb.connect().await?;
        let target = PartitionId::ONE.to_string();
        let input = recorded(Value::Null, why.reason.as_ref());
        let begun = ActionLog::begin_command(&database, "couponctl upgrade finish", target, input).await?;
        let finished = async {
            print(if Deployment::finish_upgrade(&database).await? {
                "it was finished before"
            } else {
                "restart the APIs, one after another: what older versions do not know, those that start from now on do"
            })
        };
        let finished = begun.carry_out(finished, command_status).await;
        mongo::close(&database).await;
        finished
    }
}
