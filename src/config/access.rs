//! Who may use the API: nothing but `--open` starts it without credentials.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::access::token::{TokenAlgorithm, TokenSettings};
use crate::failure::SetUpError;

/// Who may use the API.
#[derive(Clone, Args)]
#[command(next_help_heading = "Access")]
pub struct AccessConfig {
    /// Ask no caller for credentials: only for a network that you trust
    #[arg(long, env = "COUPON_OPEN")]
    pub open: bool,

    /// Address for operators' routes and metrics; --listen then serves neither
    #[arg(long, env = "COUPON_OPERATOR_LISTEN", value_name = "ADDRESS")]
    pub operator_listen: Option<SocketAddr>,

    /// Algorithm that signs users' tokens (JWT); the API refuses tokens with any other
    #[arg(long, env = "COUPON_JWT_ALGORITHM", value_name = "ALGORITHM", value_enum)]
    pub jwt_algorithm: Option<TokenAlgorithm>,

    /// `iss` that a user's token must have
    #[arg(long, env = "COUPON_JWT_ISSUER", value_name = "ISSUER")]
    pub jwt_issuer: Option<String>,

    /// `aud` that a user's token must have, alone or among others
    #[arg(long, env = "COUPON_JWT_AUDIENCE", value_name = "AUDIENCE")]
    pub jwt_audience: Option<String>,

    /// File with the secret for HS256, HS384 or HS512; the API reads it again when it changes
    #[arg(long, env = "COUPON_JWT_SECRET_FILE", value_name = "FILE")]
    pub jwt_secret_file: Option<PathBuf>,

    /// File with the JSON Web Key Set (JWKS) for the other algorithms; the API reads it again when it changes
    #[arg(long, env = "COUPON_JWT_JWKS_FILE", value_name = "FILE")]
    pub jwt_jwks_file: Option<PathBuf>,

    /// Verified tokens that each API process keeps in memory
    #[arg(long, env = "COUPON_TOKEN_CACHE", value_name = "NUMBER", default_value_t = 200_000)]
    pub token_cache: usize,
}

crate::text::never_shown!(AccessConfig);

impl AccessConfig {
    /// What users' tokens must be like; `None` if the API accepts no tokens.
    ///
    /// # Errors
    ///
    /// If a setting is missing, or two contradict each other.
    pub fn tokens(&self) -> Result<Option<TokenSettings>, SetUpError> {
        let given = [
            ("--jwt-algorithm", self.jwt_algorithm.is_some()),
            ("--jwt-issuer", is_given(self.jwt_issuer.as_ref())),
            ("--jwt-audience", is_given(self.jwt_audience.as_ref())),
            ("--jwt-secret-file", self.jwt_secret_file.is_some()),
            ("--jwt-jwks-file", self.jwt_jwks_file.is_some()),
        ];
        if given.iter().all(|(_, given)| !given) {
            return Ok(None);
        }
        let mut wrong: Vec<String> = given[..3]
            .iter()
            .filter(|(_, given)| !given)
            .map(|(flag, _)| format!("{flag} is missing: users' tokens need it"))
            .collect();
        if let Some(algorithm) = self.jwt_algorithm {
            let (needed, other) = if algorithm.is_symmetric() {
                ("--jwt-secret-file", self.jwt_jwks_file.is_some().then_some("--jwt-jwks-file"))
            } else {
                ("--jwt-jwks-file", self.jwt_secret_file.is_some().then_some("--jwt-secret-file"))
            };
            let name = algorithm.as_str();
            if given[3..].iter().any(|(flag, given)| *flag == needed && !given) {
                wrong.push(format!("{needed} is missing: {name} needs it"));
            }
            wrong.extend(other.map(|other| format!("{other} is not for {name}: take it away")));
        }
        let file = self.jwt_secret_file.clone().or_else(|| self.jwt_jwks_file.clone());
        match (self.jwt_algorithm, &self.jwt_issuer, &self.jwt_audience, file) {
            (Some(signed_with), Some(issuer), Some(audience), Some(key_file)) if wrong.is_empty() => {
                Ok(Some(TokenSettings {
                    signed_with,
                    issuer: issuer.clone(),
                    audience: audience.clone(),
                    key_file,
                    remembered: self.token_cache,
                }))
            }
            _ => Err(SetUpError(wrong)),
        }
    }
}

fn is_given(text: Option<&String>) -> bool {
    text.is_some_and(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        access: AccessConfig,
    }

    fn tokens(flags: &str) -> Result<Option<TokenSettings>, String> {
        let command = Command::try_parse_from(["x"].into_iter().chain(flags.split_whitespace())).unwrap();
        command.access.tokens().map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn settings_of_tokens_are_all_there_or_none_and_fit_the_algorithm() {
        assert!(tokens("").unwrap().is_none());
        let whole = "--jwt-algorithm HS256 --jwt-issuer i --jwt-audience a --jwt-secret-file f";
        let settings = tokens(whole).unwrap().unwrap();
        assert_eq!((settings.issuer.as_str(), settings.key_file.to_str()), ("i", Some("f")));
        let set = "--jwt-algorithm ES256 --jwt-issuer i --jwt-audience a --jwt-jwks-file f";
        assert_eq!(tokens(set).unwrap().unwrap().signed_with, TokenAlgorithm::Es256);
        for (wrong, named) in [
            ("--jwt-issuer i", "--jwt-algorithm"),
            ("--jwt-algorithm HS256 --jwt-secret-file f --jwt-issuer i", "--jwt-audience"),
            ("--jwt-algorithm HS256 --jwt-issuer i --jwt-audience a", "--jwt-secret-file is missing"),
            ("--jwt-algorithm RS256 --jwt-issuer i --jwt-audience a --jwt-secret-file f", "--jwt-jwks-file"),
            (&format!("{whole} --jwt-jwks-file f"), "--jwt-jwks-file is not for HS256"),
            (&whole.replace("issuer i", "issuer="), "--jwt-issuer"),
        ] {
            let error = tokens(wrong).unwrap_err();
            assert!(error.contains(named), "{wrong}: {error}");
        }
    }
}
