//! Operators' routes on a listener of their own.

use coupon_system::access::Role;

use crate::helpers::System;

const OPERATOR_LISTEN: [&str; 2] = ["--operator-listen", "127.0.0.1:0"];

#[tokio::test]
async fn with_a_listener_for_operators_the_public_one_does_not_know_their_routes() {
    let system = System::builder().flags(&OPERATOR_LISTEN).start().await;
    system.coupon("c", 10, 1).await;
    system.users("u", 1).await;
    let operators = system.operators_client.clone().expect("a listener");
    for (method, path) in [
        ("GET", "/queue"),
        ("GET", "/workers"),
        ("GET", "/events"),
        ("GET", "/users"),
        ("GET", "/operator-actions"),
        ("GET", "/metrics"),
        ("POST", "/coupons/c/pause"),
        ("POST", "/pause"),
    ] {
        let public = system.client.send(system.client.request(method, path)).await;
        assert_eq!((public.status, public.code()), (404, "not-found"), "{path}");
        let own = operators.request(method, path).send().await.expect("an answer");
        assert!(own.status().is_success(), "{path}: {}", own.status());
    }
    // These share their path with a route that is public.
    for (method, path) in [("POST", "/coupons"), ("PATCH", "/coupons/c"), ("POST", "/users/random?count=1")] {
        let public = system.client.send(system.client.request(method, path)).await;
        assert_eq!((public.status, public.code()), (405, "method-not-allowed"), "{path}");
    }
    for path in ["/coupons/c", "/healthz", "/readyz", "/users/u0", "/docs/", "/"] {
        assert_eq!(system.client.get(path).await.status, 200, "{path}");
        assert_eq!(operators.get(path).await.status, 200, "{path}");
    }
    let (public, own) = (system.client.get("/openapi.json").await, operators.get("/openapi.json").await);
    assert!(public.body["paths"].get("/queue").is_none() && own.body["paths"].get("/queue").is_some());
    assert!(public.body["paths"]["/coupons"].get("post").is_none());
    assert!(own.body["paths"]["/coupons"].get("post").is_some());
}

#[tokio::test]
async fn the_listener_for_operators_asks_for_credentials_too() {
    let system = System::builder().closed(&[Role::Viewer]).flags(&OPERATOR_LISTEN).start().await;
    let keys = system.api_keys.clone();
    let operators = system.operators_client.clone().expect("a listener");
    assert_eq!(operators.get("/queue").await.status, 401);
    assert_eq!(operators.with(&keys[0]).get("/queue").await.status, 200);
    assert_eq!(system.client.with(&keys[0]).get("/queue").await.status, 404);
}
