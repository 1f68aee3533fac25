//! Queues and settled users, made by calling the scripts directly: no HTTP in between, and no worker.

use std::ops::Range;

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt, stream};

use super::env::user;
use crate::ids::{CouponId, IssuanceId};
use crate::issuance::reserve::{QueueEntries, Request, Reserved, reserve};
use crate::issuance::settle::{Settlement, settle};
use crate::issuance::{Decision, Outcome, settle};
use crate::queue::{Entry, ReadFrom, ReadOutcome, Reader, by_whole_entries};
use crate::redis::Partition;

/// Calls at once, as the API has them.
pub(super) const CALLS_AT_ONCE: usize = 2;
/// Requests in one call at most, as the API has them.
pub(super) const BATCH_MAX: u32 = 128;
/// Entries in one read, as a worker's.
const READ_MAX: usize = 500;
/// Never met here.
const BACKLOG_MAX: u64 = 1 << 40;

/// Reserves a unit for each of these users, `batch` of them in one call, and returns the issuances' ids.
pub(super) async fn queue(
    partition: &Partition,
    coupon: &CouponId,
    users: Range<u32>,
    batch: u32,
) -> anyhow::Result<Vec<IssuanceId>> {
    let firsts = users.clone().step_by(batch as usize);
    let ids: Vec<Vec<IssuanceId>> = stream::iter(firsts)
        .map(async |first| {
            let requests = (first..users.end.min(first + batch))
                .map(|number| {
                    let id = IssuanceId::generate(partition.id());
                    Ok(Request {
                        id,
                        coupon: coupon.clone(),
                        user: user(number).parse()?,
                        key: None,
                        trace: None,
                    })
                })
                .collect::<Result<Vec<_>, String>>()
                .map_err(anyhow::Error::msg)?;
            let answers = reserve(partition, &requests, BACKLOG_MAX, QueueEntries::OfMany).await?;
            if let Some(other) = answers.iter().find(|answer| !matches!(answer, Reserved::Accepted(_))) {
                bail!("a reservation was not accepted: {other:?}");
            }
            anyhow::Ok(requests.into_iter().map(|request| request.id).collect())
        })
        .buffer_unordered(CALLS_AT_ONCE)
        .try_collect()
        .await?;
    Ok(ids.concat())
}

/// Reads `count` entries as one worker would, and leaves them pending.
pub(super) async fn deliver(partition: &Partition, count: u32) -> anyhow::Result<Vec<Entry>> {
    let mut reader = Reader::new(partition.client().clone(), format!("bench-{}", crate::ids::random_id()));
    let mut entries = Vec::with_capacity(count as usize);
    while entries.len() < count as usize {
        let wanted = READ_MAX.min(count as usize - entries.len());
        match reader.read(&partition.keys(), ReadFrom::New, wanted).await? {
            ReadOutcome::Entries(delivered) if !delivered.entries.is_empty() => {
                entries.extend(delivered.entries)
            }
            ReadOutcome::Entries(_) => bail!("{} entries of {count} are in the queue", entries.len()),
            ReadOutcome::NoGroup => bail!("the queue has no group"),
        }
    }
    Ok(entries)
}

/// Settles all of these as issued, as a worker would.
pub(super) async fn settle_all(partition: &Partition, entries: Vec<Entry>) -> anyhow::Result<()> {
    let now = crate::mongo::now_in_milliseconds();
    let settlements = entries
        .into_iter()
        .map(|entry| {
            let unit = entry.unit.context("a fresh entry has a unit")?;
            let decision = Decision {
                id: entry.id,
                coupon: entry.coupon,
                user: entry.user,
                outcome: Outcome::Issued { unit, nth: entry.nth },
                accepted_at: entry.accepted_at,
                decided_at: now,
            };
            Ok(Settlement { entry: entry.entry, of: entry.of, decision, holds: Vec::new() })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    for batch in by_whole_entries(&settlements, settle::BATCH_MAX, |settlement| &settlement.entry) {
        let settled = settle(partition, &partition.keys(), batch).await?;
        if settled.iter().any(|one| *one != settle::Settled::Now) {
            bail!("an entry was not settled");
        }
    }
    Ok(())
}
