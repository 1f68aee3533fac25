//! Whatever a client sends is read into domain types, or is a problem; through the code that the
//! handlers use. The first byte chooses what the rest is.

#![no_main]

use std::str::FromStr;

use coupon_system::api::wire::body::parsed;
use coupon_system::api::wire::page::PageParams;
use coupon_system::api::wire::query::Query;
use coupon_system::api::wire::{coupon, issuance, user};
use coupon_system::http::Language;
use coupon_system::ids::{CouponId, IssuanceId, PartitionId, UserId};
use coupon_system::issuance::IdempotencyKey;
use coupon_system::issuance::ledger::follow::FollowPosition;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 4 {
        0 => body(rest),
        1 => query(rest),
        2 => ids(rest),
        _ => headers(rest),
    }
});

/// A body, as each of the handlers reads it.
fn body(data: &[u8]) {
    let (requested, body) = (issuance::request(data), parsed(data));
    if let Ok((user, coupon)) = requested {
        // Read on a short way of its own, which must not take what the strict one refuses.
        let body = body.as_ref().expect("JSON without repeated names");
        assert_eq!(body["userId"], user.as_str());
        assert_eq!(body["couponId"], coupon.as_str());
        assert_eq!(body.as_object().map(|fields| fields.len()), Some(2));
    }
    let Ok(body) = body else { return };
    let now = "2026-11-23T11:00:00Z".parse().expect("a moment");
    match coupon::create(body.clone(), now) {
        Ok((made, shares)) => {
            assert!(shares.is_none_or(|shares| shares >= 1 && shares <= made.total));
            assert!(made.total >= 1 && made.per_user >= 1 && made.starts_at < made.ends_at);
            // What was made can be edited, shown and asked for its validity.
            let _ = coupon::edit(body.clone(), &made, now);
            let _ = made.expiry().of(now);
            let shown = serde_json::to_string(&coupon::Coupon::new(made, None, now));
            assert!(shown.is_ok_and(|text| serde_json::from_str::<Value>(&text).is_ok()));
        }
        Err(problem) => {
            let told = problem.to_value(Language::Korean, "r", "");
            assert!(told["errors"].as_array().is_some_and(|errors| !errors.is_empty()));
        }
    }
    let _ = coupon::restock(body.clone());
    let _ = user::create(body, now);
}

/// A query, as lists and feeds read it.
fn query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut query = Query::of(text);
    let asked = PageParams::<IssuanceId>::read(&mut query);
    assert!(asked.is_err() || asked.is_ok_and(|asked| (1..=500).contains(&asked.limit)));
    if let Ok(Some(place)) = query.take("after", FollowPosition::from_str) {
        assert_eq!(place.to_string().parse(), Ok(place));
    }
    let _ = query.finish();
}

/// The parts of a path.
fn ids(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(id) = text.parse::<IssuanceId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
        let _ = (id.made_at(), id.partition(), id.is_keyed());
    }
    let _ = text.parse::<coupon_system::coupon::ValidityPeriod>();
    for word in text.split('/') {
        if let Ok(id) = word.parse::<CouponId>() {
            // It is put into the names of keys, and between spaces.
            assert!(!id.as_str().contains(|c: char| c.is_whitespace() || "{}:/\\".contains(c)));
        }
        if let Ok(id) = word.parse::<UserId>() {
            assert!(!id.as_str().contains(|c: char| c.is_whitespace() || "{}/\\".contains(c)));
        }
    }
}

/// An `Idempotency-Key`, and the issuance that it leads to.
fn headers(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(key) = text.parse::<IdempotencyKey>() else { return };
    let (user, coupon) = ("u".parse().expect("an id"), "c".parse().expect("an id"));
    let id = IssuanceId::from_key(PartitionId::ONE, None, &user, &coupon, &key);
    assert!(id.is_keyed() && id.partition() == PartitionId::ONE);
}
