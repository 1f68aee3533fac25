//! Swagger UI, from files that are compiled in; and the document that it shows.
//!
//! Its links are relative, so that it works under the path of any public URL. So is the redirect from `/docs` to
//! `/docs/`, without which those links would lead elsewhere.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use utoipa::openapi::{OpenApi, Server};
use utoipa_swagger_ui::{Config, serve};

use crate::api::pages;
use crate::http::{Code, Problem};

/// The hash allows the one style that Swagger UI's script adds to the page; tests/browser/pages fails when another
/// version has another style.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'sha256-RL3ie0nH+Lzz2YNqQN83mnU0J1ot4QL7b99vMdIX99w='; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The routes of Swagger UI and of the document, whose server is under the path `prefix`.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(mut document: OpenApi, prefix: &str) -> Router<S> {
    if !prefix.is_empty() {
        document.servers = Some(vec![Server::new(prefix)]);
    }
    // Serialised once: it is large, and anyone may request it.
    let document = Bytes::from(serde_json::to_vec(&document).unwrap_or_default());
    let document = move || {
        let answer = ([(header::CONTENT_TYPE, "application/json")], document.clone());
        async move { answer }
    };
    let config = Arc::new(Config::new(["../openapi.json"]));
    let files = Arc::clone(&config);
    Router::new()
        .route("/openapi.json", get(document))
        .route("/docs", get(async || (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "docs/")])))
        .route("/docs/", get(async move || file("", config)))
        .route("/docs/{*file}", get(async move |Path(path): Path<String>| file(&path, files)))
}

fn file(path: &str, config: Arc<Config<'static>>) -> Response {
    match serve(path, config) {
        Ok(Some(file)) => {
            let bytes = match file.bytes {
                Cow::Borrowed(bytes) => Bytes::from_static(bytes),
                Cow::Owned(bytes) => bytes.into(),
            };
            pages::page(file.content_type, CONTENT_POLICY, bytes)
        }
        Ok(None) => Problem::new(Code::NotFound).into_response(),
        Err(error) => {
            tracing::error!(%error, "a file of Swagger UI cannot be made");
            Problem::new(Code::Internal).into_response()
        }
    }
}
