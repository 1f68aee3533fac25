//! `GET /metrics`: what this process has counted, and its last readings of queue and stock ([`GaugeReader`]).

use std::sync::Arc;

use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};

use super::gauges::GaugeReader;

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The handler. A scrape asks neither Redis nor MongoDB.
pub fn route<S: Clone + Send + Sync + 'static>(watch: &Arc<GaugeReader>) -> MethodRouter<S> {
    let watch = Arc::clone(watch);
    get(async move || {
        let text = crate::metrics::render() + &watch.text();
        ([(header::CONTENT_TYPE, CONTENT_TYPE), (header::CACHE_CONTROL, "no-store")], text).into_response()
    })
}
