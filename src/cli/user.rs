//! `couponctl user`.

use clap::Subcommand;
use serde_json::{Value, json};

use super::client::{ApiRequest, Noun, PageArgs};
use super::prompt::ConfirmArgs;
use super::table::Member::{Text, Time};
use super::table::{aside, cell, details, item_table, number, page_table, sentence, value, words};
use crate::ids::UserId;

#[derive(Debug, Subcommand)]
pub(super) enum UserVerb {
    /// Registers a user
    #[command(after_long_help = "\
Examples:
  couponctl user create hong --name '홍길동'
  couponctl user create --subject 'auth0|5f7c8ec7'")]
    Create {
        /// The user's id: letters, digits and . _ : @ -  (generated if not given)
        id: Option<UserId>,
        /// Instead of an id: `sub` of the user's tokens, whatever characters it has; the answer has the id
        #[arg(long, conflicts_with = "id")]
        subject: Option<String>,
        /// Name of the user (default: the id)
        #[arg(long)]
        name: Option<String>,
    },
    /// Registers users with random ids, for trials
    #[command(after_long_help = "Example:\n  couponctl user random 1000")]
    Random {
        /// Number of users, 1 to 100000
        #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
        count: u32,
        /// Idempotency key of an earlier attempt, to repeat it
        #[arg(long, value_parser = super::issue::idempotency_key)]
        key: Option<String>,
    },
    /// Lists users, newest first
    #[command(after_long_help = "Example:\n  couponctl user list --limit 10")]
    List {
        #[command(flatten)]
        page: PageArgs,
    },
    /// Shows a user, with the newest coupons that they hold
    #[command(after_long_help = "Example:\n  couponctl user show u1")]
    Show {
        /// The user's id
        id: UserId,
    },
    /// Deletes a user for good and anonymises their records; the accounts still add up
    #[command(after_long_help = "Example:\n  couponctl user delete u1 --yes")]
    Delete {
        /// The user's id
        id: UserId,
        #[command(flatten)]
        yes: ConfirmArgs,
    },
}

impl Noun<UserVerb> {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let session = self.api.open()?;
        match self.verb {
            UserVerb::Create { id, subject, name } => {
                let repeatable = id.is_some() || subject.is_some();
                let mut body = json!({"id": id.as_ref().map(UserId::as_str), "name": name});
                // An older API does not know subjects, and refuses the member.
                if let Some(subject) = subject {
                    body["subject"] = subject.into();
                }
                let request = ApiRequest::post("/users").body(body).repeatable(repeatable);
                session.send_and_show(request, user).await
            }
            UserVerb::Random { count, key } => {
                let request = ApiRequest::post("/users/random").query("count", Some(count)).keyed(key);
                session.send_and_show(request, created).await
            }
            UserVerb::List { page } => {
                session.send_and_show(ApiRequest::get("/users").page(page), list).await
            }
            UserVerb::Delete { id, yes } => {
                yes.or_ask(&format!("Delete user {id}, for good, and anonymise their records?"))?;
                session.send_and_show(ApiRequest::delete(format!("/users/{id}")), deletion).await
            }
            UserVerb::Show { id } => {
                session.send_and_show(ApiRequest::get(format!("/users/{id}")), user_with_coupons).await
            }
        }
    }
}

fn list(page: &Value) -> String {
    let columns = [
        (words("USER"), Text("/id")),
        (sentence("NAME"), Text("/name")),
        (words("REGISTERED"), Time("/createdAt")),
    ];
    page_table(page, &columns, "No users.")
}

fn user(user: &Value) -> String {
    details(&[
        ("user", value(user, "/id")),
        ("name", value(user, "/name")),
        ("registered", value(user, "/createdAt")),
    ])
}

fn user_with_coupons(body: &Value) -> String {
    let columns = [
        (words("COUPON"), Text("/couponId")),
        (number("SERIAL"), Text("/serial")),
        (words("STATUS"), Text("/status")),
        (words("ISSUED"), Time("/issuedAt")),
        (aside("VALID UNTIL"), Time("/validUntil")),
        (words("USER COUPON"), Text("/id")),
    ];
    format!("{}\n{}", user(body), item_table(&body["coupons"], &columns, "Holds no coupons."))
}

fn deletion(body: &Value) -> String {
    format!(
        "Unknown to everybody from now on; the records are anonymised once nothing is in flight, from {} on.",
        cell(body, "/anonymisedFrom")
    )
}

fn created(body: &Value) -> String {
    let ids: Vec<&str> = body["ids"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let count = body["created"].as_u64().unwrap_or(0);
    let rest = if count > ids.len() as u64 { ", …" } else { "" };
    format!("Registered {count} users: {}{rest}", ids.join(", "))
}
