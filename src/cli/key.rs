//! `couponctl key`: API keys. The command connects to MongoDB itself, because nobody can use the API before the first
//! key exists.

use std::time::Duration;

use crate::mongo::Database;
use axum::http::StatusCode;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::action::{ReasonArgs, recorded};
use super::client::print;
use super::table::{sentence, table, words};
use crate::access::key::{ApiKey, ID_CHARS_MAX, PREFIX};
use crate::access::keyring::{EXPIRES_SOON, REVOKED_WITHIN};
use crate::access::{ACTIVE_MAX, ActionLog, KeyInsert, KeyStore, LISTED_MAX, RevokeOutcome, Role};
use crate::config::MongoConfig;
use crate::failure::SetUpError;
use crate::{Failure, mongo, text};

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
  couponctl key create --name audit --role viewer --expires-in 30d

Clients send the key as `Authorization: Bearer cpn_…`; couponctl reads it from
COUPON_TOKEN. JSON is {key, id, name, role, createdAt, expiresAt}; without --json
only the key goes to standard output, and the rest to standard error. Running APIs
that ask nobody for credentials (--open, dev) require them within 5 s of the first
key.")]
    Create {
        /// Name of the key's owner, for people
        #[arg(long)]
        name: String,
        /// Role of the key: operator, service or viewer
        #[arg(long)]
        role: Role,
        /// How long the key is valid, in days, hours, minutes and seconds, such as 30d or 12h (default: for ever)
        #[arg(long, value_name = "DURATION", value_parser = validity, conflicts_with = "expires_at")]
        expires_in: Option<Duration>,
        /// Moment from which on the key is refused, such as 2036-01-01T00:00:00+09:00
        #[arg(long, value_name = "TIME")]
        expires_at: Option<Timestamp>,
        /// Do nothing if a key exists that is not revoked
        #[arg(long)]
        if_none: bool,
        #[command(flatten)]
        why: ReasonArgs,
        #[command(flatten)]
        mongodb: MongoConfig,
    },
    /// Lists keys, newest first, including revoked ones
    #[command(after_long_help = "\
Example:
  couponctl key list

LAST USED is noted once a minute. EXPIRES says `soon` within seven days of it.")]
    List {
        #[command(flatten)]
        mongodb: MongoConfig,
    },
    /// Revokes a key for good
    #[command(after_long_help = "Example:\n  couponctl key revoke k3v9x2m4q7ab --reason 'It stood in a log'")]
    Revoke {
        /// Id of the key, as `couponctl key list` shows it: the part between cpn_ and the next _
        id: KeyName,
        #[command(flatten)]
        why: ReasonArgs,
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
            KeyVerb::Create { name, role, expires_in, expires_at, if_none, why, .. } => {
                let expires_at = match expires_in {
                    Some(duration) => Some(mongo::now_in_milliseconds().checked_add(*duration)?),
                    None => *expires_at,
                };
                if *if_none && !store.active().await.map_err(away)?.is_empty() {
                    eprintln!("nothing to do: there is a key already");
                    return Ok(());
                }
                self.create(database, name, *role, expires_at, why).await
            }
            KeyVerb::List { .. } => {
                let keys = store.list().await.map_err(away)?;
                if self.json {
                    let items: Vec<Value> = keys.iter().map(to_json).collect();
                    return print(&serde_json::to_string_pretty(&items)?);
                }
                let columns = [
                    words("KEY"),
                    sentence("NAME"),
                    words("ROLE"),
                    words("CREATED"),
                    words("LAST USED"),
                    words("EXPIRES"),
                    words("REVOKED"),
                ];
                let now = Timestamp::now();
                let rows = keys.iter().map(|key| row(key, now)).collect();
                let mut text = table(&columns, rows, "No keys.");
                if keys.len() == LISTED_MAX {
                    text.push_str(&format!("only the newest {LISTED_MAX} are shown\n"));
                }
                print(&text)
            }
            KeyVerb::Revoke { id: KeyName(id), why, .. } => {
                let (key, says) = match revoke(database, id, why).await? {
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

    async fn create(
        &self,
        database: &Database,
        name: &str,
        role: Role,
        expires_at: Option<Timestamp>,
        why: &ReasonArgs,
    ) -> anyhow::Result<()> {
        let store = KeyStore::new(database);
        let (key, secret) = ApiKey::generate(name, role, expires_at).map_err(anyhow::Error::msg)?;
        let mut input = json!({"name": key.name, "role": role.as_str()});
        if let Some(moment) = key.expires_at {
            input["expiresAt"] = moment.to_string().into();
        }
        let input = recorded(input, why.reason.as_ref());
        let begun = ActionLog::begin_command(database, "couponctl key create", key.id.clone(), input);
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
            body["key"] = secret.into();
            return print(&serde_json::to_string_pretty(&body)?);
        }
        eprintln!(
            "key {} for {} ({}): it is shown this once, so keep it now",
            key.id,
            key.name,
            role.as_str()
        );
        print(&secret)
    }
}

async fn revoke(database: &Database, id: &str, why: &ReasonArgs) -> anyhow::Result<RevokeOutcome> {
    let input = recorded(Value::Null, why.reason.as_ref());
    let begun = ActionLog::begin_command(database, "couponctl key revoke", id.to_owned(), input);
    let begun = begun.await.map_err(not_recorded)?;
    let store = KeyStore::new(database);
    let revoked = begun.carry_out(store.revoke(id), |revoked| match revoked {
        Ok(RevokeOutcome::NotFound) => StatusCode::NOT_FOUND,
        Ok(_) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    });
    revoked.await.map_err(|failure| away(failure).into())
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
        "expiresAt": key.expires_at,
        "lastUsedAt": key.last_used_at,
        "revokedAt": key.revoked_at,
    })
}

/// Reads how long a key is valid.
fn validity(text: &str) -> Result<Duration, String> {
    let length = text::duration(text)?;
    if length.is_zero() { Err("must be longer than nothing".into()) } else { Ok(length) }
}

fn row(key: &ApiKey, now: Timestamp) -> Vec<String> {
    let time = |moment: Timestamp| format!("{moment:.0}");
    let or_nothing = |moment: Option<Timestamp>| moment.map_or_else(|| "-".into(), time);
    let mut expires = or_nothing(key.expires_at);
    match key.expires_at {
        Some(moment) if moment <= now => expires.push_str(" (expired)"),
        Some(moment) if moment <= now + EXPIRES_SOON => expires.push_str(" (soon)"),
        _ => {}
    }
    vec![
        key.id.clone(),
        key.name.clone(),
        key.role.as_str().into(),
        time(key.created_at),
        or_nothing(key.last_used_at),
        expires,
        or_nothing(key.revoked_at),
    ]
}
