//! Exports contain every held unit of a coupon, or a reader can tell that they are cut.

use std::collections::BTreeSet;

use coupon_system::access::Role;
use coupon_system::ids::{IssuanceId, PartitionId};
use coupon_system::issuance::{Outcome, Reason};
use futures::future::join_all;
use mongodb::bson::{Document, doc};
use serde_json::{Value, json};

use crate::helpers::{CTL, System, decided, eventually, fail, native, obedient_mongodb};

/// The text of an export, and its media type.
async fn exported(system: &System, query: &str, accept: &str) -> (String, String) {
    let request = system.client.request("GET", &format!("/coupons/c/user-coupons{query}"));
    let response = request.header("accept", accept).send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    let kind = response.headers()["content-type"].to_str().expect("text").to_owned();
    (kind, response.text().await.expect("a whole body"))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn an_export_has_every_unit_by_serial_and_says_that_it_is_whole() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10_000, 1).await;
    system.write_issued(&coupon, "@u", (1..=2_500).rev().filter(|serial| serial % 7 != 0)).await;
    let rejection = Outcome::Rejected { reason: Reason::Discarded, unit: Some(native(7)), lost: false };
    system.write(&[decided(IssuanceId::generate(PartitionId::ONE), &coupon, "u", rejection)]).await;
    let expected: Vec<u64> = (1..=2_500).filter(|serial| serial % 7 != 0).collect();

    let (kind, text) = exported(&system, "", "*/*").await;
    assert_eq!(kind, "application/x-ndjson");
    let mut all = lines(&text);
    let end = all.pop().expect("a last line");
    assert_eq!(end, serde_json::json!({"end": true, "count": expected.len(), "after": 2_500}));
    let serials: Vec<u64> = all.iter().map(|unit| unit["serial"].as_u64().expect("a serial")).collect();
    assert_eq!(serials, expected);
    let one = &all[0];
    let link = format!("/user-coupons/@u1/{}", one["id"].as_str().expect("an id"));
    let mut alone = system.client.get(&link).await.body;
    alone.as_object_mut().expect("an object").remove("history");
    assert_eq!(*one, alone, "a line is the unit as it is read alone, without its history");

    let (_, rest) = exported(&system, "?after=2497", "*/*").await;
    let rest = lines(&rest);
    assert_eq!(rest[0]["serial"], 2_498);
    assert_eq!(rest.last().expect("an end")["count"], 2);
    let (_, none) = exported(&system, "?after=4294967295", "*/*").await;
    assert_eq!(lines(&none), [serde_json::json!({"end": true, "count": 0, "after": u32::MAX})]);
}

