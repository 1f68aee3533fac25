//! The settings that Redis must have, so that what it acknowledged is on the disk.

use std::sync::Arc;

use clap::ValueEnum;
use futures::future::{join_all, try_join_all};
use jiff::Timestamp;

use crate::Failure;
use crate::redis::{Partition, Primary, RedisNodes, answers_of_any, cmd};

const READ_SETTINGS: &str = "read its settings";
/// Milliseconds between the clocks of two nodes, above which an operator is told.
const CLOCK_SKEW_MAX_MS: i64 = 50;
/// Else the death of one node stops all others.
const FULL_COVERAGE: (&str, &[&str]) = ("cluster-require-full-coverage", &["no"]);

/// How durable Redis must be for a process to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    /// `appendfsync always`: an acknowledged reservation survives a power cut.
    Always,
    /// `appendfsync everysec` or better: a crash may lose the last second of accepted requests.
    Everysec,
    /// Anything: accepted requests may be lost with Redis. For trials only.
    None,
}

/// What is wrong with Redis's settings for a durability.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SettingsReport {
    /// Settings that must be changed: the process must not start.
    pub wrong: Vec<String>,
    /// For the log: settings that could not be checked, and what a crash loses with this durability.
    pub notes: Vec<String>,
}

/// Compares the settings and version of the partition's Redis with what `durability` asks for.
///
/// # Errors
///
/// If Redis cannot be reached. A setting that it does not reveal is a note, not an error.
pub async fn check(partition: &Partition, durability: Durability) -> Result<SettingsReport, Failure> {
    let primary = partition.client().primary().await.map_err(Failure::redis(READ_SETTINGS))?;
    let mut findings = of_primary(&primary, "Redis", &wanted(durability)).await?;
    findings.notes.extend(what_is_lost(durability));
    Ok(findings)
}

/// The same for every primary; and for what must be so between the nodes of a cluster. One that does not answer is a note
/// as long as another does: what lies on the others can be served, and its own settings are checked before its
/// partitions are certified.
///
/// # Errors
///
/// If none of them can be reached. A setting that it does not reveal is a note, not an error.
pub async fn check_all(nodes: &Arc<RedisNodes>, durability: Durability) -> Result<SettingsReport, Failure> {
    let (primaries, is_cluster) = (nodes.primaries(), nodes.is_cluster());
    let mut wanted = wanted(durability);
    if is_cluster {
        wanted.push(FULL_COVERAGE);
    }
    let asked = primaries.iter().map(async |primary| {
        let name = if is_cluster { format!("Redis {}", primary.name()) } else { "Redis".to_owned() };
        of_primary(primary, &name, &wanted).await
    });
    let (found, silent) = answers_of_any(primaries.iter().zip(join_all(asked).await))?;
    let (mut findings, mut answering) = (SettingsReport::default(), Vec::new());
    for (primary, found) in found {
        findings.wrong.extend(found.wrong);
        findings.notes.extend(found.notes);
        answering.push(primary);
    }
    let told = |(primary, failure): (&Primary, Failure)| {
        format!("Redis {} does not answer: {}", primary.name(), failure.chain())
    };
    findings.notes.extend(silent.into_iter().map(told));
    findings.notes.extend(what_is_lost(durability));
    findings.notes.extend(clock_skew(&answering).await?);
    findings.notes.extend(lacking_replicas(&answering, nodes.acknowledged_by()).await?);
    Ok(findings)
}

