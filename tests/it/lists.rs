//! Filtered lists have full pages, and lists continue after records that cannot be read.

use coupon_system::ids::{IssuanceId, PartitionId};
use mongodb::bson::{Bson, DateTime, Document, Uuid, doc};
use serde_json::{Value, json};

use crate::helpers::{API, System, at, eventually, logging, program};

/// The ids of a whole list, read page by page with this limit.
async fn walk(system: &System, path: &str, limit: usize) -> Vec<String> {
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    // A longer walk means that the cursors go in a circle.
    for _ in 0..200 {
        let page = system.client.get(&format!("{path}?limit={limit}{cursor}")).await;
        assert_eq!(page.status, 200, "{page:?}");
        seen.extend(ids(&page.body).into_iter().map(str::to_owned));
        match page.body["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return seen,
        }
    }
    panic!("{path} has no end");
}

async fn plant(system: &System, collection: &str, records: Vec<Document>) {
    let collection = system.backends.database.collection::<Document>(collection);
    collection.insert_many(records).await.expect("they are written");
}

/// An issued record of this many seconds from now.
fn unit(coupon: &str, user: &str, serial: i64, seconds: i64) -> Document {
    let id = IssuanceId::generate(PartitionId::ONE);
    let moment = DateTime::from_millis(at(seconds).as_millisecond());
    doc! {
        "_id": Uuid::from_bytes(*id.as_bytes()), "p": 0, "outcome": "issued", "couponId": coupon, "userId": user,
        "serial": serial, "unit": serial, "nth": 1, "acceptedAt": moment, "decidedAt": moment,
    }
}

fn with(mut record: Document, changes: Document) -> Document {
    record.extend(changes);
    record
}

fn id_of(record: &Document) -> String {
    match record.get("_id") {
        Some(Bson::Binary(id)) => {
            Uuid::from_bytes(id.bytes.as_slice().try_into().expect("16 bytes")).to_string()
        }
        other => panic!("no issuance's id: {other:?}"),
    }
}

#[tokio::test]
async fn lists_go_on_behind_records_that_cannot_be_read() {
    let system = System::start().await;
    let moment = |seconds| DateTime::from_millis(at(seconds).as_millisecond());
    for kind in ["coupons", "users"] {
        let good = |id: &str, seconds| match kind {
            "coupons" => doc! {
                "_id": id, "name": id, "total": 1_i64, "perUser": 1, "startsAt": moment(-60), "endsAt": moment(60),
                "paused": false, "archived": false, "generation": 1_i64, "createdAt": moment(seconds),
                "changedAt": moment(0),
            },
            _ => doc! {"_id": id, "name": id, "createdAt": moment(seconds)},
        };
        let mut records = vec![good("newest", 0), good("older", -100), good("oldest", -200)];
        for number in 0..40_i64 {
            let bad = with(good(&format!("bad{number}"), -10 - number), doc! {"name": number});
            records.push(bad);
        }
        for (number, changes) in [
            doc! {"_id": 7},
            doc! {"_id": Uuid::new()},
            doc! {"_id": "no id"},
            doc! {"createdAt": Bson::Null},
            doc! {"createdAt": "today"},
            doc! {"createdAt": Bson::MaxKey},
            doc! {"createdAt": Bson::Timestamp(mongodb::bson::Timestamp {time: 1, increment: 1})},
        ]
        .into_iter()
        .enumerate()
        {
            records.push(with(good(&format!("strange{number}"), -150), changes));
        }
        plant(&system, kind, records).await;
        for limit in [1, 2, 3, 50] {
            let seen = walk(&system, &format!("/{kind}"), limit).await;
            assert_eq!(seen, ["newest", "older", "oldest"], "{kind} by {limit}");
        }
    }
}

