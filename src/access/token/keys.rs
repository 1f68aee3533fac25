//! The keys that tokens are verified with, as a file has them: one secret, or a JSON Web Key Set.
//!
//! The keys of a set are read here and not by `jsonwebtoken`: its reading checks no lengths, keeps zeros before a
//! modulus, and does not say which member of a key is wrong.

use std::ops::RangeInclusive;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use serde_json::Value;

use super::TokenAlgorithm;

/// A shorter secret can be guessed from a token.
const SECRET_BYTES_MIN: usize = 32;
const RSA_BYTES_MIN: usize = 256;
const RSA_BYTES_MAX: usize = 1_024;
/// Keys of a set that can be used; more are left out.
const KEYS_MAX: usize = 100;
/// How much of a `kid`, which another party chose, the log repeats.
const NAMED_CHARS_MAX: usize = 100;

/// The keys that tokens are verified with.
#[derive(Debug)]
pub(super) enum VerificationKeys {
    Secret(DecodingKey),
    /// Each with its `kid`, if it has one. Two may have the same, as while an issuer changes keys.
    Set(Vec<(Option<String>, DecodingKey)>),
}

impl VerificationKeys {
    /// Reads a file's content: the keys, and a line for each key that was left out of them. The error says
    /// what is wrong with the whole, and neither says what is in it.
    ///
    /// What is wrong with one key of a set stays with it (RFC 7517, section 5), and a set without any key
    /// that can be used is a set: no token fits it.
    pub fn parse(content: &[u8], signed_with: TokenAlgorithm) -> Result<(Self, Vec<String>), String> {
        if signed_with.is_symmetric() {
            secret(content).map(|keys| (keys, Vec::new()))
        } else {
            set(content, signed_with)
        }
    }

    /// The keys that a token may be signed with: those of the `kid` that it names. One that names none is for
    /// the keys without, or, where there is only one key, for that.
    pub fn of(&self, kid: Option<&str>) -> Vec<&DecodingKey> {
        match self {
            VerificationKeys::Secret(key) => vec![key],
            VerificationKeys::Set(keys) => {
                let of_kid = keys.iter().filter(|(named, _)| named.as_deref() == kid);
                let fitting: Vec<_> = of_kid.map(|(_, key)| key).collect();
                match keys.as_slice() {
                    [(_, only)] if kid.is_none() => vec![only],
                    _ => fitting,
                }
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            VerificationKeys::Secret(_) => 1,
            VerificationKeys::Set(keys) => keys.len(),
        }
    }
}

fn secret(content: &[u8]) -> Result<VerificationKeys, String> {
    // Who writes a file with an editor ends its line.
    let secret = content.strip_suffix(b"\n").unwrap_or(content);
    let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
    if secret.len() < SECRET_BYTES_MIN {
        return Err(format!(
            "the secret has less than {SECRET_BYTES_MIN} bytes; `openssl rand -hex 32` makes one"
        ));
    }
    Ok(VerificationKeys::Secret(DecodingKey::from_secret(secret)))
}

#[derive(Deserialize)]
struct JwkSet {
    /// Each is read by itself.
    keys: Vec<Value>,
}

/// A key of a set, as far as it matters here.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    used_for: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

fn set(content: &[u8], signed_with: TokenAlgorithm) -> Result<(VerificationKeys, Vec<String>), String> {
    let set: JwkSet = serde_json::from_slice(content).map_err(|error| {
        format!("it is no JSON Web Key Set ({:?}, line {})", error.classify(), error.line())
    })?;
    let (mut keys, mut left_out) = (Vec::new(), Vec::new());
    for (place, value) in set.keys.into_iter().enumerate() {
        let kid = value["kid"].as_str().map(shortened);
        match read(value, signed_with) {
            Ok(_) if keys.len() == KEYS_MAX => {
                left_out
                    .push(format!("all from the key at place {place} on: a set has {KEYS_MAX} keys at most"));
                break;
            }
            Ok(key) => keys.push(key),
            Err(why) => {
                let kid = kid.map_or_else(|| "without a kid".to_owned(), |kid| format!("with kid {kid:?}"));
                left_out.push(format!("the key at place {place}, {kid}: {why}"));
            }
        }
    }
    Ok((VerificationKeys::Set(keys), left_out))
}

/// Reads one key of a set, or says why it is none to verify tokens with.
fn read(value: Value, signed_with: TokenAlgorithm) -> Result<(Option<String>, DecodingKey), String> {
    if value["kty"].as_str().is_none() {
        return Err("it has no kty".into());
    }
    let jwk: Jwk =
        serde_json::from_value(value).map_err(|_| "a member of it has the wrong type".to_owned())?;
    if !jwk.is_for(signed_with) {
        return Err(format!("it is for something else than {}", signed_with.as_str()));
    }
    let key = jwk.key(signed_with).map_err(|why| format!("it {why}"))?;
    Ok((jwk.kid, key))
}

/// What a line of the log has room for.
fn shortened(text: &str) -> String {
    text.chars().take(NAMED_CHARS_MAX).collect()
}

impl Jwk {
    fn is_for(&self, signed_with: TokenAlgorithm) -> bool {
        let (kty, crv) = shape(signed_with);
        self.kty == kty
            && (crv.is_none() || self.crv.as_deref() == crv)
            && self.alg.as_deref().is_none_or(|alg| alg == signed_with.as_str())
            && self.used_for.as_deref().is_none_or(|used_for| used_for == "sig")
            && self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"))
    }

