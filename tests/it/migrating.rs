//! `couponctl ledger migrate`: a ledger of the last release becomes one of this version, while the system serves.
//!
//! With a million records: `COUPON_TEST_RECORDS=1000000 cargo test --release --test it -- migrating::a_ledger`.

use std::sync::LazyLock;

use coupon_system::dev::servers::MongoServer;
use coupon_system::ids::CouponId;
use coupon_system::issuance::ledger::{Layout, indexes};
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::ClientOptions;
use mongodb::{Client, Collection, Database};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::helpers::{
    CTL, System, WORKER, as_an_older_version_made_it, database, eventually, native, obedient_mongodb,
    older_record, program, stopped, worker,
};

/// Units that the last release issued: eight batches of the migration, or as many as the variable says.
static ISSUED: LazyLock<i64> = LazyLock::new(|| {
    let records = std::env::var("COUPON_TEST_RECORDS").ok();
    records.map_or(15_000, |records| records.parse().expect("a multiple of 5,000"))
});
const REJECTED: i64 = 500;

/// A system that serves from a ledger of the last release.
struct OldDeployment {
    system: System,
    coupon: CouponId,
    _mongod: (MongoServer, TempDir),
}

impl OldDeployment {
    /// Its ledger has records of every kind, damaged ones too, those of a coupon of their own.
    async fn start() -> Self {
        let mongod = obedient_mongodb().await;
        let name = database();
        let connected = coupon_system::mongo::connect(&mongod.0.url(), &name).await.expect("a URI");
        as_an_older_version_made_it(&connected).await;
        let ledger: Collection<Document> = connected.collection("user_coupons");
        for first in (1..=*ISSUED).step_by(5_000) {
            let records =
                (first..first + 5_000).map(|serial| older_record("c", &format!("u{serial}"), serial));
            ledger.insert_many(records).await.expect("they are written");
        }
        let rejected = (0..REJECTED).map(|number| {
            let mut record = older_record("c", &format!("r{number}"), 1);
            record.extend(doc! {"outcome": "rejected", "reason": "discarded", "lost": false});
            record
        });
        ledger.insert_many(rejected).await.expect("they are written");
        let damaged =
            [doc! {"_id": 7}, doc! {"_id": "x"}, doc! {"serial": "three"}, doc! {"serial": Bson::Null}];
        for (number, damage) in (1..).zip(damaged) {
            let mut record = older_record("damaged", &format!("d{number}"), number);
            record.extend(damage);
            ledger.insert_one(record).await.expect("it is written");
        }
        let anyone = &["--require-registered-users=false"];
        let system = System::builder().flags(anyone).mongodb(mongod.0.url()).database(name).start().await;
        assert_eq!(system.backends.ledger.layout().await.expect("it is told"), Layout::Mixed);
        let coupon = system.coupon("c", *ISSUED as u32 + 1_000, 1).await;
        OldDeployment { system, coupon, _mongod: mongod }
    }

    fn ledger(&self) -> Collection<Document> {
        self.system.backends.database.collection("user_coupons")
    }

    /// The field of the lease of partition 0.
    async fn noted(&self, field: &str) -> Option<Bson> {
        let leases = self.system.backends.database.collection::<Document>("recovery");
        leases.find_one(doc! {"_id": 0}).await.expect("a look").expect("a lease").get(field).cloned()
    }

    async fn indexes(&self) -> Vec<String> {
        let mut names = self.ledger().list_index_names().await.expect("their names");
        names.sort_unstable();
        names
    }

    fn migrate(&self) -> Command {
        ctl(&self.system.mongodb_uri, &self.system.database, &["ledger", "migrate", "--json"])
    }

    /// Starts the migration, and kills it as soon as something is so.
    async fn migrate_until(&self, what: &str, is_so: impl AsyncFn(&Self) -> bool) {
        let mut child: Child = self.migrate().kill_on_drop(true).spawn().expect("it starts");
        eventually(what, async || is_so(self).await.then_some(())).await;
        child.kill().await.expect("it is killed");
    }

    async fn is_migrated(&self) {
        let lacking = self.ledger().count_documents(doc! {"p": {"$ne": 0}}).await.expect("a count");
        assert_eq!(lacking, 0, "each has its partition");
        let occupies =
            doc! {"$expr": {"$and": [{"$eq": ["$outcome", "issued"]}, {"$eq": ["$unit", "$serial"]}]}};
        let units = self.ledger().count_documents(doc! {"couponId": "c", "$and": [occupies]}).await;
        let named = self.ledger().count_documents(doc! {"unit": {"$exists": true}}).await;
        let issued = self.ledger().count_documents(doc! {"couponId": "c", "outcome": "issued"}).await;
        let (units, named, issued) =
            (units.expect("a count"), named.expect("a count"), issued.expect("a count"));
        assert_eq!((units, named), (issued, issued + 2), "and its unit, if it occupies one");
        assert_eq!(
            self.indexes().await,
            [
                "_id_",
                "held_newest_first",
                "issued_without_unit",
                "rejected_of_coupon_by_partition",
                "rejected_of_user",
                "unit_occupied_once",
                "user_within_limit_by_partition",
            ]
        );
        assert_eq!(self.noted("ledgerMigration").await, None);
    }
}

