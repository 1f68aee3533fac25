//! The client compares every answer of a test with the snapshot of the OpenAPI document: the operation must document
//! the status, and the code of a problem.

use std::sync::OnceLock;

use serde_json::Value;

/// The snapshot of the OpenAPI document.
const AGREED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/snapshots/it__openapi__openapi.snap");

/// An operation: its method, the parts of its path (`None` is a parameter), and its responses.
struct Operation {
    method: String,
    path: Vec<Option<String>>,
    responses: Value,
}

fn operations() -> &'static [Operation] {
    static OPERATIONS: OnceLock<Vec<Operation>> = OnceLock::new();
    OPERATIONS.get_or_init(|| {
        let snapshot = std::fs::read_to_string(AGREED).expect("the snapshot");
        let json = snapshot.splitn(3, "---").nth(2).expect("a head and a document");
        let document: Value = serde_json::from_str(json).expect("JSON");
        let paths = document["paths"].as_object().expect("paths");
        let methods = paths.iter().flat_map(|(path, item)| {
            item.as_object().expect("an item").iter().map(move |(method, described)| Operation {
                method: method.to_uppercase(),
                path: path.split('/').map(|part| (!part.starts_with('{')).then(|| part.to_owned())).collect(),
                responses: described["responses"].clone(),
            })
        });
        methods.collect()
    })
}

/// The operation that a request is for; of two that fit, the one with fewer parameters.
fn operation(method: &str, path: &str) -> Option<&'static Operation> {
    let parts: Vec<&str> = path.split(['?', '#']).next().unwrap_or_default().split('/').collect();
    let fits = |operation: &&Operation| {
        operation.method == method
            && operation.path.len() == parts.len()
            && operation
                .path
                .iter()
                .zip(&parts)
                .all(|(known, part)| known.as_ref().map_or(!part.is_empty(), |known| known == part))
    };
    let parameters = |operation: &&Operation| operation.path.iter().filter(|part| part.is_none()).count();
    operations().iter().filter(fits).min_by_key(parameters)
}

/// Asserts that the operation documents this answer. It ignores requests that belong to no operation, and answers of a
/// listener that does not serve the operation.
#[track_caller]
pub fn assert_documented(method: &str, path: &str, status: u16, body: &Value) {
    let Some(operation) = operation(method, path) else { return };
    if status == 404 && body["code"] == "not-found" || status == 405 {
        return;
    }
    let Some(described) = operation.responses.get(status.to_string()) else {
        panic!("{method} {path} answers {status}, which is not documented: {body}");
    };
    if status >= 400 {
        let code = body["code"].as_str().unwrap_or_else(|| panic!("{method} {path}: no problem: {body}"));
        let description = described["description"].as_str().unwrap_or_default();
        let named = description.contains(&format!("`{code}`"));
        assert!(named, "{method} {path} answers {status} {code}, which is not documented: {body}");
    }
}