    fn key(&self, signed_with: TokenAlgorithm) -> Result<DecodingKey, String> {
        match signed_with {
            TokenAlgorithm::Es256 => self.point(32),
            TokenAlgorithm::Es384 => self.point(48),
            TokenAlgorithm::EdDsa => Ok(DecodingKey::from_ed_der(&bytes("x", self.x.as_deref(), 32..=32)?)),
            _ => {
                let modulus = number("n", self.n.as_deref(), RSA_BYTES_MIN..=RSA_BYTES_MAX)?;
                let exponent = number("e", self.e.as_deref(), 1..=5)?;
                Ok(DecodingKey::from_rsa_raw_components(&modulus, &exponent))
            }
        }
    }

    fn point(&self, length: usize) -> Result<DecodingKey, String> {
        const UNCOMPRESSED: u8 = 4;
        let mut point = vec![UNCOMPRESSED];
        point.extend(bytes("x", self.x.as_deref(), length..=length)?);
        point.extend(bytes("y", self.y.as_deref(), length..=length)?);
        Ok(DecodingKey::from_ec_der(&point))
    }
}

/// `kty` and `crv` of the keys of an algorithm.
fn shape(signed_with: TokenAlgorithm) -> (&'static str, Option<&'static str>) {
    match signed_with {
        TokenAlgorithm::Hs256 | TokenAlgorithm::Hs384 | TokenAlgorithm::Hs512 => ("oct", None),
        TokenAlgorithm::Es256 => ("EC", Some("P-256")),
        TokenAlgorithm::Es384 => ("EC", Some("P-384")),
        TokenAlgorithm::EdDsa => ("OKP", Some("Ed25519")),
        TokenAlgorithm::Rs256
        | TokenAlgorithm::Rs384
        | TokenAlgorithm::Rs512
        | TokenAlgorithm::Ps256
        | TokenAlgorithm::Ps384
        | TokenAlgorithm::Ps512 => ("RSA", None),
    }
}

fn bytes(name: &str, text: Option<&str>, length: RangeInclusive<usize>) -> Result<Vec<u8>, String> {
    sized(name, decoded(name, text)?, length)
}

/// A number. Some issuers write it with zeros before it, as the libraries of their languages do.
fn number(name: &str, text: Option<&str>, length: RangeInclusive<usize>) -> Result<Vec<u8>, String> {
    let digits = decoded(name, text)?.into_iter().skip_while(|digit| *digit == 0).collect();
    sized(name, digits, length)
}

fn decoded(name: &str, text: Option<&str>) -> Result<Vec<u8>, String> {
    let decoded = text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    decoded.ok_or_else(|| format!("has no {name}, or not as base64url"))
}

fn sized(name: &str, bytes: Vec<u8>, length: RangeInclusive<usize>) -> Result<Vec<u8>, String> {
    if length.contains(&bytes.len()) {
        Ok(bytes)
    } else {
        Err(format!("has a {name} of {} bytes, not of {} to {}", bytes.len(), length.start(), length.end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_secret_may_end_its_line_and_must_be_long() {
        assert!(secret(&[b's'; 32]).is_ok());
        let Ok(VerificationKeys::Secret(key)) = secret(&[[b's'; 32].as_slice(), b"\r\n"].concat()) else {
            panic!("a secret")
        };
        assert_eq!(key.try_get_as_bytes().unwrap(), [b's'; 32]);
        assert!(secret(&[[b's'; 31].as_slice(), b"\n"].concat()).is_err());
        assert!(secret(b"").is_err());
    }

    fn key(kid: &str) -> Value {
        let coordinate = URL_SAFE_NO_PAD.encode([7; 32]);
        json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": coordinate, "y": coordinate})
    }

    fn without(name: &str) -> Value {
        let mut key = key("bad");
        key.as_object_mut().expect("an object").remove(name);
        key
    }

    fn with(name: &str, value: impl Into<Value>) -> Value {
        let mut key = key("bad");
        key[name] = value.into();
        key
    }

    fn es256(set: &Value) -> Result<(VerificationKeys, Vec<String>), String> {
        VerificationKeys::parse(set.to_string().as_bytes(), TokenAlgorithm::Es256)
    }

    #[test]
    fn what_is_wrong_with_one_key_of_a_set_stays_with_it_and_is_told() {
        for (bad, told) in [
            (without("kty"), "no kty"),
            (with("kty", 7), "no kty"),
            (json!("a key"), "no kty"),
            (Value::Null, "no kty"),
            (without("x"), "no x"),
            (with("x", "AQAB"), "32"),
            (with("x", "not+base64"), "no x"),
            (with("kid", 7), "wrong type"),
            (with("use", "enc"), "something else"),
            (with("key_ops", json!(["encrypt"])), "something else"),
            (json!({"kty": "RSA", "kid": "r", "n": "short", "e": "AQAB"}), "something else"),
            (json!({"kty": "new", "kid": "n", "alg": "NEW1"}), "something else"),
        ] {
            let (keys, left_out) = es256(&json!({"keys": [bad, key("a")]})).unwrap();
            assert_eq!((keys.count(), keys.of(Some("a")).len(), keys.of(Some("bad")).len()), (1, 1, 0));
            assert!(left_out.len() == 1 && left_out[0].contains(told), "{bad}: {left_out:?}");
            // Alone it leaves a set without keys, which is one.
            let (keys, _) = es256(&json!({"keys": [bad]})).unwrap();
            assert_eq!((keys.count(), keys.of(Some("bad")).len(), keys.of(None).len()), (0, 0, 0));
        }
        assert_eq!(es256(&json!({"keys": []})).unwrap().0.count(), 0);
        let many: Vec<_> = (0..KEYS_MAX + 2).map(|number| key(&number.to_string())).collect();
        let (keys, left_out) = es256(&json!({"keys": many})).unwrap();
        assert!(keys.count() == KEYS_MAX && left_out.len() == 1, "{left_out:?}");
        for none in [json!([]), json!({}), json!({"keys": {}}), json!("keys")] {
            assert!(es256(&none).unwrap_err().contains("no JSON Web Key Set"), "{none}");
        }
    }

    #[test]
    fn a_token_is_for_the_keys_of_its_kid_and_one_without_for_the_only_key() {
        let (keys, _) = es256(&json!({"keys": [key("a"), key("a"), key("b"), without("kid")]})).unwrap();
        let fitting = [Some("a"), Some("b"), None, Some("c")].map(|kid| keys.of(kid).len());
        assert_eq!(fitting, [2, 1, 1, 0]);
        let (only, _) = es256(&json!({"keys": [key("a")]})).unwrap();
        assert_eq!([Some("a"), None, Some("b")].map(|kid| only.of(kid).len()), [1, 1, 0]);
        let (two, _) = es256(&json!({"keys": [key("a"), key("b")]})).unwrap();
        assert_eq!(two.of(None).len(), 0);
    }

    #[test]
    fn zeros_before_a_modulus_are_no_part_of_it() {
        let modulus = [&[0xc1][..], &[7; 255]].concat();
        let parse = |modulus: &[u8]| {
            let key = json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode(modulus), "e": "AAEAAQ"});
            VerificationKeys::parse(json!({"keys": [key]}).to_string().as_bytes(), TokenAlgorithm::Rs256)
                .unwrap()
                .0
        };
        let keys = parse(&[&[0, 0][..], &modulus].concat());
        let jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, e } = keys.of(None)[0].kind() else {
            panic!("an RSA key")
        };
        assert_eq!((n.as_slice(), e.as_slice()), (&modulus[..], &[1, 0, 1][..]));
        assert_eq!(parse(&[&[0][..], &modulus[1..]].concat()).count(), 0, "it is short without the zero");
    }
}
