//! Users' tokens, as a shop signs them, for requests with authentication.

use std::path::Path;

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::json;

use super::env::user;

const SECRET: &str = "the secret of a shop that is only ever benched";
const ISSUER: &str = "https://shop.example";
const AUDIENCE: &str = "coupons";
const GOOD_FOR_SECONDS: i64 = 24 * 3_600;

/// What an API is started with so that it asks for tokens; its secret is put into `folder`.
pub(super) fn flags(folder: &Path) -> anyhow::Result<Vec<String>> {
    let file = folder.join("jwt-secret");
    std::fs::write(&file, SECRET).with_context(|| format!("cannot write {}", file.display()))?;
    let file = file.to_str().context("the folder's name is no text")?.to_owned();
    let flags = ["--jwt-algorithm", "HS256", "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE];
    Ok(flags.map(str::to_owned).into_iter().chain(["--jwt-secret-file".to_owned(), file]).collect())
}

/// The tokens of users 0 to `count`, each as the line of a header.
pub(super) fn headers(count: u32) -> Vec<String> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let until = jiff::Timestamp::now().as_second() + GOOD_FOR_SECONDS;
    let head = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let signed = |number| {
        let claims = json!({"sub": user(number), "iss": ISSUER, "aud": AUDIENCE, "exp": until});
        let said = format!("{head}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(hmac::sign(&key, said.as_bytes()));
        format!("authorization: Bearer {said}.{signature}\r\n")
    };
    (0..count).map(signed).collect()
}
