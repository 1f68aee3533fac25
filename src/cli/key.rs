//! `couponctl key`: API keys. It talks to MongoDB by itself, so that the first key can be made before
//! anybody can use the API.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::client::print;
use super::table::{sentence, table, words};
use crate::access::key::Key as ApiKey;
use crate::access::keyring::REVOKED_WITHIN;
use crate::access::{ACTIVE_MAX, Kept, KeyStore, LISTED_MAX, Revoked, Role};
use crate::boot::SetUpError;
use crate::config::MongoConfig;
use crate::{Failure, mongo};

/// Makes, lists and revokes API keys.
///
/// Connects to MongoDB by itself, so it needs no API and no key.
#[derive(Debug, Args)]
pub(super) struct Key {
    #[command(subcommand)]
    verb: Verb,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Makes a key, and shows it this once
    ///
    /// Roles: an operator may everything; a service requests, reads and redeems for any user, and
    /// exports; a viewer reads everything and changes nothing.
    #[command(after_long_help = "\
Examples:
  couponctl key create --name hong --role operator
  couponctl key create --name shop --role service --json > key.json

Send it as `Authorization: Bearer cpn_…`; couponctl takes it from COUPON_TOKEN.
JSON is {key, id, name, role, createdAt}; without --json only the key is on
standard output, and the rest on standard error.")]
    Create {
        /// Whose it is, for people
        #[arg(long)]
        name: String,
        /// What it allows: operator, service or viewer
        #[arg(long)]
        role: Role,
        /// Do nothing if there is a key already that is not revoked
        #[arg(long)]
        if_none: bool,
        #[command(flatten)]
        mongodb: MongoConfig,
    },
    /// Lists keys, newest first, revoked ones too
    #[command(after_long_help = "Example:\n  couponctl key list")]
    List {
        #[command(flatten)]
        mongodb: MongoConfig,
    },
    /// Revokes a key for good
    #[command(after_long_help = "Example:\n  couponctl key revoke k3v9x2m4q7ab")]
    Revoke {
        /// The key's id, as the list has it: what stands between cpn_ and the next _
        id: String,
        #[command(flatten)]
        mongodb: MongoConfig,
    },
}

impl Key {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (Verb::Create { mongodb, .. } | Verb::List { mongodb } | Verb::Revoke { mongodb, .. }) =
            &self.verb;
        let MongoConfig { mongodb_uri, mongodb_database } = mongodb;
        let database = mongo::connect(mongodb_uri, mongodb_database)
            .await
            .map_err(|error| SetUpError(vec![format!("--mongodb-uri is no MongoDB URI: {error}")]))?;
        let ended = self.run_on(&KeyStore::new(&database)).await;
        // Else the driver's own tasks may complain, when the program ends, that others are gone.
        database.client().clone().shutdown().immediate(true).await;
        ended
    }

    async fn run_on(&self, store: &KeyStore) -> anyhow::Result<()> {
        match &self.verb {
            Verb::Create { name, role, if_none, .. } => self.create(store, name, *role, *if_none).await,
            Verb::List { .. } => {
                let keys = store.list().await.map_err(away)?;
                if self.json {
                    let items: Vec<Value> = keys.iter().map(to_json).collect();
                    return print(&serde_json::to_string_pretty(&items)?);
                }
                let columns =
                    [words("KEY"), sentence("NAME"), words("ROLE"), words("CREATED"), words("REVOKED")];
                let rows = keys.iter().map(row).collect();
                let mut text = table(&columns, rows, "No keys.");
                if keys.len() == LISTED_MAX {
                    text.push_str(&format!("only the newest {LISTED_MAX} are shown\n"));
                }
                print(&text)
            }
            Verb::Revoke { id, .. } => {
                let (key, says) = match store.revoke(id).await.map_err(away)? {
                    Revoked::Now(key) => (key, "revoked: it stops working within"),
                    Revoked::Before(key) => (key, "was revoked before; and stopped within"),
                    Revoked::NotFound => {
                        anyhow::bail!("there is no key {id:?}; `couponctl key list` shows what there is")
                    }
                };
                if self.json {
                    return print(&serde_json::to_string_pretty(&to_json(&key))?);
                }
                let seconds = REVOKED_WITHIN.as_secs();
                print(&format!("key {} ({}) {says} {seconds} s", key.id, key.name))
            }
        }
    }

    async fn create(&self, store: &KeyStore, name: &str, role: Role, if_none: bool) -> anyhow::Result<()> {
        if if_none && !store.active().await.map_err(away)?.is_empty() {
            eprintln!("nothing to do: there is a key already");
            return Ok(());
        }
        let (key, text) = ApiKey::generate(name, role).map_err(anyhow::Error::msg)?;
        match store.insert(&key).await.map_err(away)? {
            Kept::New => {}
            Kept::TooMany => {
                anyhow::bail!("there are {ACTIVE_MAX} keys already: revoke those that nobody needs")
            }
        }
        if self.json {
            let mut body = to_json(&key);
            body["key"] = text.into();
            return print(&serde_json::to_string_pretty(&body)?);
        }
        eprintln!(
            "key {} for {} ({}): it is shown this once, so keep it now",
            key.id,
            key.name,
            role.as_str()
        );
        print(&text)
    }
}

/// A server that does not answer is wrong with the environment.
fn away(failure: Failure) -> SetUpError {
    SetUpError(vec![format!("MongoDB does not answer: {}; is it running?", failure.chain())])
}

fn to_json(key: &ApiKey) -> Value {
    json!({
        "id": key.id,
        "name": key.name,
        "role": key.role.as_str(),
        "createdAt": key.created_at,
        "revokedAt": key.revoked_at,
    })
}

fn row(key: &ApiKey) -> Vec<String> {
    let time = |moment: Timestamp| format!("{moment:.0}");
    vec![
        key.id.clone(),
        key.name.clone(),
        key.role.as_str().into(),
        time(key.created_at),
        key.revoked_at.map_or_else(|| "-".into(), time),
    ]
}
