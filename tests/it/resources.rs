//! Coupons, users and what they hold, over HTTP.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::helpers::{System, at};

fn coupon(id: &str) -> Value {
    json!({
        "id": id, "name": "여름 할인", "total": 10, "perUser": 2,
        "startsAt": "2026-01-01T09:00:00+09:00", "endsAt": "2036-01-01T00:00:00Z",
        "discount": {"type": "percent", "percent": 10, "maxAmount": 10000, "currency": "KRW"},
        "minOrderAmount": 20000, "validFor": "P30D",
    })
}

fn moment(text: &Value) -> jiff::Timestamp {
    text.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{text} is no time"))
}

#[tokio::test]
async fn a_coupon_is_made_shown_and_requested_at_once() {
    let system = System::start().await;
    system.worker();
    system.users("u", 1).await;
    let made = system.client.post("/coupons", coupon("summer")).await;
    assert_eq!((made.status, made.header("location")), (201, "/coupons/summer"));
    let shown = system.client.get("/coupons/summer").await;
    assert_eq!(shown.body, made.body);
    let mut expected = coupon("summer");
    for (name, value) in [
        ("startsAt", json!("2026-01-01T00:00:00Z")),
        ("validUntil", Value::Null),
        ("timeZone", json!("UTC")),
        ("status", json!("open")),
        ("stock", json!({"total": 10, "remaining": 10, "reserved": 0, "issued": 0})),
        ("shares", json!(1)),
        ("createdAt", shown.body["createdAt"].clone()),
    ] {
        expected[name] = value;
    }
    expected.as_object_mut().expect("an object").remove("total");
    assert_eq!(shown.body, expected);

    let again = system.client.post("/coupons", coupon("summer")).await;
    assert_eq!((again.status, again.code()), (409, "coupon-exists"));

    let accepted = system.client.issue("u0", "summer", None).await;
    let issued = system.client.decided(&accepted.id()).await;
    let link = issued.body["userCoupon"].as_str().expect("a link").to_owned();
    let held = system.client.get(&link).await;
    assert_eq!((held.status, held.body["serial"].clone()), (200, json!(1)));
    assert_eq!(held.body["status"], "active");
    let mut listed = held.body.clone();
    let history = listed.as_object_mut().expect("an object").remove("history").expect("a history");
    assert_eq!(history[0]["at"], listed["issuedAt"]);
    assert!(moment(&held.body["validUntil"]) > moment(&held.body["issuedAt"]));
    let user = system.client.get("/users/u0").await;
    assert_eq!(user.body["coupons"], json!([listed]));
    assert_eq!(system.client.get("/user-coupons/u0?status=active").await.body["items"], json!([listed]));
    assert_eq!(system.client.get("/user-coupons/u0?status=expired").await.body["items"], json!([]));
    let somebody_elses = link.replace("/u0/", "/u1/");
    assert_eq!(system.client.get(&somebody_elses).await.code(), "user-coupon-not-found");
}

