//! Mending one finding. Each script reads again, in the moment of its write, all that makes the write
//! right; so a repair may be raced by requests, workers, recoveries and other repairs.

use super::adopt::{Adopted, CALLS_MAX, UNITS_A_CALL, adopt};
use super::finding::{Finding, Kind};
use super::{Auditor, Stop};
use crate::Failure;
use crate::ids::{CouponId, IssuanceId};
use crate::issuance::Outcome;
use crate::issuance::lookup::read_in_flight;
use crate::issuance::reassign::{Reassigned, reassign};
use crate::redis::keys::{EpochKeys, GROUP};
use crate::redis::{Call, EpochBound, LuaScript};

macro_rules! scripts {
    ($($name:ident $file:literal;)*) => {
        $(static $name: LuaScript = LuaScript::new(include_str!($file));)*
    };
}

scripts! {
    BEGIN "begin.lua";
    RELEASE "release.lua";
    RECOUNT "recount.lua";
    TAKE "take.lua";
    DISCARD "discard.lua";
    PUT_BACK "put_back.lua";
    DROP "drop.lua";
    UNCOUNT "uncount.lua";
}

/// What became of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mended {
    Now,
    /// It has changed since it was found, or too much goes on: look again.
    NotNow,
    /// Its coupon misses records, and nobody can tell whether the unit is theirs.
    Withheld,
    /// It needs a person.
    Never,
}

/// The right to repair one coupon, until another repair begins.
pub(super) struct Repair<'a> {
    auditor: &'a Auditor,
    keys: EpochKeys,
    coupon: &'a CouponId,
    token: String,
}

