//! What an operator should know before a campaign: a rewrite of the append-only file that would come in the middle of
//! the rush, memory that will not do, coupons with more shares than are good for them, and settings of the machine that
//! make rewrites slow or fail. None of it keeps the system from starting. What cannot be determined is not warned of.

use std::collections::HashMap;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};

use crate::Failure;
use crate::coupon::{Coupon, CouponStore};
use crate::ids::{CouponId, SHARE_UNITS_MIN, are_thin};
use crate::process::Backends;
use crate::process::aof_rewriter::RewriteBounds;
use crate::redis::{AppendOnlyFile, Partition, Partitions, cmd};

/// How far ahead openings count.
const AHEAD: SignedDuration = SignedDuration::from_hours(24);
/// Memory of Redis for a request that is queued, and for a user who holds a unit, in bytes: the rule of
/// deploy/redis.conf.
const QUEUED_BYTES: u64 = 450;
const HELD_BYTES: u64 = 120;
/// Requests that are queued at once at most: the default of `--backlog-max`.
const QUEUED_MAX: u64 = 1_000_000;
/// Of the coupons that can be requested now or later, the shares of this many, the newest, are compared with the nodes.
const SHARED_MAX: usize = 100;
/// More shares on a node only thin the batches.
const SHARES_A_NODE: usize = 2;

/// What the warnings are about.
const FILE: &str = "append-only file";
const MEMORY: &str = "redis memory";
const MACHINE: &str = "redis machine";
const SHARES: &str = "coupon shares";

/// A warning: what it is about, and what it says.
pub(super) type Warning = (&'static str, String);

/// What was read. `None` is what could not be determined.
#[derive(Debug, Default)]
struct Facts {
    file: Option<AppendOnlyFile>,
    automatic: Option<AutomaticRewrites>,
    /// The user of Redis that may not ask for a rewrite.
    forbidden_to: Option<String>,
    memory: Option<Memory>,
    /// Units of coupons that open within [`AHEAD`].
    opening_units: u64,
    /// Nodes of Redis that hold partitions.
    nodes: usize,
    /// Coupons with several shares, for which requests may come.
    shared: Vec<SharedCoupon>,
    /// Of the machine that Redis runs on, if it is this one.
    overcommit: Option<String>,
    has_huge_pages: bool,
}

/// A coupon with several shares.
#[derive(Debug)]
struct SharedCoupon {
    id: CouponId,
    shares: u32,
    total: u32,
}

/// When Redis rewrites its file by itself.
#[derive(Debug, Clone, Copy)]
struct AutomaticRewrites {
    /// The growth over the base, in percent; 0 for never.
    percentage: u64,
    /// The smallest file that it rewrites, in bytes.
    min_bytes: u64,
}

/// Redis's memory, in bytes.
#[derive(Debug, Clone, Copy)]
struct Memory {
    used: u64,
    /// 0 for no limit.
    most: u64,
    /// Of its machine.
    machine: Option<u64>,
}

/// Reads everything, and tells what an operator should know.
///
/// # Errors
///
/// If Redis or MongoDB fails.
pub(super) async fn warnings(backends: &Backends) -> Result<Vec<Warning>, Failure> {
    Ok(Facts::read(&backends.partitions, &backends.coupons).await?.warnings())
}

impl Facts {
    async fn read(partitions: &Partitions, coupons: &CouponStore) -> Result<Self, Failure> {
        let (partition, now) = (partitions.first(), Timestamp::now());
        let openings = coupons.opening_within(now, now + AHEAD).await?;
        let (current, _) = coupons.newest_current(now, SHARED_MAX).await?;
        let info: String = partition.query("describe itself", &cmd("INFO")).await?;
        let file = AppendOnlyFile::parse(&info);
        let info: HashMap<&str, &str> = info.lines().filter_map(|line| line.split_once(':')).collect();
        let number = |name: &str| info.get(name)?.parse::<u64>().ok();
        let memory = number("used_memory").zip(number("maxmemory"));
        let here = if partition.client().is_of_this_machine() { process_here(&info) } else { None };
        Ok(Facts {
            file,
            automatic: AutomaticRewrites::read(partition).await,
            forbidden_to: forbidden_to(partition).await,
            memory: memory.map(|(used, most)| Memory { used, most, machine: number("total_system_memory") }),
            opening_units: openings.iter().map(|opening| opening.total).sum(),
            nodes: partitions.nodes(),
            shared: current.iter().filter_map(SharedCoupon::of).collect(),
            overcommit: here.as_ref().and_then(|_| read_trimmed(Path::new("/proc/sys/vm/overcommit_memory"))),
            has_huge_pages: here.is_some_and(|status| has_huge_pages(&status)),
        })
    }

    fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        if let Some(file) = &self.file {
            warnings.extend(of_file(file));
            let automatic = self.automatic.and_then(|automatic| automatic.warning(file));
            let forbidden = self.forbidden_to.as_ref().map(|user| {
                format!(
                    "Redis lets its user {user} ask for no rewrite of the append-only file, so the API cannot choose \
                     a quiet time for it: ACL SETUSER {user} +bgrewriteaof"
                )
            });
            warnings.extend(automatic.into_iter().chain(forbidden).map(|says| (FILE, says)));
        }
        let memory = self.memory.iter().flat_map(|memory| memory.warnings(self.opening_units));
        warnings.extend(memory.map(|says| (MEMORY, says)));
        let shares = self.shared.iter().flat_map(|coupon| coupon.warnings(self.nodes));
        warnings.extend(shares.map(|says| (SHARES, says)));
        if let Some(overcommit) = self.overcommit.as_ref().filter(|overcommit| *overcommit != "1") {
            let says = format!(
                "vm.overcommit_memory is {overcommit}: Linux may refuse the fork that a rewrite of the append-only \
                 file needs, although there is memory; `sysctl vm.overcommit_memory=1`"
            );
            warnings.push((MACHINE, says));
        }
        if self.has_huge_pages {
            let says = "transparent huge pages are on for Redis: while the append-only file is rewritten, each write \
                        copies 2 MiB; set `disable-thp yes` in redis.conf and restart Redis";
            warnings.push((MACHINE, says.into()));
        }
        warnings
    }
}

