//! Units that are nowhere: proving a negative while everything moves.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::{AuditAbort, Auditor};
use crate::ids::{CouponId, IssuanceId, Unit};
use crate::redis::keys::EpochKeys;
use crate::redis::{EpochBound, LuaScript};

static IN_FLIGHT_PAGE: LuaScript = LuaScript::new(include_str!("in_flight_page.lua"));

/// In-flight values that one script reads. A hash with no more is read at one moment.
const PAGE: usize = 2_000;
/// A unit that is given back and reserved again between two pages of one search may be missed by it,
/// but not by this many in a row.
const SEARCHES: usize = 3;
const PAUSE: Duration = Duration::from_millis(50);
/// Units that are searched for at once.
pub(super) const SOUGHT_MAX: usize = 5_000;
/// Of these in one script.
const UNITS: usize = 1_000;

impl Auditor {
    /// Returns those of `serials`, all below the next one, that are neither free, nor in flight, nor issued.
    pub(super) async fn missing_units(
        &self,
        keys: &EpochKeys,
        coupon: &CouponId,
        mut units: Vec<Unit>,
    ) -> Result<Vec<Unit>, AuditAbort> {
        for search in 0..SEARCHES {
            if search > 0 && !units.is_empty() {
                tokio::time::sleep(PAUSE).await;
            }
            let mut left = Vec::new();
            for chunk in units.chunks(UNITS) {
                let mut seen = HashSet::new();
                self.each_in_flight_page(keys, coupon, chunk, |free, in_flight| {
                    seen.extend(free);
                    seen.extend(in_flight.iter().filter_map(|(_, unit)| *unit));
                })
                .await?;
                // After the in-flight hash: whatever left it as issued is in the ledger by now.
                let occupants = self.ledger.occupants(coupon, chunk).await?;
                seen.extend(occupants.iter().filter_map(|one| match one {
                    Ok((_, unit)) => Some(*unit),
                    Err(unreadable) => unreadable.unit,
                }));
                left.extend(chunk.iter().filter(|unit| !seen.contains(unit)));
            }
            units = left;
        }
        Ok(units)
    }

    /// Reads what a coupon has in flight.
    pub(super) async fn in_flight_of(
        &self,
        keys: &EpochKeys,
        coupon: &CouponId,
    ) -> Result<HashMap<IssuanceId, Option<Unit>>, AuditAbort> {
        let mut found = HashMap::new();
        self.each_in_flight_page(keys, coupon, &[], |_, in_flight| found.extend(in_flight)).await?;
        Ok(found)
    }

    /// Reads what is in flight, and calls `page` for each page with which of `serials` are free and what the page
    /// has in flight of the coupon.
    async fn each_in_flight_page(
        &self,
        keys: &EpochKeys,
        coupon: &CouponId,
        units: &[Unit],
        mut page: impl FnMut(Vec<Unit>, Vec<(IssuanceId, Option<Unit>)>),
    ) -> Result<(), AuditAbort> {
        let mut cursor = "0".to_owned();
        loop {
            let called =
                self.partition.call_in_epoch(keys, &IN_FLIGHT_PAGE, "search for units", |keys, call| {
                    call.key(keys.in_flight()).key(keys.coupon(coupon)).key(keys.free(coupon));
                    call.arg(&cursor).arg(PAGE).arg(coupon.as_str());
                    for unit in units {
                        call.arg(unit.number());
                    }
                });
            let EpochBound::Epoch(mut reply) = called.await? else { return Err(AuditAbort::AnotherEpoch) };
            cursor = reply.text()?;
            let (mut free, mut flights) = (reply.list()?, reply.list()?);
            let mut are_free = Vec::with_capacity(free.len());
            while free.len() > 0 {
                are_free.push(free.text()?.parse().map_err(|_| free.wrong())?);
            }
            let mut in_flight = Vec::with_capacity(flights.len() / 2);
            while flights.len() > 0 {
                let (id, unit) = (flights.bytes()?, flights.bytes()?);
                let unit = std::str::from_utf8(&unit).ok().and_then(|text| text.parse().ok());
                in_flight.extend(IssuanceId::from_bytes(id).map(|id| (id, unit)));
            }
            page(are_free, in_flight);
            if cursor == "0" {
                return Ok(());
            }
        }
    }
}
