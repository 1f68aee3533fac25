//! Which problems each operation can answer with: its handler names its own, and this module adds those of every
//! operation of its kind. A description names codes in backticks; tests hold every answer against it.

use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::schema::{Object, Type};
use utoipa::openapi::{Header, OpenApi, RefOr};

use super::{operations, problem};
use crate::http::Code;

/// Problems that any request can meet before its handler or instead of its answer. A query parameter that the
/// operation does not know is `invalid`. A request without a `Host` is `malformed`; if the service asks for no
/// credentials, one for another host is `forbidden`.
const ANYWHERE: [Code; 6] =
    [Code::UriTooLong, Code::HeadTooLarge, Code::Malformed, Code::Forbidden, Code::Invalid, Code::Internal];
/// Routes without a rate limit.
const UNLIMITED: [&str; 2] = ["/livez", "/healthz"];
/// Routes that need neither Redis nor MongoDB.
const ALONE: [&str; 4] = ["/livez", "/healthz", "/problems", "/problems/{code}"];
/// The route that names its problems itself.
const READY: &str = "/readyz";
/// Routes that need MongoDB only.
const WITHOUT_REDIS: [&str; 6] = [
    "/users",
    "/users/random",
    "/users/{id}",
    "/user-coupons/{userId}",
    "/coupons/{id}/user-coupons",
    "/outcomes",
];

/// Whether it answers with the outcome of one issuance.
fn tells_an_outcome(path: &str, operation: &Operation) -> bool {
    let of_one = path.starts_with("/issuances/") || path.starts_with("/user-coupons/{userId}/{id}");
    let requests = path == "/user-coupons" && operation.request_body.is_some();
    of_one || requests || ["/dead-letters/{id}/redrive", "/dead-letters/{id}/discard"].contains(&path)
}

/// Adds the problems that every operation of a kind can answer with.
pub(crate) fn add_common(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        let path = path.as_str();
        for operation in operations(item) {
            for code in common(path, operation) {
                add(operation, code);
            }
            tell_limits(operation);
        }
    }
}

fn common(path: &str, operation: &Operation) -> Vec<Code> {
    let has_body = operation.request_body.is_some();
    let has_path = operation.parameters.iter().flatten().any(|parameter| match parameter {
        RefOr::T(parameter) => parameter.parameter_in == ParameterIn::Path,
        RefOr::Ref(_) => false,
    });
    let mut codes = ANYWHERE.to_vec();
    if has_body {
        codes.extend([Code::Timeout, Code::TooLarge, Code::UnsupportedMediaType]);
    }
    if has_path {
        // A path that is not UTF-8.
        codes.push(Code::NotFound);
    }
    if tells_an_outcome(path, operation) {
        codes.push(Code::OutcomeUnreadable);
    }
    if !UNLIMITED.contains(&path) {
        codes.push(Code::RateLimited);
    }
    if !ALONE.contains(&path) && path != READY {
        codes.extend([Code::Overloaded, Code::Unavailable]);
        if !WITHOUT_REDIS.contains(&path) {
            codes.push(Code::WarmingUp);
        }
    }
    codes
}

/// Adds the headers of a request that came too often.
fn tell_limits(operation: &mut Operation) {
    let status = Code::RateLimited.status();
    let Some(RefOr::T(limited)) = operation.responses.responses.get_mut(status.as_str()) else { return };
    let text = || Header::new(Object::with_type(Type::String));
    for (name, header) in [
        ("RateLimit", text()),
        ("RateLimit-Policy", text()),
        ("Retry-After", Header::new(Object::with_type(Type::Integer))),
    ] {
        limited.headers.insert(name.to_owned(), RefOr::T(header));
    }
}

/// Adds a code to what an operation answers, unless its handler names it.
fn add(operation: &mut Operation, code: Code) {
    let named = format!("`{}`", code.as_str());
    let responses = &mut operation.responses.responses;
    match responses.get_mut(code.status().as_str()) {
        Some(RefOr::T(response)) if !response.description.contains(&named) => {
            response.description = format!("{}, {named}", response.description);
        }
        Some(_) => {}
        None => {
            responses.insert(code.status().as_str().to_owned(), problem(&named));
        }
    }
}