impl SharedCoupon {
    fn of(coupon: &Coupon) -> Option<Self> {
        let shares = coupon.shares.count();
        (shares > 1).then(|| SharedCoupon { id: coupon.id.clone(), shares, total: coupon.total })
    }

    fn warnings(&self, nodes: usize) -> Vec<String> {
        let SharedCoupon { id, shares, total } = self;
        let mut says = Vec::new();
        if *shares as usize > nodes * SHARES_A_NODE {
            let where_to = if nodes == 1 { "one node".to_owned() } else { format!("{nodes} nodes") };
            says.push(format!(
                "coupon {id} has {shares} shares on {where_to} of Redis: more than {SHARES_A_NODE} a node only thin the \
                 batches; a coupon keeps its shares, so create another with fewer, or add nodes"
            ));
        }
        if are_thin(*shares, *total) {
            says.push(format!(
                "coupon {id} has {total} units in {shares} shares: fewer than {SHARE_UNITS_MIN} a share only thin the \
                 batches; restock it, or create another with fewer shares"
            ));
        }
        says
    }
}

/// Warnings about the file as it is now.
fn of_file(file: &AppendOnlyFile) -> Vec<Warning> {
    let most = RewriteBounds::default().most(file);
    let mut says = Vec::new();
    if file.has_failed {
        says.push(
            "the last rewrite of the append-only file failed: Redis's log says why; until one succeeds the file grows"
                .into(),
        );
    }
    if file.is_rewriting {
        says.push("the append-only file is being rewritten: requests may take longer until that ends".into());
    } else if file.growth() >= most / 4 {
        says.push(format!(
            "the append-only file has grown to {}, from {} after its last rewrite. An API has it rewritten at the next \
             quiet time, but in the middle of a rush once it has grown by {}: `redis-cli bgrewriteaof` does it now",
            bytes(file.bytes),
            bytes(file.base_bytes),
            bytes(most)
        ));
    }
    says.into_iter().map(|says| (FILE, says)).collect()
}

impl AutomaticRewrites {
    async fn read(partition: &Partition) -> Option<Self> {
        let mut get = cmd("CONFIG");
        get.arg("GET").arg("auto-aof-rewrite-percentage").arg("auto-aof-rewrite-min-size");
        // Managed servers refuse it.
        let held: HashMap<String, u64> = partition.query("read its settings", &get).await.ok()?;
        Some(AutomaticRewrites {
            percentage: *held.get("auto-aof-rewrite-percentage")?,
            min_bytes: *held.get("auto-aof-rewrite-min-size")?,
        })
    }

