//! The ledger's inserts, many at once, on a mongod of the test's own.

use coupon_system::ids::{IssuanceId, PartitionId};
use coupon_system::issuance::ledger::{Inserted, Layout, indexes};
use coupon_system::issuance::{Decision, Ledger, Outcome, Reason};
use mongodb::Database;
use mongodb::bson::{Document, doc};
use tokio::task::JoinSet;

use crate::helpers::{database, decided, mongodb, native, obedient_mongodb};

const AT_ONCE: u32 = 16;
const BATCH: u32 = 250;
/// Index keys that MongoDB may step over for one document. In the order of units it steps over hundreds.
const SKIPPED_MAX: i64 = 60;

async fn ledger(uri: &str) -> (Ledger, Database) {
    let database = coupon_system::mongo::connect(uri, &database()).await.expect("a URI");
    let missing = indexes::ensure(&database, Layout::Partitioned).await.expect("they are made");
    assert!(missing.is_empty(), "{missing:?}");
    (Ledger::new(&database), database)
}

fn decision(coupon: &str, user: u32, outcome: Outcome) -> Decision {
    let coupon = coupon.parse().expect("an id");
    decided(IssuanceId::generate(PartitionId::ONE), &coupon, &format!("u{user}"), outcome)
}

fn issued(coupon: &str, serial: u32) -> Decision {
    decision(coupon, serial, Outcome::Issued { unit: native(serial), nth: 1 })
}

/// Index entries that cursors have stepped over since mongod started.
async fn skipped(database: &Database) -> i64 {
    let status = database.run_command(doc! {"serverStatus": 1}).await.expect("a status");
    let cursor: &Document =
        status.get_document("wiredTiger").and_then(|of| of.get_document("cursor")).expect("one");
    ["next", "prev"]
        .map(|way| match cursor.get(format!("Total number of entries skipped by cursor {way} calls")) {
            Some(mongodb::bson::Bson::Int32(number)) => i64::from(*number),
            Some(mongodb::bson::Bson::Int64(number)) => *number,
            other => panic!("{other:?}"),
        })
        .iter()
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn inserts_of_neighbouring_units_do_not_step_over_each_others_keys() {
    let (mongod, _folder) = obedient_mongodb().await;
    let (ledger, database) = ledger(&mongod.url()).await;
    let before = skipped(&database).await;
    let (mut inserts, mut outcomes) = (JoinSet::new(), Vec::new());
    for batch in 0..AT_ONCE * 4 {
        let ledger = ledger.clone();
        let units = batch * BATCH + 1..=(batch + 1) * BATCH;
        inserts.spawn(async move {
            let decisions: Vec<_> = units.map(|serial| issued("c", serial)).collect();
            ledger.insert(&decisions).await.expect("it is written")
        });
        if inserts.len() == AT_ONCE as usize {
            let ended = inserts.join_next().await.expect("one of them");
            outcomes.extend(ended.expect("no panic"));
        }
    }
    outcomes.extend(inserts.join_all().await.concat());
    assert_eq!(outcomes.len(), (AT_ONCE * 4 * BATCH) as usize);
    assert!(outcomes.iter().all(|one| *one == Inserted::Decided), "{outcomes:?}");
    let each = (skipped(&database).await - before) / i64::from(AT_ONCE * 4 * BATCH);
    assert!(each <= SKIPPED_MAX, "{each} keys were stepped over for each document");
}

#[tokio::test]
async fn each_outcome_of_an_insert_is_told_in_the_place_of_its_decision() {
    let (ledger, _) = ledger(&mongodb().await).await;
    let taken: Vec<_> = [("a", 2), ("b", 7)].map(|(coupon, serial)| issued(coupon, serial)).into();
    assert_eq!(ledger.insert(&taken).await.expect("it is written"), [Inserted::Decided, Inserted::Decided]);
    let sold_out = Outcome::Rejected { reason: Reason::SoldOut, unit: None, lost: true };
    let batch = [
        issued("b", 9),
        issued("a", 2),
        decision("a", 50, sold_out),
        issued("b", 7),
        issued("a", 1),
        issued("b", 8),
        issued("a", 3),
    ];
    let conflicts: Vec<_> = ledger
        .insert(&batch)
        .await
        .expect("it is written")
        .into_iter()
        .map(|outcome| outcome == Inserted::Conflict)
        .collect();
    assert_eq!(conflicts, [false, true, false, true, false, false, false]);
}
