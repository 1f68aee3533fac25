//! A ledger as the last release left it, and the records that its programs write.

use coupon_system::ids::{IssuanceId, PartitionId};
use mongodb::bson::{DateTime, Document, Uuid, doc};
use mongodb::options::IndexOptions;
use mongodb::{Database, IndexModel};

const ISSUED_ONLY: &str = "issued";

/// Takes from the ledger of a database what the last release did not know, be there records or none.
pub async fn as_an_older_version_made_it(database: &Database) {
    let ledger = database.collection::<Document>("user_coupons");
    let leases = database.collection::<Document>("recovery");
    let lease = doc! {
        "$unset": {"ledgerByPartition": ""},
        "$setOnInsert": {"term": 0_i64, "until": DateTime::from_millis(0), "ledger": "of-the-last-release"},
    };
    leases.update_one(doc! {"_id": 0}, lease).upsert(true).await.expect("a lease");
    for (name, keys, unique, outcome) in [
        ("unit_issued_once", doc! {"couponId": 1, "serial": 1}, true, ISSUED_ONLY),
        ("user_within_limit", doc! {"couponId": 1, "userId": 1, "nth": 1}, true, ISSUED_ONLY),
        ("rejected_of_coupon", doc! {"couponId": 1, "_id": 1}, false, "rejected"),
        ("held_newest_first", doc! {"userId": 1, "decidedAt": -1, "_id": -1}, false, ISSUED_ONLY),
        ("rejected_of_user", doc! {"userId": 1}, false, "rejected"),
    ] {
        let options = IndexOptions::builder().name(name.to_owned()).unique(unique);
        let options = options.partial_filter_expression(doc! {"outcome": outcome}).build();
        let model = IndexModel::builder().keys(keys).options(options).build();
        ledger.create_index(model).await.expect("an index");
    }
    for name in ledger.list_index_names().await.expect("their names") {
        if name.ends_with("_by_partition") || name == "unit_occupied_once" || name == "issued_without_unit" {
            ledger.drop_index(name).await.expect("it is dropped");
        }
    }
    let open = doc! {"collMod": "user_coupons", "validator": {}};
    database.run_command(open).await.expect("it takes every record");
    ledger.update_many(doc! {}, doc! {"$unset": {"p": "", "unit": ""}}).await.expect("they are changed");
}

/// What a worker of the last release writes when it issues a unit.
pub fn older_record(coupon: &str, user: &str, serial: i64) -> Document {
    let id = IssuanceId::generate(PartitionId::ONE);
    doc! {
        "_id": Uuid::from_bytes(*id.as_bytes()), "outcome": "issued", "couponId": coupon, "userId": user,
        "serial": serial, "nth": 1, "acceptedAt": DateTime::now(), "decidedAt": DateTime::now(),
    }
}
