//! `couponctl key`: API keys. The command connects to MongoDB itself, because nobody can use the API before the first
//! key exists.

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

/// Creates, lists and revokes API keys.
///
/// The command connects to MongoDB itself, so it needs no API and no key. The record of operators' actions (`couponctl
/// action list`) names each key that it creates or revokes, and the operating system's user who ran it.
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
    /// Creates a key and shows it once
    ///
    /// An operator may do everything. A service requests, reads and redeems coupons for any user, and exports. A viewer
    /// reads everything and changes nothing.
    #[command(after_long_help = "\
Examples:
  couponctl key create --name hong --role operator
  couponctl key create --name shop --role service --json > key.json

Clients send the key as `Authorization: Bearer cpn_…`; couponctl reads it from
COUPON_TOKEN. JSON is {key, id, name, role, createdAt}; without --json only the
key goes to standard output, and the rest to standard error. Running APIs that
ask nobody for credentials (--open, dev) require them within 5 s of the first key.")]
    Create {
        /// Name of the key's owner, for people
        #[arg(long)]
        name: String,
        /// Role of the key: operator, service or viewer
        #[arg(long)]
        role: Role,
        /// Do nothing if a key exists that is not revoked
        #[arg(long)]
        if_none: bool,
        #[command(flatten)]
        mongodb: MongoConfig,
    },
    /// Lists keys, newest first, including revoked ones
    #[command(after_long_help = "Example:\n  couponctl key list")]
    List {
        #[command(flatten)]
        mongodb: MongoConfig,
    },
    /// Revokes a key for good
    #[command(after_long_help = "Example:\n  couponctl key revoke k3v9x2m4q7ab")]
    Revoke {
        /// Id of the key, as `couponctl key list` shows it: the part between cpn_ and the next _
        id: KeyName,
        #[command(flatten)]
        mongodb: MongoConfig,
    },
}

/// A key that is named by its id or by itself: an operator who has only the key can revoke it. Nothing repeats the
/// secret part.
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

/// The command does nothing that it cannot record.
fn not_recorded(failure: Failure) -> SetUpError {
    SetUpError(vec![format!(
        "nothing was done, as it cannot be recorded among operators' actions: {}",
        failure.chain()
    )])
}

/// A server that does not answer: the environment is wrong.
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
