//! The document that is served, and the pages.

use crate::helpers::System;

#[tokio::test]
async fn the_served_openapi_document_is_the_one_that_was_agreed_on() {
    let system = System::start().await;
    let served = system.client.get("/openapi.json").await;
    assert_eq!((served.status, served.header("content-type")), (200, "application/json"));
    insta::assert_json_snapshot!("openapi", served.body);
}

#[tokio::test]
async fn every_operation_has_a_name_of_its_own() {
    let document = coupon_system::api::openapi(coupon_system::api::Side::Whole);
    let document = serde_json::to_value(&document).expect("JSON");
    let items = document["paths"].as_object().expect("paths").values();
    let operations: Vec<_> = items.flat_map(|item| item.as_object().expect("operations").values()).collect();
    let names: std::collections::HashSet<_> =
        operations.iter().map(|operation| operation["operationId"].as_str().expect("a name")).collect();
    assert_eq!(names.len(), operations.len());
}

#[tokio::test]
async fn every_documented_get_without_parameters_answers() {
    let system = System::start().await;
    let document = system.client.get("/openapi.json").await.body;
    for (path, item) in document["paths"].as_object().expect("paths") {
        if item.get("get").is_some() && !path.contains('{') {
            // Not read to its end: a stream has none for minutes.
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
