//! What the queue holds, read once for all coupons of an audit: the in-flight hash, then the stream.

use std::collections::{HashMap, HashSet};

use super::Auditor;
use super::finding::{Finding, FindingKind};
use crate::Failure;
use crate::ids::{CouponId, IssuanceId, Unit};
use crate::issuance::InFlight;
use crate::queue::Entry;
use crate::queue::StreamScan;
use crate::queue::entry::{RawFields, decode};
use crate::redis::KeyScan;
use crate::redis::keys::EpochKeys;

/// Fields, members or entries in one command.
pub(super) const PAGE: usize = 2_000;

/// The units of what is in flight, by coupon.
#[derive(Default)]
pub(super) struct QueueSnapshot {
    pub by_coupon: HashMap<CouponId, HashMap<IssuanceId, Option<Unit>>>,
    /// Entries whose issuance was not in flight.
    pub strays: HashMap<CouponId, Vec<Entry>>,
    /// What cannot be read.
    pub findings: Vec<Finding>,
}

impl Auditor {
    /// Reads the in-flight hash and the dead letters, then the stream up to `last`, the entry that was the last one
    /// before: so an entry that is found was in flight all the while.
    pub(super) async fn read_queue(&self, keys: &EpochKeys, last: &str) -> Result<QueueSnapshot, Failure> {
        let mut snapshot = QueueSnapshot::default();
        let mut unreadable = HashSet::new();
        let mut scan = KeyScan::new("HSCAN", keys.in_flight(), PAGE);
        while let Some(page) = scan.next::<RawFields>(&self.partition, "read a key").await? {
            for (id, value) in page {
                let parsed = std::str::from_utf8(&value).ok().and_then(|text| text.parse::<InFlight>().ok());
                match (IssuanceId::from_bytes(&id), parsed) {
                    (Some(id), Some(held)) => {
                        let of_coupon = snapshot.by_coupon.entry(held.coupon).or_default();
                        of_coupon.insert(id, held.unit);
                    }
                    (issuance, _) if unreadable.insert(id.clone()) => snapshot.findings.push(Finding {
                        issuances: issuance.into_iter().collect(),
                        detail: Some(format!("{:?}", String::from_utf8_lossy(&value))),
                        ..Finding::new(FindingKind::InFlightUnreadable, None)
                    }),
                    _ => {}
                }
            }
        }
        let mut scan = KeyScan::new("HSCAN", keys.dead(), PAGE);
        let mut strange = HashSet::new();
        while let Some(page) = scan.next::<RawFields>(&self.partition, "read a key").await? {
            strange
                .extend(page.into_iter().map(|(id, _)| id).filter(|id| IssuanceId::from_bytes(id).is_none()));
        }
        snapshot.findings.extend(strange.iter().map(|id| Finding {
            detail: Some(format!("under \"{}\"", id.escape_ascii())),
            ..Finding::new(FindingKind::DeadLetterUnreadable, None)
        }));
        let mut scan = StreamScan::new(keys.stream(), last);
        loop {
            let page = scan.next(&self.partition).await?;
            if page.is_empty() {
                return Ok(snapshot);
            }
            for (id, fields) in page {
                for decoded in decode(&id, &fields.unwrap_or_default()) {
                    match decoded {
                        Ok(entry) => {
                            let in_flight = snapshot.by_coupon.get(&entry.coupon);
                            if in_flight.is_none_or(|held| !held.contains_key(&entry.id)) {
                                snapshot.strays.entry(entry.coupon.clone()).or_default().push(entry);
                            }
                        }
                        Err(wrong) => snapshot.findings.push(Finding {
                            entry: Some(wrong.entry),
                            detail: Some(wrong.why),
                            ..Finding::new(FindingKind::EntryUnreadable, None)
                        }),
                    }
                }
            }
        }
    }
}
