//! The served OpenAPI document, and the pages.

use std::collections::{BTreeSet, HashSet};

use coupon_system::api::ListenerScope;
use coupon_system::http::Code;
use coupon_system::issuance::Reason;
use serde_json::Value;

use crate::helpers::System;

#[tokio::test]
async fn the_served_openapi_document_is_the_one_that_was_agreed_on() {
    let system = System::start().await;
    let served = system.client.get("/openapi.json").await;
    assert_eq!((served.status, served.header("content-type")), (200, "application/json"));
    insta::assert_json_snapshot!("openapi", served.body);
}

/// The document, as the API serves it on its one listener.
fn document() -> Value {
    served_on(ListenerScope::Whole)
}

/// The document, as a listener serves it.
fn served_on(side: ListenerScope) -> Value {
    serde_json::to_value(coupon_system::api::openapi::document(side)).expect("JSON")
}

/// The operations of a document, with the method and the path of each.
fn operations(document: &Value) -> Vec<(String, &Value)> {
    let paths = document["paths"].as_object().expect("paths");
    let operations = paths.iter().flat_map(|(path, item)| {
        let item = item.as_object().expect("an item").iter();
        item.map(move |(method, operation)| (format!("{} {path}", method.to_uppercase()), operation))
    });
    operations.collect()
}

/// Calls `visit` with every member of a document, and the pointer to it.
fn walk(value: &Value, pointer: &str, visit: &mut impl FnMut(&str, &str, &Value)) {
    let members: Vec<(String, &Value)> = match value {
        Value::Object(members) => members.iter().map(|(name, member)| (name.clone(), member)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, item)| (index.to_string(), item)).collect()
        }
        _ => return,
    };
    for (name, member) in members {
        let inner = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
        visit(&inner, &name, member);
        walk(member, &inner, visit);
    }
}

/// The codes of the problems that a response of an operation names.
fn codes_of(operation: &Value, status: &str) -> BTreeSet<&'static str> {
    let description = operation["responses"][status]["description"].as_str().expect("a description");
    let named = |code: &&str| description.contains(&format!("`{code}`"));
    Code::ALL.iter().map(|code| code.as_str()).filter(named).collect()
}

#[test]
fn the_client_of_the_page_knows_every_code_that_decides_a_request() {
    let document = document();
    let request = &document["paths"]["/user-coupons"]["post"];
    let rejections = codes_of(request, "409");
    for reason in Reason::ALL {
        assert!(rejections.contains(reason.as_str()), "{reason:?} is not in {rejections:?}");
    }
    let script = include_str!("../../src/api/pages/client.js");
    let (_, list) = script.split_once("const NO = [").expect("the list");
    let (list, _) = list.split_once(']').expect("its end");
    let known: BTreeSet<_> = list.split('"').skip(1).step_by(2).collect();
    assert_eq!(known, &rejections | &codes_of(request, "404"));
}

#[test]
fn every_operation_has_an_id_that_was_chosen_and_is_its_own() {
    let document = document();
    let mut ids = HashSet::new();
    for (operation, described) in operations(&document) {
        let id = described["operationId"].as_str().expect("an id");
        // An id in snake case was generated from the name of a Rust function, and changes with it.
        let is_chosen = id.chars().all(|c| c.is_ascii_alphanumeric())
            && id.starts_with(|c: char| c.is_ascii_lowercase())
            && id.contains(|c: char| c.is_ascii_uppercase());
        assert!(is_chosen, "{operation}: give it an operation_id of a verb and a noun, not {id}");
        assert!(ids.insert(id.to_owned()), "{operation}: {id} is another operation's, too");
    }
}