fn ctl(uri: &str, database: &str, words: &[&str]) -> Command {
    let mut command = Command::new(CTL);
    command.args(words).args(["--mongodb-uri", uri, "--mongodb-database", database]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command
}

async fn ended(mut command: Command) -> (Option<i32>, String, String) {
    let output = command.output().await.expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_of_the_last_release_is_migrated_exactly_however_often_that_is_broken_off() {
    let old = OldDeployment::start().await;
    let (system, ledger) = (&old.system, &old.system.backends.ledger);
    // Records of both kinds are read, written and guarded from each other.
    system.worker();
    let both = async |what: &str, more: u64| {
        assert_eq!(ledger.issued_count(&old.coupon).await.expect("a count"), *ISSUED as u64 + more, "{what}");
        let user = "u77".parse().expect("an id");
        assert_eq!(ledger.held_by(&old.coupon, &user).await.expect("a look").len(), 1, "{what}");
        assert!(ledger.holder_of(&old.coupon, native(77)).await.expect("a look").is_some(), "{what}");
        let id = system.accepted(&format!("new-{more}"), &old.coupon).await;
        assert_eq!(system.client.decided(&id.to_string()).await.state(), "issued", "{what}");
        let lists = ["/user-coupons/u77", &format!("/issuances/{id}"), &format!("/user-coupons/new-{more}")];
        for path in lists {
            assert_eq!(system.client.get(path).await.status, 200, "{what}: {path}");
        }
    };
    both("before", 0).await;
    let twin = system.write_twin(&old.coupon, 77).await;
    assert!(twin, "the index of the last release holds units of both kinds");
    for (killed, records) in (1..).zip([1, *ISSUED / 3, *ISSUED / 3 * 2]) {
        let what = format!("{records} records are filled in");
        old.migrate_until(&what, async |old| {
            let noted = old.noted("ledgerMigration").await;
            noted.is_some_and(|noted| {
                let noted = noted.as_document().expect("a document").get_i64("records");
                noted.expect("a number") >= records
            })
        })
        .await;
        both(&what, killed).await;
    }
    old.migrate_until("the first new index is there", async |old| {
        old.indexes().await.contains(&"unit_occupied_once".to_owned())
    })
    .await;
    both("with both sets of indexes", 4).await;
    old.migrate_until("it is switched", async |old| {
        old.noted("ledgerByPartition").await == Some(Bson::Boolean(true))
    })
    .await;
    both("switched", 5).await;
    assert!(old.indexes().await.contains(&"unit_issued_once".to_owned()), "the old ones are still there");

    let (code, told, log) = ended(old.migrate()).await;
    assert_eq!(code, Some(0), "{log}");
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["result"], "migrated");
    old.is_migrated().await;
    assert_eq!(ledger.layout().await.expect("it is told"), Layout::Partitioned, "a process has noticed");
    both("afterwards", 6).await;
    assert!(system.write_twin(&old.coupon, 78).await, "the new index holds units");
    let again: Value = serde_json::from_str(&ended(old.migrate()).await.1).expect("JSON");
    assert_eq!((again["result"].as_str(), again["records"].as_u64()), (Some("nothing-to-do"), Some(0)));
    system.settled(&old.coupon).await;
    system.audited_clean().await;
}

impl System {
    /// Whether the ledger refuses another issued record of a unit.
    async fn write_twin(&self, coupon: &CouponId, serial: u32) -> bool {
        let twin = crate::helpers::issued_to(coupon, &format!("twin-{serial}"), serial);
        let inserted = self.backends.ledger.insert(&[twin]).await.expect("an answer");
        inserted == [coupon_system::issuance::ledger::Inserted::Conflict]
    }
}

#[tokio::test]
async fn a_worker_of_the_last_release_that_wakes_late_cannot_issue_a_unit_again() {
    let old = OldDeployment::start().await;
    let late = old.ledger().insert_one(older_record("c", "late", *ISSUED + 1)).await;
    late.expect("its record is taken before the migration");
    // The fence stands before any record is touched.
    let fenced = async |old: &OldDeployment| {
        let collections = old.system.backends.database.list_collections().await.expect("a list");
        let all: Vec<_> = futures::TryStreamExt::try_collect(collections).await.expect("all of them");
        all.iter().any(|one: &mongodb::results::CollectionSpecification| {
            one.name == "user_coupons"
                && one.options.validator.as_ref().is_some_and(|of| of.contains_key("p"))
        })
    };
    old.migrate_until("it is fenced", fenced).await;
    for _ in 0..2 {
        let woken = old.ledger().insert_one(older_record("c", "woken", 77)).await.expect_err("it is refused");
        assert!(woken.to_string().contains("validation"), "{woken}");
        assert_eq!(ended(old.migrate()).await.0, Some(0));
    }
    old.is_migrated().await;
}

/// A connection like that of a program of the last release.
async fn older_program(uri: &str) -> Database {
    let mut options = ClientOptions::parse(uri).await.expect("a URI");
    options.app_name = Some("coupon-system".into());
    let database = Client::with_options(options).expect("a client").database("any");
    database.run_command(doc! {"ping": 1}).await.expect("it answers");
    database
}

#[tokio::test]
async fn while_a_program_of_the_last_release_is_connected_nothing_is_begun() {
    let old = OldDeployment::start().await;
    let program = older_program(&old.system.mongodb_uri).await;
    let (code, _, log) = ended(old.migrate()).await;
    assert_eq!(code, Some(5), "{log}");
    assert!(log.contains("older version (127.0.0.1:"), "{log}");
    old.ledger().insert_one(older_record("c", "late", *ISSUED + 1)).await.expect("it still writes");
    assert!(!old.indexes().await.iter().any(|name| name.ends_with("_by_partition")));

    let mut despite = old.migrate();
    despite.arg("--ignore-connections");
    assert_eq!(ended(despite).await.0, Some(0));
    old.is_migrated().await;
    drop(program);
}

#[tokio::test]
async fn a_ledger_of_the_last_release_whose_lease_is_gone_is_not_taken_for_a_new_one() {
    let mut old = OldDeployment::start().await;
    // Its recovery makes a lease anew.
    old.system.stop().await;
    let leases = old.system.backends.database.collection::<Document>("recovery");
    leases.delete_many(doc! {}).await.expect("it is gone");
    let mut worker = program(WORKER, &old.system);
    worker.args(["--metrics-listen", "127.0.0.1:0"]);
    let (code, _, log) = ended(worker).await;
    assert_eq!(code, Some(5), "{log}");
    assert!(log.contains("couponctl ledger migrate"), "{log}");
    assert_eq!(ended(old.migrate()).await.0, Some(0));
    old.is_migrated().await;
}

#[tokio::test]
async fn a_validator_of_the_operators_stays_in_force() {
    let old = OldDeployment::start().await;
    old.system.poison(Some("banned")).await;
    assert_eq!(ended(old.migrate()).await.0, Some(0));
    let mut record = older_record("c", "banned", *ISSUED + 1);
    record.extend(doc! {"p": 0, "unit": *ISSUED + 1});
    assert!(old.ledger().insert_one(&record).await.is_err(), "theirs");
    record.extend(doc! {"userId": "allowed"});
    old.ledger().insert_one(&record).await.expect("it is as both want it");
    assert!(old.ledger().insert_one(older_record("c", "allowed-too", *ISSUED + 2)).await.is_err(), "ours");
}

#[tokio::test]
async fn a_new_database_needs_no_migration_and_takes_no_record_of_the_last_release() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    let (code, told, log) =
        ended(ctl(&system.mongodb_uri, &system.database, &["ledger", "migrate", "--json"])).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(told.contains("nothing-to-do"), "{told}");
    assert_eq!(system.backends.ledger.layout().await.expect("it is told"), Layout::Partitioned);
    let ledger = system.backends.database.collection::<Document>("user_coupons");
    ledger.insert_one(older_record(coupon.as_str(), "u", 1)).await.expect_err("it is refused");
}

