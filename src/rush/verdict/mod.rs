//! Judges a run: compares what each user was told with what the service holds, and with the ledger itself where it
//! can be read.

mod holdings;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::Serialize;

use self::holdings::{HoldingsReader, holdings};
use super::api::ServiceClient;
use super::live::Violation;
use super::run::{RunResult, RunSettings};
use super::sample::StockSample;
use super::virtual_users::{LastKnown, VirtualUsers};
use crate::Failure;
use crate::ids::IssuanceId;
use crate::issuance::Ledger;
use crate::issuance::ledger::HeldUnit;

/// One promise of the service, and whether it kept it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PromiseCheck {
    /// `oversold`, `duplicates`, `lost`, `stuck`, `unexpected` or `indeterminate`.
    pub what: &'static str,
    pub ok: bool,
    pub count: u64,
    /// What was checked.
    pub means: &'static str,
    /// The first few.
    pub named: Vec<String>,
}

/// All promises.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunVerdict {
    pub ok: bool,
    pub judged: Vec<PromiseCheck>,
    /// Users whose units were read from the service's list.
    pub users_asked: u64,
    /// Records that were read from the ledger; null if it was not read.
    pub records_read: Option<u64>,
    /// Units of the coupon at the end, as the service says.
    pub stock: Option<StockSample>,
}

#[derive(Default)]
struct Violations {
    oversold: Violation,
    duplicates: Violation,
    lost: Violation,
    stuck: Violation,
    unexpected: Violation,
    unresolved: Violation,
    /// Told of as lost.
    lost_ids: HashSet<IssuanceId>,
}

/// Judges a run. It reads what at most `users_max` users hold, chosen by the seed, beside those with a request without
/// an answer, and every issued record of the coupon if there is a ledger.
///
/// # Errors
///
/// If the ledger cannot be read.
pub async fn judge(
    settings: &RunSettings,
    measured: &RunResult,
    users_max: usize,
    ledger: Option<&Ledger>,
) -> Result<RunVerdict, Failure> {
    let people = &measured.people;
    let mut found = Violations {
        lost: people.live.lost.lock().clone(),
        unexpected: people.live.unexpected.lock().clone(),
        ..Violations::default()
    };
    let mut api = ServiceClient::new(Arc::clone(&people.target));
    let stock =
        api.get(&format!("/coupons/{}", people.coupon)).await.ok().and_then(|body| StockSample::of(&body));
    let total = stock.map_or(measured.offer.total, |stock| stock.total.max(measured.offer.total));

    let holders = told(people, total, &mut found);
    let (asked, indeterminate) = {
        let holdings = holdings(settings, people, users_max).await;
        found.held(people, measured, total, &holdings);
        let unasked = holdings.wanted.iter().filter(|user| !holdings.units.lock().contains_key(user));
        for user in unasked {
            found.unresolved.add(|| format!("{}: could not be asked for their units", people.id(*user)));
        }
        let units = holdings.units.lock();
        let resolved = (0..people.count() as u32).filter(|user| is_indeterminate(people, *user));
        (
            units.len() as u64,
            resolved.map(|user| units.get(&user).is_some_and(|units| !units.is_empty())).collect::<Vec<_>>(),
        )
    };
    if let Some(stock) = stock {
        found.stock(people, measured, stock, &holders, indeterminate.len() as u64);
    } else {
        found.unresolved.add(|| "the coupon's stock could not be read at the end".into());
    }
    let records_read = match ledger {
        None => None,
        Some(ledger) => Some(found.ledger(people, measured, total, ledger).await?),
    };
    let issued_after_all = indeterminate.iter().filter(|issued| **issued).count();
    Ok(found.verdict(asked, records_read, stock, indeterminate.len(), issued_after_all))
}

fn is_indeterminate(people: &VirtualUsers, user: u32) -> bool {
    let person = people.person(user);
    person.is_unanswered && person.id.is_none()
}

