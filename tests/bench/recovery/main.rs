//! How long recovery takes: `cargo bench --bench recovery [-- [RECORDS] [--partitions]]`.
//!
//! It uses real servers, Redis with fsync-always, and a ledger with issued records (default: a million): of one coupon on
//! one Redis ([`one`]), or, with `--partitions`, of a coupon in each of 64 partitions on a Redis Cluster of three nodes
//! ([`many`]). It prints the peak of this process's memory.

mod many;
mod one;

use std::ops::RangeInclusive;

use coupon_system::coupon::Coupon;
use coupon_system::ids::{IssuanceId, PartitionId, Shares, Unit};
use coupon_system::issuance::{Decision, Outcome};
use coupon_system::process::Backends;
use futures::{TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};

const RECORDS: u32 = 1_000_000;
/// Records in one insert, and inserts at once.
const BATCH: u32 = 5_000;
const AT_ONCE: usize = 4;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let records = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(RECORDS);
    if std::env::args().any(|word| word == "--partitions") {
        many::measure(records).await
    } else {
        one::measure(records).await
    }
}

/// A coupon that is open.
fn coupon(id: &str, partition: PartitionId, total: u32) -> anyhow::Result<Coupon> {
    let now = Timestamp::from_millisecond(Timestamp::now().as_millisecond())?;
    let id = id.parse().map_err(anyhow::Error::msg)?;
    let shares = Shares::one(partition);
    Ok(Coupon { shares, ..Coupon::new(id, total, now, now + SignedDuration::from_hours(1)) })
}

/// Writes a record of each of these units, issued.
async fn fill(backends: &Backends, coupon: &Coupon, serials: RangeInclusive<u32>) -> anyhow::Result<()> {
    let last = *serials.end();
    stream::iter(serials.step_by(BATCH as usize).map(anyhow::Ok))
        .try_for_each_concurrent(AT_ONCE, async |first| {
            let serials = first..=last.min(first + BATCH - 1);
            let decisions: Vec<_> = serials.map(|serial| issued(coupon, serial)).collect::<Result<_, _>>()?;
            backends.ledger.insert(&decisions).await?;
            Ok(())
        })
        .await
}

fn issued(coupon: &Coupon, serial: u32) -> anyhow::Result<Decision> {
    Ok(Decision {
        id: IssuanceId::generate(coupon.shares.partitions()[0]),
        coupon: coupon.id.clone(),
        user: format!("user-{serial}").parse().map_err(anyhow::Error::msg)?,
        outcome: Outcome::Issued {
            unit: Unit::native(serial).ok_or_else(|| anyhow::anyhow!("{serial} is no serial"))?,
            nth: 1,
        },
        accepted_at: coupon.created_at,
        decided_at: coupon.created_at,
    })
}

/// The peak of this process's resident memory, in MB; 0 where the system does not report it.
fn peak_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
