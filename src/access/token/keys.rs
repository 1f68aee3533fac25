//! The keys that tokens are verified with, as a file has them: one secret, or a JSON Web Key Set.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde::Deserialize;

use super::SignedWith;

/// A shorter secret can be guessed from a token.
const SECRET_BYTES_MIN: usize = 32;
const RSA_BYTES_MIN: usize = 256;
const RSA_BYTES_MAX: usize = 1_024;
const KEYS_MAX: usize = 100;

/// See the module's documentation.
#[derive(Debug)]
pub(super) enum Keys {
    Secret(DecodingKey),
    /// By `kid`. One without is for tokens without.
    Set(HashMap<Option<String>, DecodingKey>),
}

impl Keys {
    /// Reads a file's content. The error says what is wrong with it, and never what is in it.
    pub fn parse(content: &[u8], signed_with: SignedWith) -> Result<Self, String> {
        if signed_with.is_symmetric() { secret(content) } else { set(content, signed_with) }
    }

    /// The key that a token names.
    pub fn of(&self, kid: Option<&String>) -> Option<&DecodingKey> {
        match self {
            Keys::Secret(key) => Some(key),
            Keys::Set(keys) => keys.get(&kid.cloned()),
        }
    }
}

fn secret(content: &[u8]) -> Result<Keys, String> {
    // Who writes a file with an editor ends its line.
    let secret = content.strip_suffix(b"\n").unwrap_or(content);
    let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
    if secret.len() < SECRET_BYTES_MIN {
        return Err(format!(
            "the secret has less than {SECRET_BYTES_MIN} bytes; `openssl rand -hex 32` makes one"
        ));
    }
    Ok(Keys::Secret(DecodingKey::from_secret(secret)))
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

/// A key of a set, as far as it matters here.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    used_for: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

fn set(content: &[u8], signed_with: SignedWith) -> Result<Keys, String> {
    let set: Set = serde_json::from_slice(content).map_err(|error| {
        format!("it is no JSON Web Key Set ({:?}, line {})", error.classify(), error.line())
    })?;
    let mut keys = HashMap::new();
    // A set may have keys for other purposes.
    for jwk in set.keys.iter().filter(|jwk| jwk.is_for(signed_with)) {
        let named = jwk.kid.as_deref().unwrap_or("none");
        let key = jwk.key(signed_with).map_err(|why| format!("the key with kid {named:?} {why}"))?;
        if keys.insert(jwk.kid.clone(), key).is_some() {
            return Err(format!("it has two keys with kid {named:?}"));
        }
    }
    match keys.len() {
        0 => Err(format!("it has no key for {}", signed_with.as_str())),
        1..=KEYS_MAX => Ok(Keys::Set(keys)),
        _ => Err(format!("it has more than {KEYS_MAX} keys")),
    }
}

impl Jwk {
    fn is_for(&self, signed_with: SignedWith) -> bool {
        let (kty, crv) = shape(signed_with);
        self.kty == kty
            && (crv.is_none() || self.crv.as_deref() == crv)
            && self.alg.as_deref().is_none_or(|alg| alg == signed_with.as_str())
            && self.used_for.as_deref().is_none_or(|used_for| used_for == "sig")
    }

    fn key(&self, signed_with: SignedWith) -> Result<DecodingKey, String> {
        match signed_with {
            SignedWith::Es256 => self.point(32),
            SignedWith::Es384 => self.point(48),
            SignedWith::EdDsa => Ok(DecodingKey::from_ed_der(&bytes("x", self.x.as_deref(), 32..=32)?)),
            _ => {
                let modulus = bytes("n", self.n.as_deref(), RSA_BYTES_MIN..=RSA_BYTES_MAX)?;
                let exponent = bytes("e", self.e.as_deref(), 1..=5)?;
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
fn shape(signed_with: SignedWith) -> (&'static str, Option<&'static str>) {
    match signed_with {
        SignedWith::Hs256 | SignedWith::Hs384 | SignedWith::Hs512 => ("oct", None),
        SignedWith::Es256 => ("EC", Some("P-256")),
        SignedWith::Es384 => ("EC", Some("P-384")),
        SignedWith::EdDsa => ("OKP", Some("Ed25519")),
        SignedWith::Rs256
        | SignedWith::Rs384
        | SignedWith::Rs512
        | SignedWith::Ps256
        | SignedWith::Ps384
        | SignedWith::Ps512 => ("RSA", None),
    }
}

fn bytes(name: &str, text: Option<&str>, length: std::ops::RangeInclusive<usize>) -> Result<Vec<u8>, String> {
    let decoded = text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    let decoded = decoded.ok_or_else(|| format!("has no {name}, or not as base64url"))?;
    if length.contains(&decoded.len()) {
        Ok(decoded)
    } else {
        Err(format!("has a {name} of {} bytes, not of {} to {}", decoded.len(), length.start(), length.end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_secret_may_end_its_line_and_must_be_long() {
        assert!(secret(&[b's'; 32]).is_ok());
        let Ok(Keys::Secret(key)) = secret(&[[b's'; 32].as_slice(), b"\r\n"].concat()) else {
            panic!("a secret")
        };
        assert_eq!(key.try_get_as_bytes().unwrap(), [b's'; 32]);
        assert!(secret(&[[b's'; 31].as_slice(), b"\n"].concat()).is_err());
        assert!(secret(b"").is_err());
    }

    #[test]
    fn a_set_gives_the_keys_of_its_algorithm_and_says_what_is_wrong_with_them() {
        let coordinate = URL_SAFE_NO_PAD.encode([7; 32]);
        let key =
            |kid: &str| json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": coordinate, "y": coordinate});
        let parse = |set: &serde_json::Value| Keys::parse(set.to_string().as_bytes(), SignedWith::Es256);
        let other = json!({"kty": "RSA", "kid": "r", "n": "short", "e": "AQAB"});
        let unknown = json!({"kty": "new", "kid": "n", "alg": "NEW1"});
        let keys = parse(&json!({"keys": [key("a"), key("b"), other, unknown]})).unwrap();
        let Keys::Set(by_kid) = &keys else { panic!("a set") };
        assert_eq!(by_kid.len(), 2);
        assert!(keys.of(Some(&"a".into())).is_some() && keys.of(Some(&"r".into())).is_none());
        assert!(keys.of(None).is_none());

        let mut short = key("a");
        short["x"] = "AQAB".into();
        let mut encryption = key("a");
        encryption["use"] = "enc".into();
        for (wrong, why) in [
            (json!({"keys": [short]}), "32"),
            (json!({"keys": [key("a"), key("a")]}), "two keys"),
            (json!({"keys": [encryption]}), "no key for ES256"),
            (json!({"keys": [other]}), "no key for ES256"),
            (json!({"keys": []}), "no key"),
            (json!([]), "no JSON Web Key Set"),
        ] {
            let error = parse(&wrong).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }
}
