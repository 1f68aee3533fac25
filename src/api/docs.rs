//! The OpenAPI document. Each handler describes itself; what all have in common is added here: who may
//! call; [`super::problems_of`] adds the problems.

use std::collections::HashMap;

use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{OpenApi as _, ToSchema};

use super::problems_of;
use super::router::{Group, Side, documented};
use super::wire::export::ExportEnd;
use super::wire::outcome::{OutcomeLine, OutcomesEnd};
use super::wire::problem::Problem;
use crate::access::{Audience, Role};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Coupon System",
        description = "First-come-first-served coupons. Request one with `POST /user-coupons`, and ask what became of it \
                       at the `Location` of the answer: *accepted* is not yet *issued*.\n\n\
                       Every 4xx and 5xx answer is a problem (RFC 9457), in English or Korean by `Accept-Language`. \
                       Whatever the route, path and query of more than 8 KiB are answered 414, and a head of more than 32 KiB \
                       or 100 headers 431.\n\n\
                       Users send a token that the shop signed, and act for themselves; programs and people of the shop \
                       send an API key (`couponctl key create`). Both as `Authorization: Bearer …`. Where the service \
                       runs open, nobody is asked."
    ),
    tags(
        (name = "issuances", description = "Request a coupon, and ask what became of the request"),
        (name = "user coupons", description = "What users hold"),
        (name = "coupons", description = "The offers"),
        (name = "exports", description = "For the shop's other systems: everything that is held, and every outcome"),
        (name = "users", description = "Who may request"),
        (name = "steering", description = "Pause, resume, restock, archive, edit"),
        (name = "operations", description = "Workers and dead letters"),
        (name = "service", description = "Health"),
    ),
    components(schemas(Problem, super::live::Figures, ExportEnd, OutcomeLine, OutcomesEnd))
)]
pub(super) struct Docs;

const KEY: &str = "key";
const TOKEN: &str = "token";

/// The document that is served at `/openapi.json`, of the routes that a listener serves.
pub fn openapi(side: Side) -> OpenApi {
    let mut document = Docs::openapi();
    for Group { audience, routes } in documented().into_iter().filter(|group| side.has(group.audience)) {
        let mut described = routes.into_openapi();
        add_access(&mut described, audience);
        document.merge(described);
    }
    problems_of::add_common(&mut document);
    tell_operations_apart(&mut document);
    add_schemes(document.components.get_or_insert_default());
    document
}

fn add_schemes(components: &mut Components) {
    let scheme = |format: &str, description: &str| {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format(format);
        SecurityScheme::Http(bearer.description(Some(description)).build())
    };
    let key = scheme("cpn_…", "An API key of a program or person of the shop");
    let token = scheme("JWT", "A token of a user, who is its subject");
    components.add_security_scheme(KEY, key);
    components.add_security_scheme(TOKEN, token);
}

/// Adds who may call, and what the others are answered.
fn add_access(document: &mut OpenApi, audience: Audience) {
    if audience == Audience::Anyone {
        return;
    }
    let mut security = vec![SecurityRequirement::new::<_, [&str; 0], _>(KEY, [])];
    if audience.has_users() {
        security.push(SecurityRequirement::new::<_, [&str; 0], _>(TOKEN, []));
    }
    let mut may: Vec<&str> = if audience.has_users() { vec!["the user"] } else { vec![] };
    may.extend(audience.roles().iter().copied().map(Role::as_str));
    let forbidden = format!("`forbidden`: it is for {}", may.join(", "));
    for item in document.paths.paths.values_mut() {
        for operation in operations(item) {
            operation.security = Some(security.clone());
            add(operation, "401", "`unauthenticated`: no credentials, or none that are good");
            add(operation, "403", &forbidden);
        }
    }
}

/// Gives operations of one name names of their own, with their tag before it: generated clients and
/// links into the document go by them.
fn tell_operations_apart(document: &mut OpenApi) {
    let mut seen = HashMap::<String, usize>::new();
    for item in document.paths.paths.values_mut() {
        for id in operations(item).filter_map(|operation| operation.operation_id.clone()) {
            *seen.entry(id).or_default() += 1;
        }
    }
    for item in document.paths.paths.values_mut() {
        for operation in operations(item) {
            let (Some(id), Some(tags)) = (&mut operation.operation_id, &operation.tags) else { continue };
            if seen.get(id).is_some_and(|times| *times > 1) {
                *id = format!("{}_{id}", tags.join("_").replace(' ', "_"));
            }
        }
    }
}

pub(super) fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let all = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
    all.into_iter().flatten()
}

fn add(operation: &mut Operation, status: &str, description: &str) {
    let responses = &mut operation.responses.responses;
    responses.entry(status.to_owned()).or_insert_with(|| problem(description));
}

/// An answer that is a problem.
pub(super) fn problem(description: &str) -> RefOr<Response> {
    let schema = RefOr::Ref(Ref::from_schema_name(Problem::name()));
    let content = ContentBuilder::new().schema(Some(schema)).build();
    let response = ResponseBuilder::new().description(description);
    RefOr::T(response.content("application/problem+json", content).build())
}
