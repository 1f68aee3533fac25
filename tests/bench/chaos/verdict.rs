//! The verdict: each sale keeps the promise, everything that is stuck is named, and the audit finds nothing wrong with
//! undamaged things.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::Context;
use coupon_system::ids::{IssuanceId, PartitionId};
use coupon_system::redis::keys::{EpochKeys, certificate};
use futures::TryStreamExt;
use mongodb::Collection;
use mongodb::bson::{Document, Uuid, doc};
use serde_json::Value;

use super::damage::{DamageKind, DamageLog};
use super::load::{ChaosLoad, ChaosSale, LastKnown};
use super::stack::{LOOK_EVERY, Stack};

/// After the last fault, each accepted request must be decided or named within this time.
const REST_MAX: Duration = Duration::from_secs(120);

/// The longest answer to a list when the system is at rest.
const ANSWERED_MAX: Duration = Duration::from_secs(5);
/// What operators and users read: one damaged thing among them must not take the others away.
const LISTS: [&str; 9] = [
    "/coupons?limit=500",
    "/coupons?status=soldOut",
    "/users?limit=500",
    "/dead-letters",
    "/operator-actions?limit=500",
    "/queue",
    "/workers",
    "/metrics",
    "/readyz",
];

/// Judges the run and prints the violations. Returns whether there is none.
pub async fn judge(
    stack: &Stack,
    load: &ChaosLoad,
    damage: &DamageLog,
    lasted: Duration,
) -> anyhow::Result<bool> {
    let ledger: Collection<Document> = stack.database.collection("user_coupons");
    let coupons: Collection<Document> = stack.database.collection("coupons");
    for mut sale in load.sales() {
        let record = coupons.find_one(doc! {"_id": &sale.coupon}).await?.unwrap_or_default();
        let total = record.get_i64("total").unwrap_or_default().cast_unsigned();
        // The last release refuses a target for a restock, perhaps after this one has reached it.
        if total != sale.total && !stack.has_other_release() {
            load.violated(format!("{}: {total} units instead of {}", sale.coupon, sale.total));
        }
        sale.total = total;
        sold(load, &ledger, &sale).await?;
    }
    let named = at_rest(stack, load).await?;
    for planted in &damage.planted {
        for id in &planted.accepted {
            let uuid = Uuid::parse_str(id)?;
            let decided = ledger.count_documents(doc! {"_id": uuid}).await? > 0;
            if !decided && !named.contains(id) {
                load.violated(format!(
                    "{:?} of {}: {id} is neither decided nor named",
                    planted.kind, planted.coupon
                ));
            }
        }
        let must_be_named = planted.kind == DamageKind::RecordUnreadable;
        let is_named =
            named.contains(&planted.coupon) || planted.accepted.iter().any(|id| named.contains(id));
        if must_be_named && !is_named {
            load.violated(format!("{:?} of {} has no name", planted.kind, planted.coupon));
        }
    }
    let held = damage.planted.iter().map(|planted| format!("/user-coupons/{}.u0", planted.coupon));
    for path in LISTS.map(str::to_owned).into_iter().chain(held) {
        let started = Instant::now();
        while let Some(refused) = load.refused(&path).await {
            if started.elapsed() > ANSWERED_MAX {
                load.violated(format!("GET {path} is not answered with 200: {refused}"));
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    let violations = load.violations();
    println!("\nafter {:.0} s of trouble:", lasted.as_secs_f64());
    for (what, count) in load.counts() {
        println!("  {count:>8}  {what}");
    }
    println!("  {:>8}  damaged records", damage.planted.len());
    println!("  {:>6.1} s  the longest time in which nothing was accepted", load.longest_gap().as_secs_f64());
    for violation in &violations {
        println!("  VIOLATION: {violation}");
    }
    println!("{}", if violations.is_empty() { "everything held" } else { "a promise is broken" });
    Ok(violations.is_empty())
}

/// One sale: what users were told against the ledger.
async fn sold(load: &ChaosLoad, ledger: &Collection<Document>, sale: &ChaosSale) -> anyhow::Result<()> {
    let ChaosSale { coupon, total, told } = sale;
    let (mut serials, mut users) = (HashMap::new(), HashSet::new());
    let mut issued = ledger.find(doc! {"couponId": coupon, "outcome": "issued"}).await?;
    while let Some(record) = issued.try_next().await? {
        let serial = record.get_i64("serial").unwrap_or_default().cast_unsigned();
        let user = record.get_str("userId").unwrap_or_default().to_owned();
        if serial == 0 || serial > *total {
            load.violated(format!("{coupon}: unit {serial} of {total} was issued"));
        }
        if !users.insert(user.clone()) {
            load.violated(format!("{coupon}: {user} holds more than one"));
        }
        if let Some(other) = serials.insert(serial, user.clone()) {
            load.violated(format!("{coupon}: {user} and {other} hold unit {serial}"));
        }
    }
    for (user, word) in told {
        match word {
            LastKnown::Issued { id, serial } if serials.get(serial) != Some(user) => {
                load.violated(format!(
                    "{coupon}: {user} was told unit {serial} ({id}), and does not hold it"
                ));
            }
            LastKnown::Issued { .. } | LastKnown::SoldOut => {}
        }
    }
    let (sold_out, issued) =
        (told.values().filter(|word| **word == LastKnown::SoldOut).count(), serials.len());
    if sold_out > 0 && (issued as u64) < *total {
        load.violated(format!(
            "{coupon}: {sold_out} users were told sold out, and {issued} of {total} are issued"
        ));
    }
    Ok(())
}

/// Waits until everything in flight has a name: a dead letter or a finding. Returns all names.
async fn at_rest(stack: &Stack, load: &ChaosLoad) -> anyhow::Result<String> {
    let started = Instant::now();
    loop {
        let (in_flight, dead) = in_flight(stack).await?;
        let waiting: Vec<_> = in_flight.difference(&dead).collect();
        let names = names(stack, load).await;
        let (findings, names) = match names {
            Ok(names) => names,
            Err(_) if started.elapsed() < REST_MAX => {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            Err(error) => {
                load.violated(format!("the audit could not be finished: {error:#}"));
                return Ok(String::new());
            }
        };
        let unnamed: Vec<_> = waiting.iter().filter(|id| !names.contains(id.as_str())).collect();
        let wrong: Vec<_> = findings.iter().filter(|finding| is_of_a_sale(finding)).collect();
        if unnamed.is_empty() && wrong.is_empty() {
            return Ok(names);
        }
        if started.elapsed() > REST_MAX {
            for id in unnamed {
                load.violated(format!("{id} is in flight after {REST_MAX:?}, and nothing names it"));
            }
            for finding in wrong {
                load.violated(format!("the audit finds {finding}"));
            }
            return Ok(names);
        }
        tokio::time::sleep(LOOK_EVERY * 20).await;
    }
}

fn is_of_a_sale(finding: &Value) -> bool {
    let is_damage = finding["severity"] != "passing";
    is_damage && finding["coupon"].as_str().is_some_and(|coupon| coupon.starts_with("sale-"))
}

/// The ids in flight, and those of dead letters.
async fn in_flight(stack: &Stack) -> anyhow::Result<(HashSet<String>, HashSet<String>)> {
    let mut redis = stack.connection(stack.primary).await?;
    let open: String =
        redis::cmd("HGET").arg(certificate(PartitionId::ONE)).arg("epoch").query_async(&mut redis).await?;
    let keys =
        EpochKeys::new(PartitionId::ONE, open.parse().map_err(|_| anyhow::anyhow!("{open} is no epoch"))?);
    let mut sets = Vec::new();
    for key in [keys.in_flight(), keys.dead()] {
        let ids: Vec<Vec<u8>> = redis::cmd("HKEYS").arg(key).query_async(&mut redis).await?;
        let ids = ids.into_iter().filter_map(IssuanceId::from_bytes);
        sets.push(ids.map(|id| id.to_string()).collect());
    }
    let dead = sets.pop().unwrap_or_default();
    Ok((sets.pop().unwrap_or_default(), dead))
}

/// The audit's findings; and, as one text, all that findings and dead letters say.
async fn names(stack: &Stack, load: &ChaosLoad) -> anyhow::Result<(Vec<Value>, String)> {
    let audited = stack.couponctl(&["audit", "--full", "--json"]).await?;
    let report: Value = serde_json::from_slice(&audited.stdout)
        .with_context(|| String::from_utf8_lossy(&audited.stderr).into_owned())?;
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    let mut names = report["findings"].to_string();
    let mut cursor = String::new();
    loop {
        let page = load.get(&format!("/dead-letters{cursor}")).await.context("no dead letters")?;
        names.push_str(&page["items"].to_string());
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("?cursor={next}"),
            None => return Ok((findings, names)),
        }
    }
}
