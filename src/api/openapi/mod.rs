//! The OpenAPI document. Each handler describes itself; this module adds who may call each route, and `problems` the
//! problems that any route of its kind can answer with.

mod problems;

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::schema::{Discriminator, Object, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder, Schema, Server,
};
use utoipa::{OpenApi as _, ToSchema};

use super::router::{ListenerScope, RouteGroup, documented};
use super::wire::export::{ExportEnd, Format, UnreadableUnit};
use super::wire::figures::Figures;
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
                       On every route, path and query of more than 8 KiB are answered 414, and a head of more than 32 KiB \
                       or 100 headers 431; a request without exactly one `Host` 400, and, if the service asks for no \
                       credentials, one for a host that is not the service's own 403.\n\n\
                       Later versions may add members to an answer, values to a `status`, a `state` or an `event`, reasons \
                       to the lines of `GET /outcomes`, and codes: a client ignores a member, and bears a value, that it does not know.\n\n\
                       Every answer that a rate limit counts has `RateLimit-Policy` and `RateLimit` \
                       (draft-ietf-httpapi-ratelimit-headers): the limit, what is left of it, and in how many seconds it \
                       is whole again. What is left is what this process knows.\n\n\
                       Names of members, and values of a `status` or a `state`, are in camelCase; codes in kebab-case.\n\n\
                       Amounts of money are whole numbers of the currency's minor unit (ISO 4217): 500 is 5.00 USD, 500 KRW, \
                       and 0.500 KWD.\n\n\
                       Users send a token that the shop signed, and act for themselves; programs and people of the shop \
                       send an API key (`couponctl key create`). Both as `Authorization: Bearer …`. A \
                       service that runs open asks for neither."
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
    components(schemas(Problem, Figures, Format, ExportEnd, UnreadableUnit, OutcomeLine, OutcomesEnd))
)]
struct Docs;

const KEY: &str = "key";
const TOKEN: &str = "token";

/// The document at `/openapi.json`, with the routes that a listener serves.
pub fn document(scope: ListenerScope) -> OpenApi {
    let mut document = Docs::openapi();
    for RouteGroup { audience, routes } in documented().into_iter().filter(|it| scope.has(it.audience)) {
        let mut described = routes.into_openapi();
        add_access(&mut described, audience);
        document.merge(described);
    }
    problems::add_common(&mut document);
    drop_null_parameters(&mut document);
    let components = document.components.get_or_insert_default();
    name_variants(components);
    add_schemes(components);
    document.servers = Some(vec![Server::new("/")]);
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

/// Adds who may call, and the answers to other callers.
fn add_access(document: &mut OpenApi, audience: Audience) {
    if audience.is_open() {
        for item in document.paths.paths.values_mut() {
            operations(item).for_each(|operation| operation.security = Some(Vec::new()));
        }
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

/// Names each variant of a tagged union, as in `QueuedIssuance`, and declares the tag as the discriminator, so that
/// generated clients have a type for each variant and know how to choose.
fn name_variants(components: &mut Components) {
    let mut named = BTreeMap::new();
    for (union, schema) in &mut components.schemas {
        let RefOr::T(Schema::OneOf(union_schema)) = schema else { continue };
        let tags: Option<Vec<_>> = union_schema.items.iter().map(tag).collect();
        let Some(tags) = tags.filter(|tags| !tags.is_empty()) else { continue };
        let mut discriminator = Discriminator::new(tags[0].0.clone());
        for (variant, (_, value)) in union_schema.items.iter_mut().zip(tags) {
            let name = format!("{}{}{union}", value[..1].to_uppercase(), &value[1..]);
            let reference = Ref::from_schema_name(&name);
            discriminator.mapping.insert(value, reference.ref_location.clone());
            named.insert(name, std::mem::replace(variant, RefOr::Ref(reference)));
        }
        union_schema.discriminator = Some(discriminator);
    }
    components.schemas.append(&mut named);
}

/// The member of a variant that can have only one value, and that value.
fn tag(variant: &RefOr<Schema>) -> Option<(String, String)> {
    let only_value = |property: &RefOr<Schema>| match property {
        RefOr::T(Schema::Object(Object { enum_values: Some(values), .. })) => match values.as_slice() {
            [Value::String(value)] => Some(value.clone()),
            _ => None,
        },
        _ => None,
    };
    match variant {
        RefOr::T(Schema::Object(object)) => {
            object.properties.iter().find_map(|(name, property)| Some((name.clone(), only_value(property)?)))
        }
        RefOr::T(Schema::AllOf(parts)) => parts.items.iter().find_map(tag),
        _ => None,
    }
}

/// Makes optional parameters never null: a query and a header cannot express null.
fn drop_null_parameters(document: &mut OpenApi) {
    for item in document.paths.paths.values_mut() {
        for parameter in operations(item).flat_map(|operation| operation.parameters.iter_mut().flatten()) {
            let RefOr::T(parameter) = parameter else { continue };
            if let Some(RefOr::T(Schema::Object(schema))) = &mut parameter.schema
                && let SchemaType::Array(types) = &schema.schema_type
                && let [only] = types.iter().filter(|one| **one != Type::Null).collect::<Vec<_>>()[..]
            {
                schema.schema_type = SchemaType::Type(only.clone());
            }
        }
    }
}

/// The operations of a path.
fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let all = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
    all.into_iter().flatten()
}

fn add(operation: &mut Operation, status: &str, description: &str) {
    let responses = &mut operation.responses.responses;
    responses.entry(status.to_owned()).or_insert_with(|| problem(description));
}

/// An answer that is a problem.
fn problem(description: &str) -> RefOr<Response> {
    let schema = RefOr::Ref(Ref::from_schema_name(Problem::name()));
    let content = ContentBuilder::new().schema(Some(schema)).build();
    let response = ResponseBuilder::new().description(description);
    RefOr::T(response.content("application/problem+json", content).build())
}
