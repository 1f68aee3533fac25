//! `couponctl key`: API keys. It talks to MongoDB by itself, so that the first key can be made before
//! anybody can use the API.

use crate::mongo::Database;
use axum::http::StatusCode;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::client::print;
use super::table::{sentence, table, words};
use crate::access::key::{ApiKey, ID_CHARS_MAX, PREFIX};
use crate::access::keyring::REVOKED_WITHIN;
use crate::access::{ACTIVE_MAX, ActionLog, KeyInsert, KeyStore, LISTED_MAX, RevokeOutcome, Role};
use crate::config::MongoConfig;
use crate::failure::SetUpError;
use crate::{Failure, mongo};

/// Makes, lists and revokes API keys.
///
/// Connects to MongoDB by itself, so it needs no API and no key. What it makes and revokes is recorded among
/// operators' actions (`couponctl action list`), with the user of the operating system who ran it.
#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    verb: KeyVerb,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum KeyVerb {
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
standard output, and the rest on standard error. APIs that run and ask nobody
for credentials (--open, dev) ask for them within 5 s of the first key.")]
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
        id: KeyName,
        #[command(flatten)]
        mongodb: MongoConfig,
    },
}

/// Names a key by its id, and by itself: who has only the key must be able to revoke it, and it must not be
/// repeated.
#[derive(Debug, Clone)]
struct KeyName(String);

impl From<String> for KeyName {
    fn from(text: String) -> Self {
        let key = text.strip_prefix(PREFIX).unwrap_or(&text);
        let id = key.split('_').next().unwrap_or_default();
        // Longer is only a secret.
        KeyName(if id.len() <= ID_CHARS_MAX { id.to_owned() } else { String::new() })
    }
}

impl KeyArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (KeyVerb::Create { mongodb, .. } | KeyVerb::List { mongodb } | KeyVerb::Revoke { mongodb, .. }) =
            &self.verb;
        let database = mongodb.connect().await?;
        let ended = self.run_on(&database).await;
        mongo::close(&database).await;
        ended
    }

    async fn run_on(&self, database: &Database) -> anyhow::Result<()> {
        let store = &KeyStore::new(database);
        match &self.verb {
            KeyVerb::Create { name, role, if_none, .. } => self.create(database, name, *role, *if_none).await,
            KeyVerb::List { .. } => {
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
            KeyVerb::Revoke { id: KeyName(id), .. } => {
                let (key, says) = match self.revoke(database, id).await? {
                    RevokeOutcome::Now(key) => (key, "revoked: it stops working within"),
                    RevokeOutcome::Before(key) => (key, "was revoked before; and stopped within"),
                    RevokeOutcome::Unreadable => {
                        return print(&format!(
                            "key {id} is revoked; what else its record says cannot be read"
                        ));
                    }
                    RevokeOutcome::NotFound => {
                        anyhow::bail!(
                            "there is no key with this id; `couponctl key list` shows what there is"
                        )
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

    async fn revoke(&self, database: &Database, id: &str) -> anyhow::Result<RevokeOutcome> {
        let begun = ActionLog::begin_command(database, "couponctl key revoke", id.to_owned(), None);
        let begun = begun.await.map_err(not_recorded)?;
        let store = KeyStore::new(database);
        let revoked = begun.carry_out(store.revoke(id), |revoked| match revoked {
            Ok(RevokeOutcome::NotFound) => StatusCode::NOT_FOUND,
            Ok(_) => StatusCode::OK,
            Err(_) => StatusCode::SERVICE_UNAVAILABLE,
        });
        revoked.await.map_err(|failure| away(failure).into())
    }

    async fn create(&self, database: &Database, name: &str, role: Role, if_none: bool) -> anyhow::Result<()> {
        let store = KeyStore::new(database);
        if if_none && !store.active().await.map_err(away)?.is_empty() {
            eprintln!("nothing to do: there is a key already");
            return Ok(());
        }
        let (key, text) = ApiKey::generate(name, role).map_err(anyhow::Error::msg)?;
        let input = json!({"name": key.name, "role": role.as_str()}).to_string();
        let begun = ActionLog::begin_command(database, "couponctl key create", key.id.clone(), Some(input));
        let begun = begun.await.map_err(not_recorded)?;
        let kept = begun.carry_out(store.insert(&key), |kept| match kept {
            Ok(KeyInsert::New) => StatusCode::CREATED,
            Ok(KeyInsert::TooMany) => StatusCode::CONFLICT,
            Err(_) => StatusCode::SERVICE_UNAVAILABLE,
        });
        match kept.await.map_err(away)? {
            KeyInsert::New => {}
            KeyInsert::TooMany => {
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

/// What cannot be recorded is not done.
fn not_recorded(failure: Failure) -> SetUpError {
    SetUpError(vec![format!(
        "nothing was done, as it cannot be recorded among operators' actions: {}",
        failure.chain()
    )])
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