    /// Redis should begin by itself only when the API has not asked in time.
    fn warning(self, file: &AppendOnlyFile) -> Option<String> {
        if self.percentage == 0 {
            return Some(
                "Redis never rewrites its append-only file by itself (auto-aof-rewrite-percentage 0): when no API \
                 asks for it, the file fills the disk; set auto-aof-rewrite-percentage 100 and \
                 auto-aof-rewrite-min-size 4gb"
                    .into(),
            );
        }
        let begins_at = self.min_bytes.max(file.base_bytes + file.base_bytes * self.percentage / 100);
        let asked_at = file.base_bytes + RewriteBounds::default().most(file);
        (begins_at < asked_at).then(|| {
            format!(
                "Redis rewrites its append-only file by itself from {} on, also in the middle of a rush; set \
                 auto-aof-rewrite-percentage 100 and auto-aof-rewrite-min-size 4gb in redis.conf, or with \
                 `redis-cli config set`",
                bytes(begins_at)
            )
        })
    }
}

impl Memory {
    fn warnings(&self, opening_units: u64) -> Vec<String> {
        let mut says = Vec::new();
        if self.most == 0 {
            says.push(
                "maxmemory is not set: when memory runs out, the system ends Redis instead of Redis refusing requests"
                    .into(),
            );
            return says;
        }
        let needed = self.used + opening_units * HELD_BYTES + opening_units.min(QUEUED_MAX) * QUEUED_BYTES;
        if opening_units > 0 && needed > self.most {
            says.push(format!(
                "{opening_units} units open within 24 hours, for which Redis may need {}, but maxmemory is {}: when it \
                 is full, the API answers requests with 503",
                bytes(needed),
                bytes(self.most)
            ));
        }
        if let Some(machine) = self.machine.filter(|machine| self.most > machine / 2) {
            says.push(format!(
                "maxmemory is {} of the machine's {}: while the append-only file is rewritten, Redis may need twice \
                 maxmemory",
                bytes(self.most),
                bytes(machine)
            ));
        }
        says
    }
}

/// The user of Redis that this process is, if Redis says that this user may not ask for a rewrite.
async fn forbidden_to(partition: &Partition) -> Option<String> {
    let user: String = partition.query("tell the user", cmd("ACL").arg("WHOAMI")).await.ok()?;
    let mut ask = cmd("ACL");
    ask.arg("DRYRUN").arg(&user).arg("BGREWRITEAOF");
    // Only an administrator may ask: who may not is told nothing, neither yes nor no.
    let answer: String = partition.query("tell what the user may do", &ask).await.ok()?;
    (answer != "OK").then_some(user)
}

/// The status of Redis's process, if it is one of this machine: the program of this number is the one that Redis says
/// it is.
fn process_here(info: &HashMap<&str, &str>) -> Option<String> {
    let process = Path::new("/proc").join(info.get("process_id")?);
    let program = std::fs::read_link(process.join("exe")).ok()?;
    (program == Path::new(info.get("executable")?)).then(|| read_trimmed(&process.join("status")))?
}

/// Whether a process with this status gets transparent huge pages without asking for them.
fn has_huge_pages(status: &str) -> bool {
    let is_always = read_trimmed(Path::new("/sys/kernel/mm/transparent_hugepage/enabled"))
        .is_some_and(|modes| modes.contains("[always]"));
    is_always && status.lines().any(|line| line.split_whitespace().eq(["THP_enabled:", "1"]))
}

