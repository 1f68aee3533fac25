//! The algorithms that tokens may be signed with. One is pinned by configuration: what a token says of
//! itself chooses nothing.

use clap::ValueEnum;
use jsonwebtoken::Algorithm;

/// The algorithm that tokens are signed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SignedWith {
    #[value(name = "HS256")]
    Hs256,
    #[value(name = "HS384")]
    Hs384,
    #[value(name = "HS512")]
    Hs512,
    #[value(name = "RS256")]
    Rs256,
    #[value(name = "RS384")]
    Rs384,
    #[value(name = "RS512")]
    Rs512,
    #[value(name = "PS256")]
    Ps256,
    #[value(name = "PS384")]
    Ps384,
    #[value(name = "PS512")]
    Ps512,
    #[value(name = "ES256")]
    Es256,
    #[value(name = "ES384")]
    Es384,
    #[value(name = "EdDSA")]
    EdDsa,
}

impl SignedWith {
    /// Whether one secret signs and verifies.
    pub fn is_symmetric(self) -> bool {
        matches!(self, SignedWith::Hs256 | SignedWith::Hs384 | SignedWith::Hs512)
    }

    /// The name in a token's head, and in a key set.
    pub fn as_str(self) -> &'static str {
        match self {
            SignedWith::Hs256 => "HS256",
            SignedWith::Hs384 => "HS384",
            SignedWith::Hs512 => "HS512",
            SignedWith::Rs256 => "RS256",
            SignedWith::Rs384 => "RS384",
            SignedWith::Rs512 => "RS512",
            SignedWith::Ps256 => "PS256",
            SignedWith::Ps384 => "PS384",
            SignedWith::Ps512 => "PS512",
            SignedWith::Es256 => "ES256",
            SignedWith::Es384 => "ES384",
            SignedWith::EdDsa => "EdDSA",
        }
    }
}

impl From<SignedWith> for Algorithm {
    fn from(signed: SignedWith) -> Self {
        match signed {
            SignedWith::Hs256 => Algorithm::HS256,
            SignedWith::Hs384 => Algorithm::HS384,
            SignedWith::Hs512 => Algorithm::HS512,
            SignedWith::Rs256 => Algorithm::RS256,
            SignedWith::Rs384 => Algorithm::RS384,
            SignedWith::Rs512 => Algorithm::RS512,
            SignedWith::Ps256 => Algorithm::PS256,
            SignedWith::Ps384 => Algorithm::PS384,
            SignedWith::Ps512 => Algorithm::PS512,
            SignedWith::Es256 => Algorithm::ES256,
            SignedWith::Es384 => Algorithm::ES384,
            SignedWith::EdDsa => Algorithm::EdDSA,
        }
    }
}