#[test]
fn every_response_says_what_it_is() {
    let document = document();
    for (operation, described) in operations(&document) {
        for (status, response) in described["responses"].as_object().expect("responses") {
            let description = response["description"].as_str().unwrap_or_default();
            assert!(!description.is_empty(), "{operation}: {status} has no description");
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let documents = [ListenerScope::Whole, ListenerScope::Public].map(served_on);
    assert!(operations(&documents[1]).len() < operations(&documents[0]).len());
    for document in documents {
        assert_references_lead_somewhere(&document);
    }
}

fn assert_references_lead_somewhere(document: &Value) {
    let (mut references, mut mapped) = (Vec::new(), 0);
    walk(document, "", &mut |pointer, name, value| {
        if name == "$ref" {
            references.push((pointer.to_owned(), value.as_str().expect("text").to_owned()));
        }
        if name == "mapping" {
            let mapping = value.as_object().expect("a mapping").values();
            references.extend(mapping.map(|to| (pointer.to_owned(), to.as_str().expect("text").to_owned())));
            mapped += 1;
        }
    });
    assert!(references.len() > 100 && mapped >= 3, "{} references, {mapped} unions", references.len());
    for (pointer, to) in references {
        let found = to.strip_prefix('#').and_then(|to| document.pointer(to));
        assert!(found.is_some(), "{pointer} refers to {to}, which is not in the document");
    }
}

#[test]
fn every_pattern_is_one_that_engines_without_lookahead_take() {
    let document = document();
    let mut patterns = 0;
    walk(&document, "", &mut |pointer, name, value| {
        if let ("pattern", Some(pattern)) = (name, value.as_str()) {
            patterns += 1;
            // This engine has the syntax of RE2, which Go and most other languages use.
            assert!(regex::Regex::new(pattern).is_ok(), "{pointer}: {pattern}");
        }
    });
    assert!(patterns > 0);
}

#[test]
fn names_and_states_are_in_camel_case_and_codes_in_kebab_case() {
    let camel = regex::Regex::new("^[a-z][a-zA-Z0-9]*$").expect("a pattern");
    let kebab = regex::Regex::new("^[a-z]+(-[a-z]+)*$").expect("a pattern");
    let (mut names, mut states) = (0, 0);
    walk(&document(), "", &mut |pointer, name, value| {
        if let ("properties", Some(members)) = (name, value.as_object()) {
            for member in members.keys() {
                assert!(camel.is_match(member), "{pointer}: {member}");
                names += 1;
            }
        }
        if let ("enum", Some(values)) = (name, value.as_array()) {
            for value in values {
                assert!(value.as_str().is_some_and(|value| camel.is_match(value)), "{pointer}: {value}");
                states += 1;
            }
        }
    });
    assert!(names > 100 && states > 20, "{names} {states}");
    for code in Code::ALL {
        assert!(kebab.is_match(code.as_str()), "{code:?}");
    }
}

#[test]
fn the_patterns_of_keys_take_what_the_service_takes() {
    let document = document();
    let long = "k".repeat(255);
    let (quoted, escaped) = (format!("\"{long}\""), format!("\"{}\"", r#"\""#.repeat(255)));
    let texts = [
        "",
        "k",
        "k l",
        "k ",
        r#"""#,
        r#""""#,
        r#""k""#,
        r#""k"#,
        r#""k"l"#,
        r#"k"l"#,
        r#""k\"l""#,
        r#""k\l""#,
        r#""k\\""#,
        r#""k\""#,
        "ü",
        &long,
        &format!("{long}k"),
        &quoted,
        &escaped,
        &format!("\"{long}k\""),
    ];
    let mut keys = 0;
    for (operation, described) in operations(&document) {
        let parameters = described["parameters"].as_array().into_iter().flatten();
        for parameter in parameters.filter(|parameter| parameter["name"] == "Idempotency-Key") {
            let schema = &parameter["schema"];
            let pattern =
                regex::Regex::new(schema["pattern"].as_str().expect("a pattern")).expect("a pattern");
            let longest = schema["maxLength"].as_u64().expect("a length") as usize;
            // A server sees no space at the end of a header.
            for text in texts.into_iter().filter(|text| text.trim() == *text) {
                let takes = text.parse::<coupon_system::issuance::IdempotencyKey>().is_ok();
                let fits = text.len() <= longest && pattern.is_match(text);
                assert_eq!(fits, takes, "{operation}: {text:?}");
            }
            keys += 1;
        }
    }
    assert_eq!(keys, 3);
}

#[test]
fn the_patterns_of_ids_take_what_the_service_takes() {
    let document = document();
    let pattern = |pointer: &str| {
        let pattern = document.pointer(pointer).and_then(Value::as_str).expect("a pattern");
        regex::Regex::new(pattern).expect("a pattern")
    };
    let coupons = ["CreateCoupon/properties/id", "RequestIssuance/properties/couponId"];
    let users = ["CreateUser/properties/id", "RequestIssuance/properties/userId"];
    let of = |names: [&str; 2]| names.map(|name| pattern(&format!("/components/schemas/{name}/pattern")));
    let (coupons, users) = (of(coupons), of(users));
    let (longest, longer, dots) = ("a".repeat(64), "a".repeat(65), ".".repeat(64));
    let texts =
        ["", ".", "..", "...", "a", "a.", ".a", "a:", ":a", "@", "a b", "/", "한", &longest, &longer, &dots];
    for text in texts {
        let coupon = text.parse::<coupon_system::ids::CouponId>().is_ok();
        let user = text.parse::<coupon_system::ids::UserId>().is_ok();
        assert_eq!([&coupons[0], &coupons[1]].map(|pattern| pattern.is_match(text)), [coupon; 2], "{text}");
        assert_eq!([&users[0], &users[1]].map(|pattern| pattern.is_match(text)), [user; 2], "{text}");
    }
}

#[test]
fn the_states_of_an_issuance_are_types_of_their_own() {
    let document = document();
    let issuance = document.pointer("/components/schemas/Issuance").expect("a schema");
    assert_eq!(issuance["discriminator"]["propertyName"], "state");
    for (state, name) in
        [("queued", "QueuedIssuance"), ("issued", "IssuedIssuance"), ("rejected", "RejectedIssuance")]
    {
        let reference = format!("#/components/schemas/{name}");
        assert_eq!(issuance["discriminator"]["mapping"][state], reference);
        let variant = document.pointer(&reference[1..]).expect("a schema");
        assert_eq!(variant["properties"]["state"]["enum"], serde_json::json!([state]));
    }
}

#[tokio::test]
async fn every_documented_get_without_parameters_answers() {
    let system = System::start().await;
    let document = system.client.get("/openapi.json").await.body;
    for (path, item) in document["paths"].as_object().expect("paths") {
        if item.get("get").is_some() && !path.contains('{') {
            // The test does not read to the end: a stream stays open for minutes.
            let answer = system.client.request("GET", path).send().await.expect("an answer");
            assert_eq!(answer.status(), 200, "{path}");
        }
    }
}

#[tokio::test]
async fn swagger_and_the_try_it_page_are_served_with_all_they_need() {
    let system = System::start().await;
    let text = async |path: &str| {
        let response = system.client.request("GET", path).send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{path}");
        let kind = response.headers()["content-type"].to_str().expect("text").to_owned();
        (kind, response.text().await.expect("a body"))
    };
    assert!(text("/docs/").await.1.contains("swagger-ui"));
    assert!(text("/docs/swagger-initializer.js").await.1.contains("openapi.json"));
    let (kind, page) = text("/").await;
    assert!(
        kind.starts_with("text/html") && page.contains("assets/try.js") && page.contains("assets/try.css")
    );
    assert!(text("/assets/try.js").await.0.starts_with("text/javascript"));
    assert!(text("/assets/try.css").await.0.starts_with("text/css"));
}