#[tokio::test]
async fn a_coupon_without_an_id_gets_one_and_a_wrong_one_is_told_all_that_is_wrong() {
    let system = System::start().await;
    let mut nameless = coupon("x");
    nameless.as_object_mut().expect("an object").remove("id");
    let made = system.client.post("/coupons", nameless).await;
    assert_eq!(made.status, 201);
    assert_eq!(made.header("location"), format!("/coupons/{}", made.id()));
    let wrong = system.client.post("/coupons", json!({"total": 0, "startsAt": "now", "discount": {}})).await;
    assert_eq!((wrong.status, wrong.code()), (422, "invalid"));
    let told: HashSet<_> = wrong.body["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .filter_map(|error| error["pointer"].as_str())
        .collect();
    assert_eq!(told, ["#/name", "#/total", "#/startsAt", "#/endsAt", "#/discount/type"].into());
}

#[tokio::test]
async fn coupons_are_listed_newest_first_page_by_page_and_by_status() {
    let system = System::start().await;
    for number in 0..7 {
        // The names have no order, so that time decides, and the id where the time is the same.
        let id = format!("c{}", (number * 3) % 7);
        system.coupon_within(&id, 1, 1, at(if number < 2 { 60 } else { -60 }), at(120)).await;
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = system.client.get(&format!("/coupons?limit=3{cursor}")).await;
        let items = page.body["items"].as_array().expect("items");
        assert!(items.len() <= 3);
        seen.extend(
            items
                .iter()
                .map(|item| (moment(&item["createdAt"]), item["id"].as_str().expect("an id").to_owned())),
        );
        match page.body["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.iter().map(|(_, id)| id).collect::<HashSet<_>>().len(), 7);
    assert!(seen.is_sorted_by(|a, b| a > b), "{seen:?}");

    let count = async |status: &str| {
        system.client.get(&format!("/coupons?status={status}")).await.body["items"].as_array().map(Vec::len)
    };
    assert_eq!(
        (count("scheduled").await, count("open").await, count("ended").await),
        (Some(2), Some(5), Some(0))
    );
    system.accepted("u0", &"c1".parse().expect("an id")).await;
    assert_eq!((count("soldOut").await, count("open").await), (Some(1), Some(4)));
    system.drain().await;
}

#[tokio::test]
async fn users_are_registered_one_by_one_or_many_at_once() {
    let system = System::start().await;
    let made = system.client.post("/users", json!({"id": "hong@shop", "name": "홍길동"})).await;
    assert_eq!((made.status, made.header("location")), (201, "/users/hong@shop"));
    assert_eq!(system.client.get("/users/hong@shop").await.body["name"], "홍길동");
    assert_eq!(system.client.post("/users", json!({"id": "hong@shop"})).await.code(), "user-exists");
    let unnamed = system.client.post("/users", json!({})).await;
    assert_eq!((unnamed.status, unnamed.body["name"].clone()), (201, unnamed.body["id"].clone()));

    let random = system.client.send(system.client.request("POST", "/users/random?count=5003")).await;
    assert_eq!((random.status, random.body["created"].clone()), (201, json!(5003)));
    let ids = random.body["ids"].as_array().expect("ids");
    assert_eq!(ids.len(), 10);
    assert_eq!(system.client.get(&format!("/users/{}", ids[9].as_str().expect("an id"))).await.status, 200);

    let (mut seen, mut cursor) = (HashSet::new(), String::new());
    loop {
        let page = system.client.get(&format!("/users?limit=500{cursor}")).await;
        seen.extend(page.body["items"].as_array().expect("items").iter().map(|user| user["id"].to_string()));
        match page.body["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 5005, "many of one moment are told apart by their ids");
}

#[tokio::test]
async fn a_user_registered_a_moment_ago_can_request() {
    let system = System::start().await;
    system.coupon("c", 1, 1).await;
    assert_eq!(system.client.issue("new", "c", None).await.code(), "user-not-found");
    system.client.post("/users", json!({"id": "new"})).await;
    assert_eq!(
        system.client.issue("new", "c", None).await.status,
        202,
        "that they were unknown was not remembered"
    );
    system.drain().await;
}

#[tokio::test]
async fn what_a_user_holds_is_listed_newest_first_page_by_page() {
    let system = System::start().await;
    system.users("u", 1).await;
    let coupon = system.coupon("many", 30, 30).await;
    for _ in 0..7 {
        system.accepted("u0", &coupon).await;
        let entries = system.take_entries().await;
        system.decider().process(&system.keys(), &entries).await.expect("it is decided");
    }
    let (mut serials, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = system.client.get(&format!("/user-coupons/u0?limit=2{cursor}")).await;
        serials
            .extend(page.body["items"].as_array().expect("items").iter().map(|unit| unit["serial"].as_u64()));
        match page.body["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(serials, (1..=7).rev().map(Some).collect::<Vec<_>>());
}