impl<'a> Repair<'a> {
    /// Begins a repair; `None` if the coupon is not loaded.
    pub(super) async fn begin(
        auditor: &'a Auditor,
        keys: &EpochKeys,
        coupon: &'a CouponId,
    ) -> Result<Option<Repair<'a>>, Stop> {
        let repair = Repair { auditor, keys: keys.clone(), coupon, token: crate::ids::random_id() };
        let begun = repair
            .call(&BEGIN, |keys, call| {
                call.key(keys.coupon(coupon)).arg(&repair.token);
            })
            .await?;
        Ok((begun == "begun").then_some(repair))
    }

    /// Mends what can be mended of one coupon's findings, and says what became of each.
    pub(super) async fn mend(&mut self, findings: &[Finding]) -> Result<Vec<Mended>, Stop> {
        let missing =
            findings.iter().any(|finding| finding.kind == Kind::RecordMissing || finding.may_hold_any_unit());
        let leaked: Vec<u32> = findings
            .iter()
            .filter(|finding| finding.kind == Kind::SerialLeaked)
            .filter_map(|finding| finding.serial)
            .collect();
        let released = if missing { Mended::Withheld } else { self.release(&leaked).await? };
        let mut mended = Vec::with_capacity(findings.len());
        for finding in findings {
            mended.push(match finding.kind {
                Kind::SerialLeaked => released,
                _ => self.mend_one(finding).await?,
            });
        }
        Ok(mended)
    }

    async fn mend_one(&self, finding: &Finding) -> Result<Mended, Stop> {
        let (id, user) = (finding.issuances.first().copied(), finding.user.as_ref());
        Ok(match (finding.kind, id, user, finding.serial) {
            (Kind::RecordNotCounted, Some(id), Some(user), Some(serial)) => {
                match adopt(&self.auditor.partition, &self.keys, self.coupon, id, user, serial).await? {
                    Adopted::Now | Adopted::Before => Mended::Now,
                    Adopted::InFlight | Adopted::NotLoaded | Adopted::BeyondTotal => Mended::NotNow,
                }
            }
            (Kind::SerialFreeAndIssued, _, _, Some(serial)) => {
                take(self.auditor, &self.keys, self.coupon, serial, None).await?
            }
            (Kind::SerialFreeAndInFlight, Some(id), _, Some(serial)) => {
                take(self.auditor, &self.keys, self.coupon, serial, Some(id)).await?
            }
            (Kind::SerialInFlightTwice | Kind::SerialInFlightAndIssued, Some(id), _, Some(serial)) => {
                self.reassign(id, serial).await?
            }
            (Kind::InFlightLost, Some(id), ..) => self.put_back(finding, id).await?,
            (Kind::EntryOrphaned, Some(id), ..) => self.drop_entry(finding, id).await?,
            (Kind::RejectionCounted, Some(id), Some(user), _) => {
                let done = self.call(&UNCOUNT, |keys, call| {
                    call.key(keys.in_flight()).key(keys.coupon(self.coupon)).key(keys.holders(self.coupon));
                    call.arg(id.as_bytes().as_slice()).arg(user.as_str()).arg(u8::from(id.is_keyed()));
                });
                now_if(done.await? == "uncounted")
            }
            (Kind::FreeUnknown, ..) => {
                let member = finding.detail.as_deref().unwrap_or_default();
                let done = self.call(&DISCARD, |keys, call| {
                    call.key(keys.coupon(self.coupon)).key(keys.free(self.coupon)).arg(member);
                });
                now_if(done.await? == "discarded")
            }
            (Kind::CountDrifted, ..) => self.recount().await?,
            (Kind::CouponBehind, ..) => {
                let coupon = self.auditor.coupons.get(self.coupon).await?;
                now_if(self.auditor.catch_up(coupon.as_slice()).await?)
            }
            // A full audit settles it.
            (Kind::DecidedInFlight, ..) => Mended::NotNow,
            _ => Mended::Never,
        })
    }

    /// Gives units back that are nowhere.
    async fn release(&mut self, serials: &[u32]) -> Result<Mended, Stop> {
        for chunk in serials.chunks(UNITS_A_CALL as usize) {
            let next = crate::ids::random_id();
            let done = self.call(&RELEASE, |keys, call| {
                call.key(keys.coupon(self.coupon)).key(keys.free(self.coupon));
                call.arg(&self.token).arg(&next);
                for serial in chunk {
                    call.arg(*serial);
                }
            });
            if done.await? != "released" {
                return Ok(Mended::NotNow);
            }
            self.token = next;
        }
        Ok(Mended::Now)
    }

    async fn recount(&self) -> Result<Mended, Stop> {
        let quiet = self.auditor.quiet(&self.keys, self.coupon).await?;
        let Some(quiet) = quiet.filter(|quiet| quiet.in_flight == 0) else { return Ok(Mended::NotNow) };
        let done = self.call(&RECOUNT, |keys, call| {
            call.key(keys.counters()).key(keys.coupon(self.coupon)).key(keys.free(self.coupon));
            call.arg(&self.token).arg(quiet.accepted).arg(quiet.figures.next).arg(quiet.figures.free);
            call.arg(quiet.figures.settled).arg(quiet.issued);
        });
        Ok(now_if(done.await? == "counted"))
    }

    async fn reassign(&self, id: IssuanceId, old: u32) -> Result<Mended, Stop> {
        let found = read_in_flight(&self.auditor.partition, &[id]).await?.pop().transpose()?.flatten();
        let Some((held, _)) = found else { return Ok(Mended::NotNow) };
        let partition = &self.auditor.partition;
        let done = reassign(partition, &self.keys, self.coupon, id, &held.entry, Some(old)).await?;
        Ok(now_if(matches!(done, Reassigned::To(_))))
    }

    async fn put_back(&self, finding: &Finding, id: IssuanceId) -> Result<Mended, Stop> {
        let Some(entry) = &finding.entry else { return Ok(Mended::NotNow) };
        let serial = finding.serial.unwrap_or(0);
        let in_flight = self.auditor.flights_of(&self.keys, self.coupon).await?;
        let issued = self.auditor.ledger.holder_of(self.coupon, serial).await?;
        let its_own = serial > 0 && issued.is_none() && in_flight.values().all(|other| *other != serial);
        let done = self.call(&PUT_BACK, |keys, call| {
            call.key(keys.stream()).key(keys.in_flight()).key(keys.counters()).key(keys.coupon(self.coupon));
            call.key(keys.holders(self.coupon)).key(keys.free(self.coupon));
            call.arg(id.as_bytes().as_slice()).arg(entry).arg(u8::from(its_own)).arg(GROUP);
        });
        Ok(match done.await?.as_str() {
            "put back" => Mended::Now,
            // Its user was not promised anything that Redis remembers: nobody can tell.
            "strange" => Mended::Never,
            _ => Mended::NotNow,
        })
    }

    async fn drop_entry(&self, finding: &Finding, id: IssuanceId) -> Result<Mended, Stop> {
        let Some(entry) = &finding.entry else { return Ok(Mended::NotNow) };
        let Some(decision) = self.auditor.ledger.decisions(&[id]).await?.remove(&id) else {
            return Ok(Mended::NotNow);
        };
        // What it says cannot be told: nothing is done for it.
        let Ok(decision) = decision else { return Ok(Mended::Never) };
        if let Outcome::Issued { serial, .. } = decision.outcome {
            adopt(&self.auditor.partition, &self.keys, self.coupon, id, &decision.user, serial).await?;
        }
        let done = self.call(&DROP, |keys, call| {
            call.key(keys.stream()).key(keys.in_flight()).key(keys.dead());
            call.arg(GROUP).arg(entry).arg(id.as_bytes().as_slice());
        });
        Ok(now_if(done.await? == "dropped"))
    }

    async fn call(&self, script: &LuaScript, build: impl Fn(&EpochKeys, &mut Call)) -> Result<String, Stop> {
        call(self.auditor, &self.keys, script, build).await
    }
}

