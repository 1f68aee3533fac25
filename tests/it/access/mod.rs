//! Who may do what: keys, tokens, the record of what operators do.

mod actions;
mod command;
mod ending;
mod hidden;
mod key_sets;
mod keys;
mod lists;
mod operators;
mod recorded;
mod secrets;
mod spellings;
mod starting;
mod subjects;
mod table;
mod tokens;

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coupon_system::access::Role;
use ring::hmac;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::System;

pub const SECRET: &str = "a secret that the shop and the service share";
pub const ISSUER: &str = "https://shop.example";
pub const AUDIENCE: &str = "coupons";

/// No rate limit: tests poll until something happens.
pub const UNLIMITED: [&str; 2] = ["--user-rate", "0"];

/// The flags of an API that takes tokens with the secret in a file of the folder.
pub fn token_flags(folder: &TempDir) -> Vec<String> {
    let file = folder.path().join("secret");
    std::fs::write(&file, format!("{SECRET}\n")).expect("it is written");
    let file = file.to_str().expect("UTF-8");
    let flags = ["--jwt-algorithm", "HS256", "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE];
    flags.into_iter().chain(["--jwt-secret-file", file]).map(str::to_owned).collect()
}

/// An API that asks for credentials: users' tokens, and a key for each of the roles.
pub async fn closed(roles: &[Role]) -> (System, Vec<String>, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = token_flags(&folder);
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    flags.extend(UNLIMITED);
    let system = System::builder().closed(roles).flags(&flags).start().await;
    let keys = system.api_keys.clone();
    (system, keys, folder)
}

/// The moment that is this many seconds from now, as tokens write it.
pub fn seconds_from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    i64::try_from(now).expect("before the end of time") + seconds
}

/// The claims of a valid token of a user.
pub fn claims(user: &str) -> Value {
    json!({"sub": user, "iss": ISSUER, "aud": AUDIENCE, "exp": seconds_from_now(600)})
}

/// The same claims with one of them changed.
pub fn claims_with(user: &str, name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims(user);
    claims[name] = value.into();
    claims
}

/// The signed part of a token.
pub fn unsigned(head: &Value, claims: &Value) -> String {
    let part = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    format!("{}.{}", part(head), part(claims))
}

/// A whole token.
pub fn signed(message: String, signature: &[u8]) -> String {
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A token with a secret.
pub fn hs256(secret: &str, claims: &Value) -> String {
    let message = unsigned(&json!({"typ": "JWT", "alg": "HS256"}), claims);
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), message.as_bytes());
    signed(message, signature.as_ref())
}

/// A good token of a user.
pub fn token(user: &str) -> String {
    hs256(SECRET, &claims(user))
}
