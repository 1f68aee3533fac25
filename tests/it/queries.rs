//! An index serves every query of MongoDB, according to the server's own planner.

use coupon_system::access::action;
use coupon_system::coupon::ended_before;
use coupon_system::issuance::ledger::queries;
use coupon_system::redemption;
use coupon_system::user::queries as users;
use mongodb::bson::{Bson, Document, doc};

use crate::helpers::{System, at, issued_to};

/// The stages of the winning plan, from the outside in.
fn stages(plan: &Document) -> Vec<String> {
    let mut found = vec![plan.get_str("stage").unwrap_or_default().to_owned()];
    for (name, value) in plan {
        match (name.as_str(), value) {
            ("inputStage" | "queryPlan" | "shards", Bson::Document(inner)) => found.extend(stages(inner)),
            ("inputStages", Bson::Array(inner)) => {
                found.extend(inner.iter().filter_map(Bson::as_document).flat_map(stages));
            }
            _ => {}
        }
    }
    found
}

async fn plan(system: &System, collection: &str, filter: Document, sort: Document) -> Vec<String> {
    let mut find = doc! {"find": collection, "filter": filter};
    if !sort.is_empty() {
        find.insert("sort", sort);
        find.insert("limit", 50);
    }
    let explain = doc! {"explain": find, "verbosity": "queryPlanner"};
    let told = system.backends.database.run_command(explain).await.expect("a plan");
    let planner = told.get_document("queryPlanner").expect("a planner");
    stages(planner.get_document("winningPlan").expect("a winner"))
}

#[tokio::test]
async fn no_query_reads_a_collection_from_end_to_end_or_sorts_in_memory() {
    let system = System::start().await;
    let coupon = system.coupon("c", 3, 1).await;
    let user = "u0".parse().expect("an id");
    system.users("u", 1).await;
    let decision = issued_to(&coupon, "u0", 1);
    let id = decision.id;
    let now = mongodb::bson::DateTime::now();
    let newest = doc! {"createdAt": -1, "_id": -1};
    let after = doc! {"$or": [{"createdAt": {"$lt": now}}, {"createdAt": now, "_id": {"$lt": "x"}}]};
    let uuid = mongodb::bson::Uuid::from_bytes(*id.as_bytes());
    for (name, collection, filter, sort) in [
        ("decisions", "user_coupons", doc! {"_id": {"$in": [uuid]}}, doc! {}),
        ("held by", "user_coupons", queries::held_by(&coupon, &user), doc! {}),
        ("holder of", "user_coupons", queries::holder_of(&coupon, 1), doc! {}),
        ("issued count", "user_coupons", queries::issued_between(&coupon, 0, 9), doc! {}),
        ("issued without a unit", "user_coupons", queries::issued_nameless(&coupon), doc! {}),
        ("units after", "user_coupons", queries::units_after(&coupon, 1), queries::by_serial()),
        ("highest issued", "user_coupons", queries::issued(&coupon), queries::highest_first()),
        ("issued records", "user_coupons", queries::issued(&coupon), queries::by_user()),
        ("issued to", "user_coupons", queries::issued_to(&user, None), queries::newest_first()),
        (
            "next issued to",
            "user_coupons",
            queries::issued_to(&user, Some((at(0), id))),
            queries::newest_first(),
        ),
        ("rejected", "user_coupons", queries::rejected_after(&coupon, None), doc! {"_id": 1}),
        ("next rejected", "user_coupons", queries::rejected_after(&coupon, Some(id)), doc! {"_id": 1}),
        ("user coupon", "user_coupons", redemption::queries::issued(id), doc! {}),
        ("use", "user_coupons", redemption::queries::unchanged(&decision, 1, Some(at(0))), doc! {}),
        ("held by any", "user_coupons", queries::held_by_any(&coupon, &[&user, &user]), doc! {}),
        ("issued of user", "user_coupons", queries::of(&user, "issued"), doc! {}),
        ("rejected of user", "user_coupons", queries::of(&user, "rejected"), doc! {}),
        ("old rejections", "user_coupons", queries::rejected_before(&coupon, at(0)), doc! {}),
        ("ended coupons", "coupons", ended_before(at(0)), doc! {}),
        ("one user", "users", users::one(&user), doc! {}),
        ("deletions", "users", users::deleted(), doc! {"deletedAt": 1}),
        ("coupons", "coupons", doc! {}, newest.clone()),
        ("next coupons", "coupons", after.clone(), newest.clone()),
        ("current coupons", "coupons", doc! {"archived": false, "endsAt": {"$gt": now}}, doc! {}),
        ("changed coupons", "coupons", doc! {"changedAt": {"$gte": now}}, doc! {"changedAt": 1}),
        ("users", "users", users::not_deleted(), newest.clone()),
        ("next users", "users", after, newest.clone()),
        ("new users", "users", users::since(at(0)), newest),
        ("actions about", "operator_actions", action::queries::about(&user), doc! {}),
        ("registered", "users", doc! {"_id": {"$in": ["u0"]}}, doc! {}),
    ] {
        let stages = plan(&system, collection, filter, sort).await;
        assert!(
            stages.iter().any(|stage| ["IXSCAN", "IDHACK", "COUNT_SCAN"].contains(&stage.as_str())),
            "{name}: {stages:?}"
        );
        for wrong in ["COLLSCAN", "SORT"] {
            assert!(!stages.iter().any(|stage| stage == wrong), "{name}: {stages:?}");
        }
    }
}
