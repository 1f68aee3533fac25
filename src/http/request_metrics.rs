//! Counts requests. Each thread remembers the metric handles of a route, so that counting a request takes one short
//! search, no lock and no allocation.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use metrics::{Counter, Histogram};

use crate::metrics::names;

/// The route label of requests that match no route.
const UNMATCHED: &str = "unmatched";

/// Method, status and problem code: what the answers of one route differ in.
type Kind = (&'static str, u16, &'static str);
/// A route has few kinds of answers, and most are of the first kind: a list is faster than a map.
type Routes = HashMap<String, Vec<(Kind, Counter, Histogram)>>;

thread_local! {
    static SEEN: RefCell<Routes> = RefCell::default();
}

/// Counts an answered request. `problem` is the code of its problem, or empty.
pub(super) fn answered(
    route: Option<&str>,
    method: &Method,
    status: StatusCode,
    problem: &'static str,
    elapsed: Duration,
) {
    let route = route.unwrap_or(UNMATCHED);
    let kind = (method_name(method), status.as_u16(), problem);
    SEEN.with_borrow_mut(|seen| {
        let known = match seen.get_mut(route) {
            Some(known) => known,
            None => seen.entry(route.to_owned()).or_default(),
        };
        let place = known.iter().position(|(of, ..)| *of == kind).unwrap_or_else(|| {
            let (requests, duration) = handles(route, kind);
            known.push((kind, requests, duration));
            known.len() - 1
        });
        let (_, requests, duration) = &known[place];
        requests.increment(1);
        duration.record(elapsed);
    });
}

fn handles(route: &str, (method, status, problem): Kind) -> (Counter, Histogram) {
    crate::metrics::start();
    let labels = [
        ("method", method.to_owned()),
        ("route", route.to_owned()),
        ("code", status.to_string()),
        ("problem", problem.to_owned()),
    ];
    let class = format!("{}xx", status / 100);
    let duration = metrics::histogram!(
        names::REQUEST_SECONDS, "method" => method, "route" => route.to_owned(), "code" => class
    );
    (metrics::counter!(names::REQUESTS, &labels), duration)
}

/// The label of a method. A client may invent methods: those that no route has share a label.
pub(super) fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