#[tokio::test]
async fn a_csv_export_is_rfc_4180_and_its_parts_can_be_put_together() {
    let system = System::start().await;
    let coupon = system.coupon("c", 3_000, 1).await;
    system.write_issued(&coupon, "@u", 1..=1_200).await;
    let (kind, whole) = exported(&system, "", "text/csv").await;
    assert_eq!(kind, "text/csv; charset=utf-8");
    let mut reader = csv::Reader::from_reader(whole.as_bytes());
    let titles: Vec<String> = reader.headers().expect("titles").iter().map(str::to_owned).collect();
    let (_, ndjson) = exported(&system, "?format=ndjson", "text/csv").await;
    let units = lines(&ndjson);
    let members: BTreeSet<&String> = units[0].as_object().expect("an object").keys().collect();
    assert_eq!(members, titles.iter().collect(), "the columns are the members of a unit");
    let rows: Vec<csv::StringRecord> = reader.records().map(|row| row.expect("a row")).collect();
    assert_eq!(rows.len(), 1_200);
    for (row, unit) in rows.iter().zip(&units) {
        for (title, cell) in titles.iter().zip(row) {
            let member = match &unit[title] {
                Value::Null => String::new(),
                Value::String(text) if title == "userId" => format!("'{text}"),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            assert_eq!(cell, member, "{title}");
        }
    }
    let (_, rest) = exported(&system, "?after=700&format=csv", "*/*").await;
    assert!(whole.ends_with(&rest) && rest.lines().count() == 500, "no titles in the middle");
}

#[tokio::test]
async fn units_that_cannot_be_read_have_lines_and_rows_of_their_own() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10_000, 1).await;
    system.write_issued(&coupon, "@u", 1..=1_002).await;
    let ledger = system.backends.database.collection::<Document>("user_coupons");
    // In the middle, at the end of a page, and without a readable unit number.
    for (serial, damage) in [
        (17_i64, doc! {"nth": "first"}),
        (1_000, doc! {"decidedAt": "today", "userId": 5}),
        (1_001, doc! {"serial": "1001", "unit": "1001"}),
        (1_002, doc! {"serial": -1_i64, "unit": -1_i64}),
    ] {
        let changed = ledger.update_one(doc! {"serial": serial}, doc! {"$set": damage}).await;
        assert_eq!(changed.expect("it is damaged").modified_count, 1);
    }
    let (_, ndjson) = exported(&system, "", "*/*").await;
    let mut all = lines(&ndjson);
    let end = all.pop().expect("a last line");
    assert_eq!(end, json!({"end": true, "count": 1_002, "unreadable": 4, "after": 1_000}));
    let unreadable: Vec<(usize, &Value, &Value)> = (0..all.len())
        .filter(|place| all[*place]["status"] == "unreadable")
        .map(|place| (place, &all[place]["serial"], &all[place]["userId"]))
        .collect();
    assert_eq!(
        unreadable,
        [
            (16, &json!(17), &json!("@u17")),
            (999, &json!(1_000), &Value::Null),
            (1_000, &Value::Null, unreadable[2].2),
            (1_001, &Value::Null, unreadable[3].2),
        ]
    );

    let (_, csv) = exported(&system, "?format=csv", "*/*").await;
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let rows: Vec<csv::StringRecord> = reader.records().map(|row| row.expect("a row")).collect();
    assert_eq!(rows.len(), all.len());
    for (row, line) in rows.iter().zip(&all) {
        // An id whose only letters are `a` could be a time: it has an apostrophe.
        assert_eq!(
            (row[0].trim_start_matches('\''), &row[5]),
            (line["id"].as_str().expect("an id"), line["status"].as_str().expect("one"))
        );
    }
    assert_eq!(&rows[16][3], "17");

    let mut command = tokio::process::Command::new(CTL);
    let printed = command.args(["coupon", "export", "c"]).env("COUPON_API_URL", system.client.base());
    let printed = printed.output().await.expect("it runs");
    assert!(printed.status.success(), "{printed:?}");
    assert_eq!(
        String::from_utf8(printed.stdout).expect("UTF-8"),
        ndjson.rsplit_once("{\"end\"").expect("an end").0
    );
    assert!(String::from_utf8_lossy(&printed.stderr).contains("the records of 4 of them cannot be read"));
}