#[tokio::test]
async fn a_start_restores_the_fence_against_programs_of_the_last_release() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    let database = &system.backends.database;
    let ledger = database.collection::<Document>("user_coupons");
    for damage in [
        doc! {"validator": {}},
        doc! {"validator": {"userId": {"$ne": "banned"}}},
        doc! {"validationLevel": "off"},
        doc! {"validationAction": "warn"},
    ] {
        let mut change = doc! {"collMod": "user_coupons"};
        change.extend(damage.clone());
        database.run_command(change).await.expect("it is changed");
        let wrong = indexes::check(database, Layout::Partitioned).await.expect("an answer");
        assert!(matches!(&wrong[..], [why] if why.contains("validator")), "{damage}: {wrong:?}");
        let started = worker(&system, &[]).await;
        assert_eq!(stopped(started).await.code(), Some(0));
        assert_eq!(indexes::check(database, Layout::Partitioned).await.expect("an answer"), [""; 0]);
        ledger.insert_one(older_record(coupon.as_str(), "u", 1)).await.expect_err("it is refused");
    }
    let mut banned = older_record(coupon.as_str(), "banned", 1);
    banned.extend(doc! {"p": 0, "unit": 1_i64});
    ledger.insert_one(banned).await.expect_err("what an operator forbids stays forbidden");
}
