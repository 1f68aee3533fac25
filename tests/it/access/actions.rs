//! The record of what operators do.

use coupon_system::access::action::{ActionEnd, ActionId, ActionStart, ActionSubject};
use coupon_system::access::{ActionLog, Caller, Role};
use futures::TryStreamExt;
use jiff::Timestamp;
use mongodb::bson::{Document, doc};
use serde_json::{Value, json};

use super::closed;
use crate::helpers::{Answer, Client, System};

async fn actions(client: &Client) -> Vec<Value> {
    client.get("/operator-actions").await.body["items"].as_array().expect("items").clone()
}

/// Sends a POST without a body.
async fn send(client: &Client, path: &str) -> Answer {
    client.send(client.request("POST", path)).await
}

#[tokio::test]
async fn what_operators_do_is_recorded_with_who_and_how_it_ended_also_what_fails() {
    let (system, keys, _folder) = closed(&[Role::Operator, Role::Viewer]).await;
    system.coupon("c", 10, 1).await;
    let (operator, viewer) = (system.client.with(&keys[0]), system.client.with(&keys[1]));
    let pause = operator.request("POST", "/coupons/c/pause").header("x-request-id", "r-1");
    let pause = pause.json(&json!({"reason": "점검 중"}));
    assert_eq!(system.client.send(pause).await.status, 200);
    let refused = operator.post("/coupons/c/pause", json!({"reason": "", "more": 1})).await;
    assert_eq!((refused.status, refused.body["errors"].as_array().map(Vec::len)), (422, Some(2)));
    assert_eq!(send(&operator, "/coupons/nothing/pause").await.status, 404);
    assert_eq!(operator.post("/users", json!({"id": "hong"})).await.status, 201);
    assert_eq!(operator.post("/users", json!({"nonsense": 1})).await.status, 422);
    let random = send(&operator, "/users/random?count=3").await;
    assert_eq!(random.status, 201);
    assert_eq!(operator.post("/coupons/c/restock", json!({"total": 15, "reason": "more"})).await.status, 200);
    assert_eq!(operator.post("/coupons/c/restock", json!("x".repeat(100_000))).await.status, 413);
    assert_eq!(operator.post("/pause", json!({"reason": "moved"})).await.status, 200);
    assert_eq!(operator.post("/resume", json!({"why": "done"})).await.status, 422);
    // Reads and refused requests are no actions.
    assert_eq!(operator.get("/queue").await.status, 200);
    assert_eq!(send(&viewer, "/coupons/c/resume").await.status, 403);

    let recorded = actions(&viewer).await;
    let key_id = keys[0].split('_').nth(1).expect("an id");
    // The record does not contain users who registered.
    let input = |target, status| match (target, status) {
        ("/coupons/c/restock", 200) => json!({"reason": "more", "total": 15}).to_string().into(),
        ("/coupons/c/pause", 200) => json!({"reason": "점검 중"}).to_string().into(),
        ("/pause", _) => json!({"reason": "moved"}).to_string().into(),
        ("/resume", _) => json!({"why": "done"}).to_string().into(),
        ("/coupons/c/pause", _) => json!({"more": 1, "reason": ""}).to_string().into(),
        _ => Value::Null,
    };
    let expected = [
        ("POST /resume", "/resume", 422, json!("invalid"), Value::Null),
        ("POST /pause", "/pause", 200, Value::Null, Value::Null),
        ("POST /coupons/{id}/restock", "/coupons/c/restock", 200, Value::Null, Value::Null),
        ("POST /users/random", "/users/random?count=3", 201, Value::Null, Value::Null),
        ("POST /users", "/users", 422, json!("invalid"), Value::Null),
        ("POST /users", "/users", 201, Value::Null, json!("/users/hong")),
        ("POST /coupons/{id}/pause", "/coupons/nothing/pause", 404, json!("coupon-not-found"), Value::Null),
        ("POST /coupons/{id}/pause", "/coupons/c/pause", 422, json!("invalid"), Value::Null),
        ("POST /coupons/{id}/pause", "/coupons/c/pause", 200, Value::Null, Value::Null),
    ];
    assert_eq!(recorded.len(), expected.len(), "{recorded:#?}");
    for (action, (what, target, status, code, location)) in recorded.iter().zip(expected) {
        assert_eq!((&action["who"], &action["keyId"]), (&json!("operator"), &json!(key_id)));
        assert_eq!((&action["action"], &action["target"]), (&json!(what), &json!(target)));
        assert_eq!((&action["status"], &action["code"]), (&json!(status), &code), "{target}");
        assert_eq!((&action["location"], &action["input"]), (&location, &input(target, status)), "{target}");
        let time = |name: &str| action[name].as_str().and_then(|time| time.parse::<Timestamp>().ok());
        assert!(time("at").is_some() && time("endedAt") >= time("at"), "{action}");
    }
    assert_eq!(recorded[8]["requestId"], "r-1");

    // Read page by page, the list is the same.
    let (mut paged, mut path) = (Vec::new(), "/operator-actions?limit=2".to_owned());
    loop {
        let page = viewer.get(&path).await.body;
        paged.extend(page["items"].as_array().expect("items").clone());
        match page["nextCursor"].as_str() {
            Some(cursor) => path = format!("/operator-actions?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(paged, recorded);
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_done() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    assert_eq!(send(&system.client, "/coupons/c/resume").await.status, 200);
    let recorded = actions(&system.client).await;
    assert_eq!(
        (recorded.len(), &recorded[0]["who"], &recorded[0]["keyId"]),
        (1, &json!("open"), &Value::Null)
    );

    let refuse = doc! {"collMod": "operator_actions", "validator": {"who": "nobody"}};
    system.backends.database.run_command(refuse).await.expect("it is changed");
    let refused = send(&system.client, "/coupons/c/pause").await;
    assert_eq!((refused.status, refused.code()), (503, "unavailable"));
    assert_eq!(system.client.get("/coupons/c").await.body["status"], "open");
    // Users' requests do not wait for the record.
    system.users("u", 1).await;
    assert_eq!(system.client.issue("u0", coupon.as_str(), None).await.status, 202);
    system.drain().await;
}

#[tokio::test]
async fn a_user_is_named_apart_from_the_rest_however_a_path_names_them() {
    let (system, keys, _folder) = closed(&[Role::Operator]).await;
    let operator = system.client.with(&keys[0]);
    let held = system.coupon("held", 10, 1).await;
    let user = "shop:hong@x.kr";
    assert_eq!(operator.post("/users", json!({"id": user})).await.status, 201);
    let issued = operator.issue(user, held.as_str(), None).await.id();
    let worker = system.worker();
    operator.decided(&issued).await;
    worker.cancel();

    let reference = || json!({"reference": "order-1"});
    let encoded = "shop%3Ahong%40x%2ekr";
    let used = operator.post(&format!("/user-coupons/{encoded}/{issued}/use"), reference()).await;
    assert_eq!(used.status, 200);
    let again = operator.post(&format!("/user-coupons/{user}/{issued}/use"), json!({"reference": "2"})).await;
    assert_eq!(again.code(), "already-used");
    assert_eq!(operator.send(operator.request("DELETE", &format!("/users/{encoded}"))).await.status, 202);
    // None of these changes anything, but the ids in them may be those of users.
    let nothing_done = [
        operator.post(&format!("/user-coupons/{user}/{issued}/use"), json!({"nonsense": 1})).await,
        operator.post(&format!("/user-coupons/{issued}/{user}/use"), reference()).await,
        send(&operator, "/user-coupons/hong@x.kr%20/hong@x.kr/revoke").await,
        operator.send(operator.request("DELETE", "/users/hong@x.kr%20")).await,
        operator.send(operator.request("DELETE", "/users/nobody-hong@x.kr")).await,
        operator.send(operator.request("PUT", &format!("/users/{user}"))).await,
    ];
    let statuses = nothing_done.map(|answer| answer.status);
    assert_eq!(statuses, [422, 404, 404, 404, 404, 405]);

    let records = system.backends.database.collection::<Document>("operator_actions");
    let records: Vec<Document> =
        records.find(doc! {}).sort(doc! {"_id": 1}).await.expect("a read").try_collect().await.expect("all");
    let about = |record: &Document| record.get_str("about").unwrap_or_default().to_owned();
    let named: Vec<String> = records.iter().map(about).collect();
    let nobody = [""; 6].map(str::to_owned);
    assert_eq!(named, [&[user; 4].map(str::to_owned)[..], &nobody].concat(), "{records:#?}");
    for mut record in records {
        record.remove("about");
        assert!(!record.to_string().contains("hong"), "{record}");
    }
}

#[tokio::test]
async fn an_end_that_is_not_written_is_told() {
    let system = System::start().await;
    let log = ActionLog::start(&system.backends.database);
    let id = ActionId::generate();
    let begun = ActionStart {
        id,
        at: Timestamp::now(),
        caller: Caller::Open,
        action: "POST /pause".into(),
        target: "/pause".into(),
        about: None,
        input: None,
        request_id: "r".into(),
    };
    log.begin(begun).await.expect("it is written");
    let ended = || ActionEnd { at: Timestamp::now(), status: 200, code: None, location: None };
    let refuse = doc! {"collMod": "operator_actions", "validator": {"status": null}};
    system.backends.database.run_command(refuse).await.expect("it is changed");
    assert!(log.end(id, ended(), ActionSubject::AsBegun).await.is_err());
    let allow = doc! {"collMod": "operator_actions", "validator": {}};
    system.backends.database.run_command(allow).await.expect("it is changed");
    log.end(id, ended(), ActionSubject::AsBegun).await.expect("it is written");
}