async fn of_primary(
    primary: &Primary,
    name: &str,
    wanted: &[(&'static str, &'static [&'static str])],
) -> Result<SettingsReport, Failure> {
    let mut findings = SettingsReport::default();
    let info: String =
        primary.ask(cmd("INFO").arg("server")).await.map_err(Failure::redis("read its version"))?;
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("unknown");
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if major < 7 {
        findings.wrong.push(format!("{name} {version} is too old: version 7.0 or later is needed"));
    }

    for (setting, right) in wanted {
        let held: redis::RedisResult<Vec<String>> = primary.ask(cmd("CONFIG").arg("GET").arg(*setting)).await;
        let or_lower = if *setting == FULL_COVERAGE.0 { "" } else { ", or lower --redis-durability" };
        match held {
            Ok(held) if held.len() == 2 => {
                if !right.contains(&held[1].as_str()) {
                    findings.wrong.push(format!(
                        "{name} has {setting} {}, but it must be {}: set it in redis.conf, or with \
                         `redis-cli config set {setting} {}`{or_lower}",
                        held[1], right[0], right[0]
                    ));
                }
            }
            Ok(_) => {
                findings.notes.push(format!("{name} does not know the setting {setting}; it was not checked"))
            }
            Err(error) if error.is_io_error() || error.is_timeout() => {
                return Err(Failure::redis(READ_SETTINGS)(error));
            }
            Err(error) => findings.notes.push(format!(
                "{name} does not reveal its setting {setting} ({error}); make sure that it is {}",
                right[0]
            )),
        }
    }
    Ok(findings)
}

/// A warning for each primary with fewer replicas than must acknowledge what is promised.
async fn lacking_replicas(primaries: &[&Primary], needed: u8) -> Result<Vec<String>, Failure> {
    let mut lacking = Vec::new();
    if needed == 0 {
        return Ok(lacking);
    }
    for primary in primaries {
        let info: String =
            primary.ask(cmd("INFO").arg("replication")).await.map_err(Failure::redis("tell its replicas"))?;
        let replicas = info.lines().find_map(|line| line.strip_prefix("connected_slaves:"));
        let replicas: u8 = replicas.and_then(|count| count.parse().ok()).unwrap_or(0);
        if replicas < needed {
            lacking.push(format!(
                "Redis {} has {replicas} of the {needed} replicas that --redis-acknowledged-by asks for: until it has \
                 them, requests for coupons are answered with 503",
                primary.name()
            ));
        }
    }
    Ok(lacking)
}

/// A warning if clocks of the nodes differ: each coupon opens by the clock of its node.
async fn clock_skew(primaries: &[&Primary]) -> Result<Option<String>, Failure> {
    let asked = primaries.iter().map(async |primary| {
        let before = Timestamp::now().as_millisecond();
        let (seconds, micros): (i64, i64) =
            primary.ask(&cmd("TIME")).await.map_err(Failure::redis("tell the time"))?;
        let told = seconds * 1_000 + micros / 1_000;
        // Its clock is ahead of this machine's by at least and at most so many milliseconds.
        Ok::<_, Failure>((told - Timestamp::now().as_millisecond(), told - before))
    });
    let ahead = try_join_all(asked).await?;
    let skew = certain_skew_ms(&ahead);
    Ok((skew > CLOCK_SKEW_MAX_MS).then(|| {
        format!(
            "the clocks of the Redis nodes differ by {skew} ms or more: each coupon opens and closes by the clock of \
             its node; have NTP or chrony set them"
        )
    }))
}

/// By how much the clocks differ at least, in milliseconds, where each is ahead of the same other clock by at least and
/// at most so many.
fn certain_skew_ms(ahead: &[(i64, i64)]) -> i64 {
    let most_ahead = ahead.iter().map(|(least, _)| least).max();
    let least_ahead = ahead.iter().map(|(_, most)| most).min();
    most_ahead.zip(least_ahead).map_or(0, |(most_ahead, least_ahead)| most_ahead - least_ahead).max(0)
}

/// What a crash loses.
fn what_is_lost(durability: Durability) -> Option<String> {
    match durability {
        Durability::Always => None,
        Durability::Everysec => Some(
            "with appendfsync everysec, a crash of Redis loses up to a second of accepted requests".into(),
        ),
        Durability::None => Some(
            "without an append-only file, a crash of Redis loses every accepted request not yet decided"
                .into(),
        ),
    }
}

fn wanted(durability: Durability) -> Vec<(&'static str, &'static [&'static str])> {
    let mut wanted: Vec<(&'static str, &'static [&'static str])> =
        vec![("maxmemory-policy", &["noeviction"])];
    let appendfsync: &[_] = match durability {
        Durability::Always => &["always"],
        Durability::Everysec => &["everysec", "always"],
        Durability::None => return wanted,
    };
    wanted.extend([
        ("appendonly", &["yes"] as &[_]),
        ("appendfsync", appendfsync),
        // Else nothing is synced while the file is rewritten.
        ("no-appendfsync-on-rewrite", &["no"]),
    ]);
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_differ_by_what_the_time_of_the_answers_does_not_explain() {
        assert_eq!(certain_skew_ms(&[]), 0);
        assert_eq!(certain_skew_ms(&[(900, 1_100)]), 0, "this machine's clock is no node's");
        assert_eq!(certain_skew_ms(&[(-1, 2), (0, 90), (-90, 0)]), 0, "slow answers");
        assert_eq!(certain_skew_ms(&[(-1, 2), (70, 74), (-40, -35)]), 105);
    }
}
