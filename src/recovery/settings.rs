//! The settings that Redis must have, so that what it acknowledged is on the disk.

use clap::ValueEnum;

use crate::Failure;
use crate::redis::Partition;
use crate::redis::cmd;

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
    let mut connection = partition.connection();
    let mut findings = SettingsReport::default();

    let info: String = partition.query("read its version", cmd("INFO").arg("server")).await?;
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("unknown");
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if major < 7 {
        findings.wrong.push(format!("Redis {version} is too old: version 7.0 or later is needed"));
    }

    for (name, right) in wanted(durability) {
        let held: redis::RedisResult<Vec<String>> =
            cmd("CONFIG").arg("GET").arg(name).query_async(&mut connection).await;
        match held {
            Ok(held) if held.len() == 2 => {
                if !right.contains(&held[1].as_str()) {
                    findings.wrong.push(format!(
                        "Redis has {name} {}, but it must be {}: set it in redis.conf, or with \
                         `redis-cli config set {name} {}`, or lower --redis-durability",
                        held[1], right[0], right[0]
                    ));
                }
            }
            Ok(_) => {
                findings.notes.push(format!("Redis does not know the setting {name}; it was not checked"))
            }
            Err(error) if error.is_io_error() || error.is_timeout() => {
                return Err(Failure::redis("read its settings")(error));
            }
            Err(error) => findings.notes.push(format!(
                "Redis does not reveal its setting {name} ({error}); make sure that it is {}",
                right[0]
            )),
        }
    }
    match durability {
        Durability::Always => {}
        Durability::Everysec => findings.notes.push(
            "with appendfsync everysec, a crash of Redis loses up to a second of accepted requests".into(),
        ),
        Durability::None => findings.notes.push(
            "without an append-only file, a crash of Redis loses every accepted request not yet decided"
                .into(),
        ),
    }
    Ok(findings)
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