/// What users were told, by itself. Returns who was told of which unit.
fn told(people: &VirtualUsers, total: u64, found: &mut Violations) -> HashMap<u32, u32> {
    let mut holders = HashMap::new();
    for user in 0..people.count() as u32 {
        let person = people.person(user);
        let name =
            || format!("{} of {}", person.id.map(|id| id.to_string()).unwrap_or_default(), people.id(user));
        match person.last_known {
            LastKnown::Accepted => found.stuck.add(|| format!("{}: accepted, and not decided", name())),
            LastKnown::Issued { serial } => {
                if serial == 0 || u64::from(serial) > total {
                    found.oversold.add(|| format!("{}: told unit {serial} of {total}", name()));
                }
                if let Some(other) = holders.insert(serial, user) {
                    found.duplicates.add(|| {
                        format!("{} and {}: both told unit {serial}", people.id(other), people.id(user))
                    });
                }
            }
            LastKnown::Lost => found.lost_ids.extend(person.id),
            LastKnown::Nothing | LastKnown::Refused(_) | LastKnown::Rejected => {}
        }
    }
    holders
}

impl Violations {
    /// What users were told against what the service lists for them.
    fn held(&mut self, people: &VirtualUsers, measured: &RunResult, total: u64, holdings: &HoldingsReader) {
        let mut units_by_serial: HashMap<u32, u32> = HashMap::new();
        for (user, units) in holdings.units.lock().iter() {
            let (person, name) = (people.person(*user), people.id(*user));
            for unit in units {
                if unit.serial == 0 || u64::from(unit.serial) > total {
                    self.oversold.add(|| format!("{name} holds unit {} of {total}", unit.serial));
                }
                if let Some(other) = units_by_serial.insert(unit.serial, *user) {
                    self.duplicates
                        .add(|| format!("{} and {name} hold unit {}", people.id(other), unit.serial));
                }
                if measured.offer.is_own && person.id != Some(unit.id) && !is_indeterminate(people, *user) {
                    self.unexpected.add(|| format!("{name} holds {}, and was not told so", unit.id));
                }
            }
            if units.len() as u64 > measured.offer.per_user {
                self.duplicates.add(|| format!("{name} holds {} units", units.len()));
            }
            if let (LastKnown::Issued { serial }, Some(id)) = (person.last_known, person.id) {
                match units.iter().find(|unit| unit.id == id) {
                    None => self.lost_record(id, name, "the service's list of the user's units"),
                    Some(unit) if unit.serial != serial => self
                        .unexpected
                        .add(|| format!("{name} was told unit {serial}, and holds unit {}", unit.serial)),
                    Some(_) => {}
                }
            }
        }
    }

    fn lost_record(&mut self, id: IssuanceId, user: &str, place: &str) {
        if self.lost_ids.insert(id) {
            self.lost.add(|| format!("{id} of {user}: told issued, and not in {place}"));
        }
    }

    /// The service's figures against what users were told.
    fn stock(
        &mut self,
        people: &VirtualUsers,
        measured: &RunResult,
        stock: StockSample,
        holders: &HashMap<u32, u32>,
        indeterminate: u64,
    ) {
        if stock.issued > stock.total {
            self.oversold.add(|| format!("the service counts {} issued of {}", stock.issued, stock.total));
        }
        if !measured.offer.is_own {
            return;
        }
        for _ in self.stuck.count..stock.reserved {
            self.stuck.add(|| format!("{} units are reserved at the end", stock.reserved));
        }
        let undecided =
            (0..people.count() as u32).filter(|user| people.person(*user).last_known == LastKnown::Accepted);
        let known = holders.len() as u64 + undecided.count() as u64 + indeterminate + self.lost.count;
        if stock.issued > known {
            self.unexpected.add(|| {
                format!("the service counts {} issued, and {known} were told of it or may be", stock.issued)
            });
        }
    }

