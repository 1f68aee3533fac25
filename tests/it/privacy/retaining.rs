//! The API deletes old records of rejections.

use coupon_system::ids::{IssuanceId, PartitionId};
use coupon_system::issuance::{Decision, Outcome, Reason};
use coupon_system::privacy::{Retention, RetentionRound};

use crate::helpers::{System, at, decided, native};

const DAY: i64 = 24 * 3_600;

/// Writes a record that is this many days old.
async fn record(system: &System, coupon: &str, id: IssuanceId, days: i64, outcome: Outcome) -> IssuanceId {
    let (coupon, moment) = (coupon.parse().expect("an id"), at(-days * DAY));
    let decision = decided(id, &coupon, "u0", outcome);
    system.write(&[Decision { accepted_at: moment, decided_at: moment, ..decision }]).await;
    id
}

#[tokio::test]
async fn rejections_go_when_their_coupon_has_been_over_for_long_and_nothing_else_does() {
    const REJECTED: Outcome = Outcome::Rejected { reason: Reason::Discarded, unit: None, lost: false };
    let system = System::start().await;
    let new = || IssuanceId::generate(PartitionId::ONE);
    system.coupon_record("old", 10, 1, at(-500 * DAY), at(-450 * DAY)).await;
    system.coupon_record("recent", 10, 1, at(-500 * DAY), at(-300 * DAY)).await;
    let open = system.coupon("open", 10, 1).await;
    let in_flight = system.accepted("u1", &open).await;
    let gone = [
        record(&system, "old", new(), 460, REJECTED).await,
        record(&system, "old", new(), 451, REJECTED).await,
    ];
    let kept = [
        record(&system, "old", new(), 460, Outcome::Issued { unit: native(1), nth: 1 }).await,
        // Decided late, and the user may still repeat the request.
        record(&system, "old", new(), 10, REJECTED).await,
        // Not settled yet.
        record(&system, "old", in_flight, 460, REJECTED).await,
        record(&system, "recent", new(), 460, REJECTED).await,
        record(&system, "open", new(), 460, REJECTED).await,
    ];
    let backends = &system.backends;
    let retention = |days| {
        Retention::new(backends.partitions.clone(), backends.ledger.clone(), backends.coupons.clone(), days)
    };
    assert!(retention(0).is_none(), "0 keeps them for ever");
    let retention = retention(400).expect("a retention");
    let round = retention.round(at(0)).await.expect("an answer");
    assert_eq!(round, RetentionRound { coupons: 1, deleted: 2 });
    let left = backends.ledger.decisions(&[gone.as_slice(), &kept].concat()).await.expect("a look");
    assert!(gone.iter().all(|id| !left.contains_key(id)), "{left:?}");
    assert!(kept.iter().all(|id| left.contains_key(id)), "{left:?}");
    assert_eq!(retention.round(at(0)).await.expect("an answer"), RetentionRound { coupons: 1, deleted: 0 });
    system.drain().await;
}
