//! Users' tokens while their keys change.

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coupon_system::metrics;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use super::{
    AUDIENCE, ISSUER, SECRET, UNLIMITED, claims, claims_with, closed, hs256, seconds_from_now, signed,
    unsigned,
};
use crate::helpers::{System, eventually};

pub(super) async fn status(system: &System, token: &str) -> u16 {
    system.client.with(token).get("/users/u1").await.status
}

pub(super) async fn becomes(system: &System, token: &str, wanted: u16) {
    eventually(&format!("the token is answered {wanted}"), async || {
        (status(system, token).await == wanted).then_some(())
    })
    .await;
}

/// How often this process has failed to refresh the keys of tokens.
fn stale() -> u64 {
    let text = metrics::render();
    let line =
        text.lines().find(|line| line.starts_with("coupon_credentials_stale_total{source=\"tokens\"}"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("it is counted from 0 on")
}

#[tokio::test]
async fn a_new_secret_is_taken_without_a_restart_and_a_broken_one_is_not() {
    const NEW: &str = "another secret of the shop, made for this very test";
    let (system, _, folder) = closed(&[]).await;
    system.users("u", 2).await;
    let (old, new) = (hs256(SECRET, &claims("u1")), hs256(NEW, &claims("u1")));
    assert_eq!((status(&system, &old).await, status(&system, &new).await), (200, 401));

    let file = folder.path().join("secret");
    for broken in [&b"short"[..], b"", &[b'x'; 300 * 1_024]] {
        let before = stale();
        std::fs::write(&file, broken).expect("it is written");
        eventually("the broken file is seen", async || (stale() > before).then_some(())).await;
        assert_eq!((status(&system, &old).await, status(&system, &new).await), (200, 401));
    }
    std::fs::remove_file(&file).expect("it is gone");
    let before = stale();
    eventually("that it is gone is seen", async || (stale() > before).then_some(())).await;
    assert_eq!(status(&system, &old).await, 200);

    std::fs::write(&file, NEW).expect("it is written");
    becomes(&system, &new, 200).await;
    // The API verified it before, and forgets it with the secret.
    assert_eq!(status(&system, &old).await, 401);
}

#[tokio::test]
async fn a_token_that_was_verified_once_ends_when_it_ends() {
    let (system, _, _folder) = closed(&[]).await;
    system.users("u", 2).await;
    // The leeway for differing clocks leaves two more seconds.
    let ending = hs256(SECRET, &claims_with("u1", "exp", seconds_from_now(-28)));
    let fractional = hs256(SECRET, &claims_with("u1", "exp", seconds_from_now(60) as f64 + 0.5));
    assert_eq!(status(&system, &ending).await, 200);
    assert_eq!(status(&system, &fractional).await, 200);
    becomes(&system, &ending, 401).await;
    let expired = system.client.with(&ending).get("/users/u1").await;
    assert!(expired.header("www-authenticate").contains("expired"), "{expired:?}");
    assert_eq!(status(&system, &fractional).await, 200);
}

#[tokio::test]
async fn an_audience_may_be_one_of_several() {
    let (system, _, _folder) = closed(&[]).await;
    system.users("u", 2).await;
    let several = hs256(SECRET, &claims_with("u1", "aud", json!(["app", AUDIENCE])));
    let others = hs256(SECRET, &claims_with("u1", "aud", json!(["app", "web"])));
    assert_eq!((status(&system, &several).await, status(&system, &others).await), (200, 401));
}

/// A key of a shop that signs with ES256.
pub(super) struct Es256Signer {
    kid: &'static str,
    pair: EcdsaKeyPair,
}

impl Es256Signer {
    pub fn new(kid: &'static str) -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).expect("a key");
        Es256Signer { kid, pair }
    }

    pub fn public(&self) -> Value {
        let point = &self.pair.public_key().as_ref()[1..];
        let (x, y) = point.split_at(32);
        let text = |bytes| URL_SAFE_NO_PAD.encode(bytes);
        json!({"kty": "EC", "crv": "P-256", "kid": self.kid, "use": "sig", "x": text(x), "y": text(y)})
    }

    pub fn token(&self, head: &Value) -> String {
        let message = unsigned(head, &claims("u1"));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).expect("a signature");
        signed(message, signature.as_ref())
    }

    pub fn good(&self) -> String {
        self.token(&json!({"alg": "ES256", "kid": self.kid}))
    }
}

pub(super) async fn with_set(file: &Path, algorithm: &str, keys: &[Value]) -> System {
    std::fs::write(file, json!({"keys": keys}).to_string()).expect("it is written");
    let file = file.to_str().expect("UTF-8");
    let flags = ["--jwt-algorithm", algorithm, "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE];
    let flags = [&flags[..], &["--jwt-jwks-file", file], &UNLIMITED].concat();
    let system = System::builder().closed(&[]).flags(&flags).start().await;
    system.users("u", 2).await;
    system
}

#[tokio::test]
async fn keys_of_a_set_are_chosen_by_kid_and_come_and_go_without_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("jwks.json");
    let (first, second) = (Es256Signer::new("first"), Es256Signer::new("second"));
    let system = with_set(&file, "ES256", &[first.public()]).await;
    assert_eq!((status(&system, &first.good()).await, status(&system, &second.good()).await), (200, 401));
    // The set has only one key that may verify the token.
    assert_eq!(status(&system, &first.token(&json!({"alg": "ES256"}))).await, 200);
    for head in [
        json!({"alg": "ES256", "kid": "second"}),
        json!({"alg": "none", "kid": "first"}),
        // The public key is no secret.
        json!({"alg": "HS256", "kid": "first"}),
    ] {
        assert_eq!(status(&system, &first.token(&head)).await, 401, "{head}");
    }
    std::fs::write(&file, json!({"keys": [first.public(), second.public()]}).to_string()).expect("written");
    becomes(&system, &second.good(), 200).await;
    assert_eq!(status(&system, &first.good()).await, 200);
    let verified_before = first.good();
    assert_eq!(status(&system, &verified_before).await, 200);
    std::fs::write(&file, json!({"keys": [second.public()]}).to_string()).expect("written");
    becomes(&system, &verified_before, 401).await;
    assert_eq!(status(&system, &second.good()).await, 200);
}

#[tokio::test]
async fn the_same_public_key_does_not_serve_as_a_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = Es256Signer::new("only");
    let system = with_set(&folder.path().join("jwks.json"), "ES256", &[key.public()]).await;
    let message = unsigned(&json!({"alg": "HS256", "kid": "only"}), &claims("u1"));
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.pair.public_key().as_ref());
    let forged = signed(message.clone(), ring::hmac::sign(&secret, message.as_bytes()).as_ref());
    assert_eq!((status(&system, &forged).await, status(&system, &key.good()).await), (401, 200));
}

#[tokio::test]
async fn tokens_may_be_signed_with_eddsa() {
    let folder = tempfile::tempdir().expect("a folder");
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a key");
    let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    let public = json!({"kty": "OKP", "crv": "Ed25519", "kid": "e", "alg": "EdDSA", "x": x});
    let system = with_set(&folder.path().join("jwks.json"), "EdDSA", &[public]).await;
    let message = unsigned(&json!({"alg": "EdDSA", "kid": "e"}), &claims("u1"));
    let good = signed(message.clone(), pair.sign(message.as_bytes()).as_ref());
    let other = unsigned(&json!({"alg": "EdDSA", "kid": "e"}), &claims("u0"));
    let swapped = signed(other, pair.sign(message.as_bytes()).as_ref());
    assert_eq!((status(&system, &good).await, status(&system, &swapped).await), (200, 401));
    // The same leeway holds here.
    assert_eq!(coupon_system::access::token::LEEWAY, Duration::from_secs(30));
}