    /// What users were told against the ledger. Returns how many records it has of the coupon.
    async fn ledger(
        &mut self,
        people: &VirtualUsers,
        measured: &RunResult,
        total: u64,
        ledger: &Ledger,
    ) -> Result<u64, Failure> {
        let records = read(ledger, &people.coupon).await?;
        let count = records.len() as u64;
        let numbers: HashMap<&str, u32> =
            (0..people.count() as u32).map(|user| (people.id(user), user)).collect();
        let mut serials: HashMap<u32, IssuanceId> = HashMap::new();
        let mut held: HashMap<&str, u64> = HashMap::new();
        let mut by_id: HashMap<IssuanceId, u32> = HashMap::new();
        for record in &records {
            let user = record.user.as_str();
            by_id.insert(record.id, record.unit.serial());
            if u64::from(record.unit.serial()) > total {
                let (id, serial) = (record.id, record.unit.serial());
                self.oversold
                    .add(|| format!("{id} of {user}: the ledger has it as unit {serial} of {total}"));
            }
            if let Some(other) = serials.insert(record.unit.serial(), record.id) {
                self.duplicates.add(|| {
                    format!("{other} and {}: the ledger has both as unit {}", record.id, record.unit.serial())
                });
            }
            let units = held.entry(user).or_default();
            *units += 1;
            if *units > measured.offer.per_user {
                self.duplicates.add(|| format!("{user}: the ledger has {units} units of this user"));
            }
            let was_told = numbers.get(user).is_some_and(|user| {
                people.person(*user).id == Some(record.id) || is_indeterminate(people, *user)
            });
            if measured.offer.is_own && !was_told {
                self.unexpected
                    .add(|| format!("{} of {user}: in the ledger, and no user was told", record.id));
            }
        }
        if count > total {
            self.oversold.add(|| format!("the ledger has {count} issued of {total}"));
        }
        for user in 0..people.count() as u32 {
            let person = people.person(user);
            let (LastKnown::Issued { serial }, Some(id)) = (person.last_known, person.id) else { continue };
            match by_id.get(&id) {
                None => self.lost_record(id, people.id(user), "the ledger"),
                Some(held) if *held != serial => self.unexpected.add(|| {
                    format!("{id} of {}: told unit {serial}, and the ledger has {held}", people.id(user))
                }),
                Some(_) => {}
            }
        }
        Ok(count)
    }

    fn verdict(
        self,
        users_asked: u64,
        records_read: Option<u64>,
        stock: Option<StockSample>,
        indeterminate: usize,
        issued_after_all: usize,
    ) -> RunVerdict {
        let judged = |what, means, finding: Violation| PromiseCheck {
            what,
            ok: finding.count == 0,
            count: finding.count,
            means,
            named: finding.named,
        };
        let mut unanswered = self.unresolved.named;
        if indeterminate > 0 {
            unanswered.insert(0, format!("{issued_after_all} of {indeterminate} were issued after all"));
        }
        let judged = vec![
            judged("oversold", "more units than there are, or a unit beyond the last", self.oversold),
            judged("duplicates", "a unit held twice, or a user beyond the limit", self.duplicates),
            judged("lost", "accepted and then unknown, or told issued and not held", self.lost),
            judged("stuck", "accepted, and not decided in time", self.stuck),
            judged(
                "unexpected",
                "an answer outside the contract, or a unit that nobody was told of",
                self.unexpected,
            ),
            PromiseCheck {
                what: "indeterminate",
                ok: self.unresolved.count == 0,
                count: indeterminate as u64 + self.unresolved.count,
                means: "requests without an answer: what became of each must be found out",
                named: unanswered,
            },
        ];
        RunVerdict { ok: judged.iter().all(|one| one.ok), judged, users_asked, records_read, stock }
    }
}

/// All issued records of a coupon.
async fn read(ledger: &Ledger, coupon: &str) -> Result<Vec<HeldUnit>, Failure> {
    let coupon = coupon.parse().map_err(|why: String| Failure::Misconfigured {
        operation: "read the ledger",
        why: format!("the id of the coupon {why}"),
    })?;
    let mut read = ledger.issued_records(&coupon).await?;
    let mut records: Vec<HeldUnit> = Vec::new();
    loop {
        let page = read.next().await?;
        if page.is_empty() {
            return Ok(records);
        }
        for held in page {
            records.push(held?);
        }
    }
}
