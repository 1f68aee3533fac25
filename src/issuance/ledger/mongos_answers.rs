//! What mongos answers, classified: documents as MongoDB's manual and its drivers' specifications show them. No mongos
//! answered them to this program.

use mongodb::bson::{Document, deserialize_from_document, doc};
use mongodb::error::{CommandError, Error, ErrorKind, InsertManyError};

use super::{Inserted, unwritten};
use crate::Failure;
use crate::mongo::Unwritten;

/// The parts of an answer to an insert that the driver hands on.
fn insert_answer(answer: Document) -> InsertManyError {
    deserialize_from_document(answer).expect("as the driver reads it")
}

fn duplicate(index: i32) -> Document {
    doc! {
        "index": index, "code": 11000, "keyPattern": {"p": 1, "couponId": 1, "unit": 1},
        "keyValue": {"p": 0, "couponId": "c", "unit": 5_i64},
        "errmsg": "E11000 duplicate key error collection: coupon.user_coupons index: unit_occupied_once dup key: \
                   { p: 0, couponId: \"c\", unit: 5 }",
    }
}

fn write_concern_error() -> Document {
    doc! {
        "code": 64, "codeName": "WriteConcernFailed",
        "errmsg": "waiting for replication timed out; Error details: { wtimeout: true, writeConcern: { w: \"majority\", \
                   wtimeout: 0, provenance: \"clientSupplied\" } } at shard0",
        "errInfo": {"wtimeout": true, "writeConcern": {"w": "majority", "wtimeout": 0, "provenance": "clientSupplied"}},
    }
}

#[test]
fn a_shard_that_did_not_answer_leaves_its_documents_unknown_and_no_other() {
    let answer = insert_answer(doc! {
        "n": 2, "ok": 1.0,
        "writeErrors": [
            duplicate(0),
            {"index": 2, "code": 13388, "codeName": "StaleConfig", "errmsg": "epoch mismatch detected for coupon.user_coupons",
             "errInfo": {"ns": "coupon.user_coupons", "vReceived": "1|0||5f", "vWanted": "2|0||5f"}},
            {"index": 3, "code": 82, "errmsg": "no progress was made executing batch write op in coupon.user_coupons after 5 rounds (0 ops completed in 6 rounds total)"},
            {"index": 4, "code": 6, "errmsg": "Write results unavailable from shard1.example.com:27018 :: caused by :: Connection refused"},
            {"index": 5, "code": 91, "errmsg": "The server is in quiesce mode and will shut down"},
            {"index": 6, "code": 133, "errmsg": "Could not find host matching read preference { mode: \"primary\" } for set shard1"},
            {"index": 7, "code": 70, "errmsg": "Shard shard2 not found"},
            {"index": 8, "code": 121, "errmsg": "Document failed validation", "errInfo": {"failingDocumentId": 1}},
        ],
    });
    let found = unwritten(&answer).expect("the rest is written");
    let places: Vec<usize> = found.iter().map(|(index, _)| *index).collect();
    assert_eq!(places, [0, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(found[0].1, Inserted::Conflict);
    for (index, inserted) in &found[1..7] {
        assert!(matches!(inserted, Inserted::Unknown(_)), "{index}: {inserted:?}");
    }
    assert!(matches!(&found[7].1, Inserted::Refused(why) if why.contains("121")), "{found:?}");
}

#[test]
fn where_one_shard_could_not_confirm_by_majority_nothing_is_known() {
    let of_several = doc! {
        "code": 64, "codeName": "WriteConcernFailed",
        "errmsg": "multiple errors reported : {} at shard0 :: and :: {} at shard1",
    };
    for error in [write_concern_error(), of_several] {
        let mut answer = doc! {"n": 1, "ok": 1.0, "writeConcernError": error};
        assert!(unwritten(&insert_answer(answer.clone())).is_none());
        answer.insert("writeErrors", [duplicate(0)]);
        assert!(unwritten(&insert_answer(answer)).is_none());
    }
}

#[test]
fn an_answer_about_routing_or_a_shard_refuses_nothing_for_good() {
    for (code, name) in [
        (6, "HostUnreachable"),
        (7, "HostNotFound"),
        (61, "ShardKeyNotFound"),
        (63, "StaleShardVersion"),
        (70, "ShardNotFound"),
        (72, "InvalidOptions"),
        (82, "NoProgressMade"),
        (89, "NetworkTimeout"),
        (91, "ShutdownInProgress"),
        (133, "FailedToSatisfyReadPreference"),
        (150, "StaleEpoch"),
        (189, "PrimarySteppedDown"),
        (249, "StaleDbVersion"),
        (262, "ExceededTimeLimit"),
        (406, "ShardCannotRefreshDueToLocksHeld"),
        (13388, "StaleConfig"),
    ] {
        let answer =
            doc! {"ok": 0.0, "code": code, "codeName": name, "errmsg": "the request could not be routed"};
        let command: CommandError = deserialize_from_document(answer).expect("as the driver reads it");
        let error = Error::from(ErrorKind::Command(command));
        assert_eq!(Unwritten::of(&error), Unwritten::Unknown, "{name}");
        assert!(matches!(Failure::mongodb("insert")(error), Failure::MongoDb { .. }), "{name}");
    }
}