async fn call(
    auditor: &Auditor,
    keys: &EpochKeys,
    script: &LuaScript,
    build: impl Fn(&EpochKeys, &mut Call),
) -> Result<String, Stop> {
    match auditor.partition.call_in_epoch(keys, script, "mend the accounts", build).await? {
        EpochBound::Epoch(mut reply) => reply.text().map_err(Stop::Failed),
        EpochBound::AnotherEpoch => Err(Stop::AnotherEpoch),
    }
}

/// Takes a unit out of the free ones: an issued one, or one in flight for `id`.
async fn take(
    auditor: &Auditor,
    keys: &EpochKeys,
    coupon: &CouponId,
    serial: u32,
    id: Option<IssuanceId>,
) -> Result<Mended, Stop> {
    let id = id.map(|id| id.as_bytes().to_vec()).unwrap_or_default();
    for _ in 0..CALLS_MAX {
        let done = call(auditor, keys, &TAKE, |keys, call| {
            call.key(keys.in_flight()).key(keys.coupon(coupon)).key(keys.free(coupon));
            call.arg(serial).arg(id.as_slice()).arg(UNITS_A_CALL);
        });
        match done.await?.as_str() {
            "more" => {}
            done => return Ok(now_if(done == "taken")),
        }
    }
    Ok(Mended::NotNow)
}

fn now_if(done: bool) -> Mended {
    if done { Mended::Now } else { Mended::NotNow }
}

/// Mends what a late insert leaves, and nothing else: counts the record, and takes its unit out of the
/// free ones, where it may be though the record was counted (it was in flight for another issuance then,
/// which has its own in the ledger). Both are right whatever else goes on: issued stays issued.
pub(super) async fn adopt_only(
    auditor: &Auditor,
    keys: &EpochKeys,
    coupon: &CouponId,
    findings: &[Finding],
) -> Result<u64, Failure> {
    let mut adopted = 0;
    for finding in findings {
        let done = match (finding.kind, finding.issuances.as_slice(), &finding.user, finding.serial) {
            (Kind::RecordNotCounted, [id], Some(user), Some(serial)) => {
                adopt(&auditor.partition, keys, coupon, *id, user, serial)
                    .await
                    .map(|done| done == Adopted::Now)
            }
            (Kind::SerialFreeAndIssued, _, _, Some(serial)) => {
                take(auditor, keys, coupon, serial, None).await.map(|done| done == Mended::Now)
            }
            _ => continue,
        };
        match done {
            Ok(done) => adopted += u64::from(done),
            // The rebuild has read the ledger.
            Err(Stop::AnotherEpoch) => {}
            Err(Stop::Failed(failure)) => return Err(failure),
        }
    }
    Ok(adopted)
}