#[tokio::test]
async fn actions_behind_records_that_cannot_be_read_are_listed() {
    let system = System::start().await;
    system.coupon("c", 1, 1).await;
    let pause = async || {
        let answer = system.client.send(system.client.request("POST", "/coupons/c/pause")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    pause().await;
    plant(
        &system,
        "operator_actions",
        (0..30).map(|_| doc! {"_id": Uuid::from_bytes(*uuid::Uuid::now_v7().as_bytes())}).collect(),
    )
    .await;
    plant(&system, "operator_actions", vec![doc! {"_id": "a"}, doc! {"_id": DateTime::now()}]).await;
    pause().await;
    for limit in [1, 2, 50] {
        assert_eq!(walk(&system, "/operator-actions", limit).await.len(), 2, "by {limit}");
    }
}

#[tokio::test]
async fn what_a_user_holds_is_listed_behind_what_cannot_be_read() {
    let system = System::start().await;
    system.users("u", 1).await;
    system.coupon("c", 1_000, 100).await;
    let good: Vec<Document> =
        (1..=3).map(|nth| with(unit("c", "u0", nth, -100 * nth), doc! {"nth": nth as i32})).collect();
    let mut records = good.clone();
    for nth in 0..30 {
        records.push(with(unit("c", "u0", 10 + nth, -150), doc! {"nth": format!("no. {nth}")}));
    }
    let beside = good[1].get("decidedAt").expect("a moment").clone();
    for (number, changes) in [
        doc! {"_id": 7},
        doc! {"_id": "x", "decidedAt": &beside},
        doc! {"_id": true, "decidedAt": &beside},
        doc! {"decidedAt": "today"},
        doc! {"decidedAt": Bson::MaxKey},
    ]
    .into_iter()
    .enumerate()
    {
        let nth = doc! {"nth": 90 + number as i32};
        records.push(with(with(unit("c", "u0", 90 + number as i64, -150), nth), changes));
    }
    plant(&system, "user_coupons", records).await;
    let wanted: Vec<String> = good.iter().map(id_of).collect();
    for limit in [1, 2, 3, 50] {
        assert_eq!(walk(&system, "/user-coupons/u0", limit).await, wanted, "by {limit}");
    }
    let user = system.client.get("/users/u0").await;
    let held: Vec<&Value> =
        user.body["coupons"].as_array().expect("items").iter().map(|one| &one["id"]).collect();
    assert_eq!(held, wanted.iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn a_unit_of_a_coupon_whose_record_cannot_be_read_is_the_only_one_that_is_affected() {
    let system = System::start().await;
    system.users("u", 1).await;
    for id in ["fine", "renamed", "lost"] {
        system.coupon(id, 10, 1).await;
    }
    let units = [unit("lost", "u0", 1, -1), unit("renamed", "u0", 1, -2), unit("fine", "u0", 1, -3)];
    let [lost, renamed, fine] = [0, 1, 2].map(|place: usize| id_of(&units[place]));
    plant(&system, "user_coupons", units.to_vec()).await;
    let coupons = system.backends.database.collection::<Document>("coupons");
    for (id, damage) in
        [("renamed", doc! {"name": 7, "total": "ten"}), ("lost", doc! {"validFor": "a while"})]
    {
        coupons.update_one(doc! {"_id": id}, doc! {"$set": damage}).await.expect("it is damaged");
    }
    // The validity of units can still be read from one of the records.
    for limit in [1, 2, 50] {
        let seen = walk(&system, "/user-coupons/u0", limit).await;
        assert_eq!(seen, [renamed.as_str(), fine.as_str()], "by {limit}");
    }
    let user = system.client.get("/users/u0").await;
    assert_eq!(user.status, 200, "{user:?}");
    let held: Vec<&Value> =
        user.body["coupons"].as_array().expect("items").iter().map(|one| &one["id"]).collect();
    assert_eq!(held, [&json!(renamed), &json!(fine)]);
    for (id, status) in [(&fine, 200), (&renamed, 200), (&lost, 503)] {
        let path = format!("/user-coupons/u0/{id}");
        assert_eq!(system.client.get(&path).await.status, status, "{path}");
        let used = system.client.post(&format!("{path}/use"), json!({"reference": "order"})).await;
        assert_eq!(used.status, status, "{used:?}");
    }
    for (coupon, status) in [("fine", 200), ("renamed", 200), ("lost", 503)] {
        assert_eq!(
            system.client.get(&format!("/coupons/{coupon}/user-coupons?format=csv")).await.status,
            status
        );
    }
}

#[tokio::test]
async fn what_is_damaged_is_named_once_however_often_it_is_read() {
    let system = System::start().await;
    system.coupon("bad", 10, 1).await;
    system.users("u", 1).await;
    let record = with(unit("bad", "u0", 1, 0), doc! {"nth": "first"});
    let unit = id_of(&record);
    plant(&system, "user_coupons", vec![record]).await;
    let coupons = system.backends.database.collection::<Document>("coupons");
    // The API reads operators' changes every two seconds.
    let damage = doc! {"$set": {"name": 7}, "$currentDate": {"changedAt": true}};
    coupons.update_one(doc! {"_id": "bad"}, damage).await.expect("it is damaged");
    let mut api = program(API, &system);
    api.args(["--listen", "127.0.0.1:0", "--audit-every", "1"]);
    let (_child, address, log) = logging(api).await;
    let client = crate::helpers::Client::new(address);
    eventually("it is ready", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    let issuance = format!("/issuances/{unit}");
    let lists = ["/coupons", "/user-coupons/u0", "/users/u0", "/coupons/bad/user-coupons"];
    for path in [&lists[..], &["/coupons/bad", &issuance]].concat().repeat(5) {
        client.get(path).await;
    }
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let lines = log.lines();
    let of = |what: &str, name: &str| {
        lines
            .iter()
            .filter(|line| line.contains("ERROR") && line.contains(what) && line.contains(name))
            .count()
    };
    for (what, name) in [
        ("a coupon is left out", "bad"),
        ("repair the record in MongoDB", &*unit),
        ("a record is left out", &unit),
        ("a unit is exported as unreadable", &unit),
        ("a part of the service is unavailable", "bad"),
        ("coupon-record-unreadable", "bad"),
    ] {
        assert_eq!(of(what, name), 1, "{what} {name}: {lines:#?}");
    }
    assert_eq!(of("answered with an error of ours", ""), 0, "{lines:#?}");
}

fn ids(page: &Value) -> Vec<&str> {
    page["items"].as_array().expect("items").iter().map(|item| item["id"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn a_page_of_coupons_of_one_status_is_full_though_most_have_another() {
    let system = System::start().await;
    for id in ["sold-1", "sold-2", "sold-3", "sold-4"] {
        let coupon = system.coupon(id, 1, 1).await;
        system.accepted("u0", &coupon).await;
    }
    for number in 0..100 {
        system.coupon_record(&format!("open-{number}"), 1, 1, at(-60), at(3600)).await;
    }
    let full = system.client.get("/coupons?status=soldOut&limit=3").await;
    assert_eq!(ids(&full.body), ["sold-4", "sold-3", "sold-2"], "{:?}", full.body);
    let next = full.body["nextCursor"].as_str().expect("a cursor");
    let rest = system.client.get(&format!("/coupons?status=soldOut&limit=3&cursor={next}")).await;
    assert_eq!((ids(&rest.body), &rest.body["nextCursor"]), (vec!["sold-1"], &Value::Null));

    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = system.client.get(&format!("/coupons?status=open&limit=7{cursor}")).await;
        seen.extend(ids(&page.body).into_iter().map(str::to_owned));
        match page.body["nextCursor"].as_str() {
            Some(next) => {
                assert_eq!(ids(&page.body).len(), 7, "only the last page has fewer");
                cursor = format!("&cursor={next}");
            }
            None => break,
        }
    }
    let expected: Vec<String> = (0..100).rev().map(|number| format!("open-{number}")).collect();
    seen.sort_by_key(|id| std::cmp::Reverse(id["open-".len()..].parse::<u32>().expect("a number")));
    assert_eq!(seen, expected);
    let none = system.client.get("/coupons?status=archived&limit=3").await;
    assert_eq!((ids(&none.body).len(), &none.body["nextCursor"]), (0, &Value::Null));
    system.drain().await;
}
