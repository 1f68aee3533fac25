//! An index serves every query of MongoDB, according to the server's own planner.

use coupon_system::access::action;
use coupon_system::coupon::ended_before;
use coupon_system::ids::PartitionId;
use coupon_system::issuance::ledger::{Layout, queries};
use coupon_system::redemption;
use coupon_system::user::queries as users;
use mongodb::bson::{Bson, Document, doc};

use crate::helpers::{System, as_an_older_version_made_it, at, issued_to, native};

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
    system.coupon("c", 3, 1).await;
    let user = "u0".parse().expect("an id");
    system.users("u", 1).await;
    let now = mongodb::bson::DateTime::now();
    let newest = doc! {"createdAt": -1, "_id": -1};
    let after = doc! {"$or": [{"createdAt": {"$lt": now}}, {"createdAt": now, "_id": {"$lt": "x"}}]};
    for (name, collection, filter, sort) in [
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
        is_served(name, &plan(&system, collection, filter, sort).await);
    }
}

fn is_served(name: &str, stages: &[String]) {
    assert!(
        stages.iter().any(|stage| ["IXSCAN", "IDHACK", "COUNT_SCAN"].contains(&stage.as_str())),
        "{name}: {stages:?}"
    );
    for wrong in ["COLLSCAN", "SORT"] {
        assert!(!stages.iter().any(|stage| stage == wrong), "{name}: {stages:?}");
    }
}

/// The ledger's queries with their orders, in a layout.
fn of_ledger(layout: Layout) -> Vec<(&'static str, Document, Document)> {
    let (coupon, user) = ("c".parse().expect("an id"), "u0".parse().expect("an id"));
    let decision = issued_to(&coupon, "u0", 1);
    let id = decision.id;
    let route = layout.route([PartitionId::ONE]);
    vec![
        ("decisions", queries::these(layout, &[id]), doc! {}),
        ("decision", queries::one(layout, id), doc! {}),
        ("held by", queries::held_by(&route, &coupon, &user), doc! {}),
        ("holders of", queries::holders_of(&route, &coupon, &[1, 2].map(native)), doc! {}),
        ("issued count", queries::issued_between(&route, &coupon, 0, 9), doc! {}),
        ("issued counts", queries::issued_of(&route, std::slice::from_ref(&coupon)), doc! {}),
        ("issued without a unit", queries::issued_nameless(&route, &coupon), doc! {}),
        ("units after", queries::units_after(&route, &coupon, 1), queries::by_unit(layout)),
        ("highest issued", queries::issued_between(&route, &coupon, 0, 9), queries::highest_first(layout)),
        ("issued records", queries::issued(&route, &coupon), queries::by_user()),
        ("issued to", queries::issued_to(&user, None), queries::newest_first()),
        ("next issued to", queries::issued_to(&user, Some((at(0), id))), queries::newest_first()),
        ("rejected", queries::rejected_after(&route, &coupon, None), doc! {"_id": 1}),
        ("next rejected", queries::rejected_after(&route, &coupon, Some(id)), doc! {"_id": 1}),
        ("user coupon", redemption::queries::issued(layout, id), doc! {}),
        ("use", redemption::queries::unchanged(layout, &decision, 1, Some(at(0))), doc! {}),
        ("held by any", queries::held_by_any(&route, &coupon, &[&user, &user]), doc! {}),
        ("issued of user", queries::of_user(&user, "issued"), doc! {}),
        ("rejected of user", queries::of_user(&user, "rejected"), doc! {}),
        ("old rejections", queries::rejected_before(&route, &coupon, at(0)), doc! {}),
    ]
}

#[tokio::test]
async fn an_index_serves_every_query_of_the_ledger_in_either_layout() {
    let system = System::start().await;
    for (name, filter, sort) in of_ledger(Layout::Partitioned) {
        is_served(name, &plan(&system, "user_coupons", filter, sort).await);
    }
    let elsewhere = queries::issued_elsewhere(&"c".parse().expect("an id"), &[PartitionId::ONE]);
    is_served("misplaced", &plan(&system, "user_coupons", elsewhere, doc! {}).await);
    as_an_older_version_made_it(&system.backends.database).await;
    for (name, filter, sort) in of_ledger(Layout::Mixed) {
        is_served(name, &plan(&system, "user_coupons", filter, sort).await);
    }
}
