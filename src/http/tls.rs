//! TLS of clients: the crypto provider and the compiled-in authorities that the drivers of Redis and MongoDB use
//! too.

use rustls::crypto::ring;
use rustls::{ClientConfig, Error, RootCertStore};

/// The TLS configuration of an `https` client, which trusts the public authorities.
///
/// # Errors
/// The crypto provider has no cipher suite for TLS 1.2 or 1.3.
pub(crate) fn client() -> Result<ClientConfig, Error> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let tls = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(tls)
}
