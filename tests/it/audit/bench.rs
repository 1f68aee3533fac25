//! How long a full audit of a large coupon takes, and in how much memory. Not part of the usual run:
//! `cargo test --release --test it -- --ignored --nocapture a_million_records`.

use std::time::{Duration, Instant};

use coupon_system::audit::Settling;
use coupon_system::issuance::{Decision, IssuanceId, Outcome};
use coupon_system::keys::PartitionId;
use coupon_system::recovery;

use crate::helpers::{System, at};

const RECORDS: u32 = 1_000_000;
const BATCH: u32 = 5_000;
/// A full audit of as many takes less than this.
const AUDIT_MAX: Duration = Duration::from_secs(60);

/// The largest resident memory of this process so far, in MiB.
fn resident_mib_max() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a high-water mark");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; see above"]
async fn a_million_records_are_audited_within_a_minute() {
    let system = System::start().await;
    let coupon = system.coupon_record("large", RECORDS, 1, at(-60), at(3600)).await;
    for batch in 0..RECORDS / BATCH {
        let decisions: Vec<_> = (1..=BATCH)
            .map(|number| {
                let serial = batch * BATCH + number;
                Decision {
                    id: IssuanceId::generate(PartitionId::ONE),
                    coupon: coupon.id.clone(),
                    user: format!("user-{serial}").parse().expect("an id"),
                    outcome: Outcome::Issued { serial, nth: 1 },
                    accepted_at: at(0),
                    decided_at: at(0),
                }
            })
            .collect();
        system.backends.ledger.insert(&decisions).await.expect("they are written");
    }
    recovery::load(system.partition(), &system.backends.ledger, &coupon).await.expect("it is loaded");
    let auditor = system.auditor();
    let (started, memory) = (Instant::now(), resident_mib_max());
    let bracket = auditor.bracket(&coupon.id).await.expect("a bracket").expect("it is loaded");
    let bracketed = started.elapsed();
    assert!(bracket.holds());
    let started = Instant::now();
    let report = auditor.full(&[coupon], Settling::LookOnly, |_| {}).await.expect("an audit");
    let audited = started.elapsed();
    assert_eq!(report.worst(), None);
    assert!(report.coupons[0].counted);
    println!(
        "{RECORDS} issued records: bracket {bracketed:.2?}, full audit {audited:.2?}; \
         the process's peak was {memory} MiB before and {} MiB after",
        resident_mib_max()
    );
    assert!(audited < AUDIT_MAX, "{audited:?}");
}
