//! Texts from outside: hidden characters and the length of names, and ids that a spreadsheet would change.

use serde_json::{Value, json};

use crate::helpers::{Answer, System};

async fn create_coupon(system: &System, name: &str) -> Answer {
    let body = json!({
        "name": name, "total": 1, "startsAt": "2026-01-01T00:00:00Z", "endsAt": "2036-01-01T00:00:00Z",
    });
    system.client.post("/coupons", body).await
}

#[tokio::test]
async fn a_name_that_hides_something_is_refused_by_its_field() {
    let system = System::start().await;
    let coupon = create_coupon(&system, "여름 할인").await;
    assert_eq!(coupon.status, 201);
    for name in [
        "Kim\u{202e}Lee",
        "Kim\u{200b}Lee",
        "\u{3164}",
        "Kim\u{2066}Lee",
        "Kim\u{ad}Lee",
        "K\u{200d}im",
        "\u{2800}",
    ] {
        let user = system.client.post("/users", json!({"name": name})).await;
        let made = create_coupon(&system, name).await;
        let path = format!("/coupons/{}", coupon.id());
        let renamed =
            system.client.send(system.client.request("PATCH", &path).json(&json!({"name": name}))).await;
        for refused in [user, made, renamed] {
            let error = &refused.body["errors"][0];
            assert_eq!((refused.status, &error["pointer"]), (422, &json!("#/name")), "{name:?}: {refused:?}");
            let hidden =
                name.chars().find(|c| !"KimLe".contains(*c)).map(|c| format!("U+{:04X}", u32::from(c)));
            assert!(
                error["detail"].as_str().is_some_and(|why| why.contains(&hidden.unwrap_or_default())),
                "{error}"
            );
        }
    }
}

#[tokio::test]
async fn a_name_is_as_long_as_people_see_it_and_kept_in_one_spelling() {
    let system = System::start().await;
    let decomposed = "\u{1112}\u{1161}\u{11ab}".repeat(40);
    let user = system.client.post("/users", json!({"id": "u", "name": decomposed})).await;
    assert_eq!((user.status, &user.body["name"]), (201, &json!("한".repeat(40))), "{user:?}");
    assert_eq!(system.client.get("/users/u").await.body["name"], json!("한".repeat(40)));
    for (name, status) in [
        ("한".repeat(100), 201),
        ("한".repeat(101), 422),
        ("👨\u{200d}👩\u{200d}👧".repeat(20), 201),
        (format!("e{}", "\u{301}".repeat(600)), 422),
    ] {
        let made = create_coupon(&system, &name).await;
        assert_eq!(made.status, status, "{name}: {made:?}");
    }
}

#[tokio::test]
async fn an_export_keeps_ids_and_references_that_a_spreadsheet_would_change() {
    let system = System::start().await;
    system.coupon("1E5", 10, 1).await;
    system.worker();
    let reference = "12345678901234567890";
    for user in ["007", "12345", "3-4", "hong"] {
        assert_eq!(system.client.post("/users", json!({"id": user})).await.status, 201);
        let accepted = system.client.issue(user, "1E5", None).await;
        assert_eq!(system.client.decided(&accepted.id()).await.state(), "issued");
        let path = format!("/user-coupons/{user}/{}/use", accepted.id());
        assert_eq!(system.client.post(&path, json!({"reference": reference})).await.status, 200);
    }
    let exported = async |format: &str| {
        let path = format!("/coupons/1E5/user-coupons?format={format}");
        system.client.request("GET", &path).send().await.expect("an answer").text().await.expect("a body")
    };
    let csv = exported("csv").await;
    let cells: Vec<Vec<&str>> = csv.lines().skip(1).map(|row| row.split(',').collect()).collect();
    let users: Vec<&str> = cells.iter().map(|row| row[2]).collect();
    assert_eq!(users, ["'007", "12345", "'3-4", "hong"]);
    assert!(cells.iter().all(|row| row[1] == "'1E5" && row[9] == format!("'{reference}")), "{csv}");
    let ndjson = exported("ndjson").await;
    let lines: Vec<Value> = ndjson.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&lines[0]["userId"], &lines[0]["couponId"]), (&json!("007"), &json!("1E5")));
    // The documented way to read the original text.
    for (row, line) in cells.iter().zip(&lines) {
        for (column, name) in [(1, "couponId"), (2, "userId"), (9, "reference")] {
            assert_eq!(row[column].strip_prefix('\'').unwrap_or(row[column]), line[name]);
        }
        assert_eq!(row[6], line["issuedAt"], "a time is as it is in JSON");
    }
}
