//! The verdict: each unit of each coupon is issued once, to the user who was told so, each accepted request has an
//! outcome, and the audit finds nothing.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use mongodb::Collection;
use mongodb::bson::{Document, Uuid, doc};
use tokio::time::sleep;

use super::faults::FaultWindow;
use super::load::{Accepted, ClusterLoad, Fate, user};
use super::stack::ClusterStack;

/// The system settles what is decided, and adopts what was decided late, within this time.
const REST_MAX: Duration = Duration::from_secs(120);
const AUDIT_EVERY: Duration = Duration::from_secs(2);

/// A decision in the ledger: who holds which unit, or nothing if it is a rejection.
type Decision = Option<(u32, String)>;

/// Compares what users were told with the ledger, and prints what must not be. Returns whether nothing is violated.
pub async fn judge(
    stack: &ClusterStack,
    load: &ClusterLoad,
    windows: &[FaultWindow],
    p99_anyway: Duration,
) -> anyhow::Result<bool> {
    println!(
        "\n{:<16} {:<12} {:>7} {:>4} {:>11} {:>7} {:>11} {:>7} {:>11} {:>11} {:>8}",
        "fault", "", "lasts", "own", "own gap", "quiet", "p99", "others", "p99", "slowest", "repeated"
    );
    for window in windows {
        window.judge(load, p99_anyway);
    }
    let mut decisions = HashMap::new();
    for (number, coupon) in load.coupons.iter().enumerate() {
        let ledger = decisions_of(stack, &coupon.id).await?;
        is_sold_exactly(load, number, &ledger);
        decisions.extend(ledger);
    }
    let fates = have_outcomes(load, windows, &decisions);
    audits_clean(stack, load).await?;
    println!();
    for (fate, count) in fates {
        println!("{count:>9}  accepted requests: {fate}");
    }
    let violations = load.violations();
    for violation in &violations {
        println!("  VIOLATION: {violation}");
    }
    println!("{}", if violations.is_empty() { "everything held" } else { "a promise is broken" });
    Ok(violations.is_empty())
}

async fn decisions_of(stack: &ClusterStack, coupon: &str) -> anyhow::Result<HashMap<String, Decision>> {
    let ledger: Collection<Document> = stack.database.collection("user_coupons");
    let mut found = ledger.find(doc! {"couponId": coupon}).await?;
    let mut decisions = HashMap::new();
    while let Some(record) = found.try_next().await? {
        let id: Uuid = mongodb::bson::deserialize_from_bson(record.get("_id").cloned().unwrap_or_default())?;
        let decision = (record.get_str("outcome")? == "issued").then(|| {
            let serial = record.get_i64("serial").ok().and_then(|serial| u32::try_from(serial).ok());
            (serial.unwrap_or(0), record.get_str("userId").unwrap_or_default().to_owned())
        });
        decisions.insert(id.to_string(), decision);
    }
    Ok(decisions)
}

/// Each unit has one holder, who was told so, and all others were told that there is none.
fn is_sold_exactly(load: &ClusterLoad, coupon: usize, ledger: &HashMap<String, Decision>) {
    let id = &load.coupons[coupon].id;
    let mut holders: HashMap<u32, &str> = HashMap::new();
    for (serial, holder) in ledger.values().flatten() {
        if !(1..=load.units).contains(serial) {
            load.violated(format!("{id}: unit {serial} of {} is issued", load.units));
        }
        if let Some(other) = holders.insert(*serial, holder) {
            load.violated(format!("{id}: {holder} and {other} hold unit {serial}"));
        }
    }
    if holders.len() != load.units as usize {
        load.violated(format!("{id}: {} of {} units are issued", holders.len(), load.units));
    }
    let held: HashMap<&str, u32> = holders.iter().map(|(serial, holder)| (*holder, *serial)).collect();
    if held.len() != holders.len() {
        load.violated(format!("{id}: a user holds more than one unit"));
    }
    let words: Vec<Option<Option<u32>>> = {
        let told = load.told();
        (0..load.users).map(|number| told.words.get(&(coupon, number)).copied()).collect()
    };
    for (number, word) in words.into_iter().enumerate() {
        let (name, Some(word)) = (user(number), word) else {
            load.violated(format!("{id}: {} has no last word", user(number)));
            continue;
        };
        let holds = held.get(name.as_str()).copied();
        if holds != word {
            load.violated(format!("{id}: {name} was told {word:?}, and holds {holds:?}"));
        }
    }
}

/// Each accepted request is decided as its user was told, unless Redis lost it in a failover that nothing was
/// acknowledged for. Returns how many ended in which way.
fn have_outcomes(
    load: &ClusterLoad,
    windows: &[FaultWindow],
    decisions: &HashMap<String, Decision>,
) -> BTreeMap<&'static str, usize> {
    let mut fates: BTreeMap<&'static str, usize> = BTreeMap::new();
    let accepted: Vec<(String, Accepted)> =
        load.told().accepted.iter().map(|(id, accepted)| (id.clone(), *accepted)).collect();
    for (id, accepted) in accepted {
        let decision = decisions.get(&id);
        let (fate, fits) = match accepted.fate {
            Fate::Issued { serial } => {
                let held = Some((serial, user(accepted.user)));
                ("issued", decision.is_some_and(|decision| *decision == held))
            }
            Fate::Rejected => ("rejected, with a reason", decision == Some(&None)),
            Fate::NotFound => {
                ("lost in a failover that replicas had not acknowledged", may_be_lost(windows, &accepted))
            }
            Fate::Unknown => ("without an answer", false),
        };
        *fates.entry(fate).or_default() += 1;
        if !fits {
            load.violated(format!("{id} ({accepted:?}): the ledger has {decision:?}"));
        }
    }
    fates
}

fn may_be_lost(windows: &[FaultWindow], accepted: &Accepted) -> bool {
    windows.iter().any(|window| {
        !window.is_acknowledged && window.own.contains(&accepted.coupon) && accepted.at < window.lasted.1
    })
}

async fn audits_clean(stack: &ClusterStack, load: &ClusterLoad) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let report = stack.audit().await?;
        if report["verdict"] == "clean" && report["findings"].as_array().is_some_and(Vec::is_empty) {
            return Ok(());
        }
        if started.elapsed() > REST_MAX {
            load.violated(format!("the audit finds {}: {}", report["verdict"], report["findings"]));
            return Ok(());
        }
        sleep(AUDIT_EVERY).await;
    }
}