fn read_trimmed(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// A number of bytes for people.
fn bytes(number: u64) -> String {
    const MIB: u64 = 1 << 20;
    match number {
        0..MIB => format!("{} KiB", number.div_ceil(1_024)),
        MIB..0x4000_0000 => format!("{} MiB", number / MIB),
        _ => format!("{:.1} GiB", number as f64 / (1 << 30) as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn file(base_bytes: u64, bytes: u64) -> AppendOnlyFile {
        AppendOnlyFile { bytes, base_bytes, ..AppendOnlyFile::default() }
    }

    #[track_caller]
    fn warns(facts: &Facts, expected: &[(&str, &str)]) {
        let warnings = facts.warnings();
        assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
        for ((about, says), (expected_about, expected)) in warnings.iter().zip(expected) {
            assert!(about == expected_about && says.contains(expected), "{warnings:?}");
        }
    }

    #[test]
    fn nothing_is_said_of_a_redis_as_shipped_nor_of_one_that_tells_nothing() {
        let shipped = Facts {
            file: Some(file(GIB, GIB + GIB / 4)),
            automatic: Some(AutomaticRewrites { percentage: 100, min_bytes: 4 * GIB }),
            memory: Some(Memory { used: GIB / 10, most: GIB, machine: Some(2 * GIB) }),
            opening_units: 1_000_000,
            overcommit: Some("1".into()),
            ..Facts::default()
        };
        warns(&shipped, &[]);
        warns(&Facts::default(), &[]);
    }

    #[test]
    fn a_rewrite_that_may_come_in_the_rush_is_warned_of() {
        let automatic = |percentage, min_bytes| Some(AutomaticRewrites { percentage, min_bytes });
        let of = |file, automatic| Facts { file: Some(file), automatic, ..Facts::default() };
        warns(&of(file(0, GIB / 2), None), &[(FILE, "has grown to 512 MiB, from 0 KiB")]);
        warns(&of(file(0, 0), automatic(100, 64 << 20)), &[(FILE, "from 64 MiB on")]);
        warns(&of(file(0, 0), automatic(0, 64 << 20)), &[(FILE, "auto-aof-rewrite-percentage 0")]);
        // With the shipped settings the API is always first.
        for gib in 0..64 {
            warns(&of(file(gib * GIB, gib * GIB), automatic(100, 4 * GIB)), &[]);
        }
        let facts = Facts { forbidden_to: Some("shop".into()), ..of(file(0, 0), None) };
        warns(&facts, &[(FILE, "ACL SETUSER shop +bgrewriteaof")]);
    }

    #[test]
    fn a_rewrite_under_way_or_failed_is_warned_of() {
        let running = AppendOnlyFile { is_rewriting: true, ..file(0, GIB) };
        let failed = AppendOnlyFile { has_failed: true, ..file(0, 0) };
        for (file, expected) in [(running, "is being rewritten"), (failed, "failed")] {
            warns(&Facts { file: Some(file), ..Facts::default() }, &[(FILE, expected)]);
        }
    }

    #[test]
    fn memory_that_will_not_do_is_warned_of() {
        let of = |memory, opening_units| Facts { memory: Some(memory), opening_units, ..Facts::default() };
        let memory = Memory { used: GIB / 2, most: GIB, machine: Some(4 * GIB) };
        warns(&of(memory, 900_000), &[]);
        warns(&of(memory, 1_000_000), &[(MEMORY, "1000000 units open within 24 hours")]);
        warns(
            &of(Memory { machine: Some(3 * GIB / 2), ..memory }, 0),
            &[(MEMORY, "1.0 GiB of the machine's 1.5 GiB")],
        );
        warns(&of(Memory { most: 0, ..memory }, 9_000_000), &[(MEMORY, "maxmemory is not set")]);
    }

    #[test]
    fn more_shares_than_are_good_for_a_coupon_are_warned_of() {
        let of = |nodes, shares, total| {
            let shared = vec![SharedCoupon { id: "hot".parse().unwrap(), shares, total }];
            Facts { nodes, shared, ..Facts::default() }
        };
        warns(&of(3, 6, 3_000), &[]);
        warns(&of(3, 7, 1_000_000), &[(SHARES, "coupon hot has 7 shares on 3 nodes")]);
        warns(&of(3, 6, 2_999), &[(SHARES, "2999 units in 6 shares")]);
        warns(&of(1, 3, 3), &[(SHARES, "3 shares on one node"), (SHARES, "3 units in 3 shares")]);
    }

    #[test]
    fn settings_of_the_machine_that_hinder_rewrites_are_warned_of() {
        let facts = Facts { overcommit: Some("0".into()), has_huge_pages: true, ..Facts::default() };
        warns(&facts, &[(MACHINE, "vm.overcommit_memory is 0"), (MACHINE, "disable-thp yes")]);
    }
}