#[tokio::test]
async fn an_export_that_is_cut_can_be_told_from_a_whole_one_and_gone_on_with() {
    let (mongodb, _folder) = obedient_mongodb().await;
    let system = System::builder().mongodb(mongodb.url()).start().await;
    let coupon = system.coupon("c", 10_000, 1).await;
    system.write_issued(&coupon, "@u", 1..=3_500).await;

    for format in ["ndjson", "csv"] {
        // The third page cannot be read.
        let ledger = format!("{}.user_coupons", system.database);
        let how = doc! {"failCommands": ["find"], "namespace": ledger, "errorCode": 8_000};
        fail(&system, doc! {"skip": 2}, how).await;
        let path = format!("/coupons/c/user-coupons?format={format}");
        let mut response = system.client.request("GET", &path).send().await.expect("an answer");
        let mut text = Vec::new();
        let cut = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => text.extend_from_slice(&chunk),
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        assert!(cut, "the transfer of {format} looks complete");
        let text = String::from_utf8(text).expect("UTF-8");
        assert!(text.lines().count() >= 1_000 && !text.contains("\"end\""), "{format}");
    }
    fail(&system, "off", doc! {}).await;
    let (_, rest) = exported(&system, "?after=2500", "*/*").await;
    assert_eq!(lines(&rest).last().expect("an end")["count"], 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_at_once_are_bounded_and_a_client_that_leaves_makes_room() {
    let system = System::start().await;
    let coupon = system.coupon("c", 1_000_000, 1).await;
    // More than fits into the buffers between server and client.
    system.write_issued(&coupon, "@u", 1..=40_000).await;
    let open =
        async || system.client.request("GET", "/coupons/c/user-coupons").send().await.expect("an answer");
    let held = join_all((0..8).map(|_| open())).await;
    assert!(held.iter().all(|response| response.status() == 200));
    let refused = system.client.get("/coupons/c/user-coupons").await;
    assert_eq!((refused.status, refused.code()), (503, "overloaded"));
    assert!(refused.header("retry-after").parse::<u32>().expect("seconds") >= 10);
    drop(held);
    eventually("there is room again", async || (open().await.status() == 200).then_some(())).await;
}

#[tokio::test]
async fn an_export_of_what_there_is_not_or_with_nonsense_is_a_problem() {
    let system = System::start().await;
    system.coupon("c", 1, 1).await;
    for (path, status, code) in [
        ("/coupons/none/user-coupons", 404, "coupon-not-found"),
        ("/coupons/a%20b/user-coupons", 404, "coupon-not-found"),
        ("/coupons/c/user-coupons?after=-1", 422, "invalid"),
        ("/coupons/c/user-coupons?after=%2B1", 422, "invalid"),
        ("/coupons/c/user-coupons?after=4294967296", 422, "invalid"),
        ("/coupons/c/user-coupons?format=xml", 422, "invalid"),
        ("/coupons/c/user-coupons?more=1", 422, "invalid"),
    ] {
        let answer = system.client.get(path).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{path}");
    }
}

#[tokio::test]
async fn couponctl_exports_to_a_file_and_goes_on_where_it_ended() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10_000, 1).await;
    system.write_issued(&coupon, "@u", 1..=1_100).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("c.csv").to_str().expect("text").to_owned();
    let run = async |words: &[&str]| {
        let mut command = tokio::process::Command::new(CTL);
        command.args(["coupon", "export", "c", "--format", "csv", "--output", &file]).args(words);
        command.env("COUPON_API_URL", system.client.base()).output().await.expect("it runs")
    };
    assert!(run(&[]).await.status.success());
    system.write_issued(&coupon, "@u", 1_101..=1_300).await;
    assert!(!run(&[]).await.status.success(), "it does not write over what is there");
    let more = run(&["--after", "1100"]).await;
    let said = String::from_utf8_lossy(&more.stderr).into_owned();
    assert!(more.status.success() && said.contains("200 units written; the last serial is 1300"), "{said}");
    let (_, whole) = exported(&system, "?format=csv", "*/*").await;
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), whole);

    let mut command = tokio::process::Command::new(CTL);
    let printed = command.args(["coupon", "export", "c"]).env("COUPON_API_URL", system.client.base());
    let printed = printed.output().await.expect("it runs").stdout;
    let (_, ndjson) = exported(&system, "", "*/*").await;
    let units = ndjson.rsplit_once("{\"end\"").expect("an end").0;
    assert_eq!(String::from_utf8(printed).expect("UTF-8"), units);
}

#[tokio::test]
async fn an_export_that_is_refused_leaves_no_file_behind() {
    // Every caller may read the coupon; its units need a key.
    let system = System::builder().closed(&[Role::Viewer]).start().await;
    system.coupon("c", 1, 1).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("c.csv");
    let mut command = tokio::process::Command::new(CTL);
    command.args(["coupon", "export", "c", "--format", "csv", "--output"]).arg(&file);
    command.env("COUPON_API_URL", system.client.base()).env_remove("COUPON_TOKEN");
    let output = command.output().await.expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no unit was written") && said.contains("unauthenticated"), "{said}");
    assert!(!file.exists());
}
