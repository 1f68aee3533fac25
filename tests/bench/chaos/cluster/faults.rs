//! The faults, each with the coupons that it may touch, and how the others fared meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use coupon_system::dev::servers::{RedisServer, migrate_slots, move_by_key};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use tokio::time::{Instant, sleep};

use super::load::{ClusterLoad, Sample};
use super::stack::ClusterStack;

/// How long a primary is frozen.
const FROZEN: Duration = Duration::from_secs(12);
/// How long a primary that was killed stays away once its replica has its place.
const DEAD: Duration = Duration::from_secs(1);
/// After a fault, users who wait to repeat their requests do so before the next quiet time.
const AFTERMATH: Duration = Duration::from_secs(2);
/// Other coupons are measured for at least this long, however soon a fault is over.
const MEASURED_FOR: Duration = Duration::from_secs(2);
/// Slots that move to an added node key by key, on either side of a coupon's: for each of them every primary saves, and
/// syncs, what it knows of the cluster some times.
const REACH_BY_KEY: u16 = 5;
/// Slots that are migrated at once, on either side of a coupon's.
const REACH: u16 = 1_500;

/// The 99th percentile of other coupons' requests during a fault may be so many times that of the quiet time before.
const P99_RATIO_MAX: u32 = 3;

/// Fewer requests than this say nothing of a percentile.
const MEASURED_MIN: usize = 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A primary is killed, its replica promoted, and the dead one started again.
    PrimaryKilled,
    /// A primary stands still until long after its replica was promoted.
    PrimaryFrozen,
    /// A replica takes the place of a primary that serves, without asking it.
    ReplicaPromoted,
    /// A node is added, with a replica, and slots move to it key by key.
    NodeAdded,
    /// Slots move from one primary to another at once.
    SlotsMigrated,
}

/// The faults before each accepted request is acknowledged by the replicas, and those from then on.
pub const UNACKNOWLEDGED: [Fault; 2] = [Fault::PrimaryFrozen, Fault::ReplicaPromoted];
pub const ACKNOWLEDGED: [Fault; 4] =
    [Fault::PrimaryKilled, Fault::ReplicaPromoted, Fault::NodeAdded, Fault::SlotsMigrated];

/// A fault that was made.
pub struct FaultWindow {
    pub fault: Fault,
    pub is_acknowledged: bool,
    /// The coupons whose partitions it concerns.
    pub own: BTreeSet<usize>,
    quiet: (Instant, Instant),
    /// Until its own coupons are accepted again, and the nodes agree.
    pub lasted: (Instant, Instant),
}

/// Makes these faults in an order of the generator's choice.
pub async fn make_all(
    stack: &mut ClusterStack,
    load: &ClusterLoad,
    mut faults: Vec<Fault>,
    is_acknowledged: bool,
    quiet: Duration,
    chance: &mut StdRng,
) -> anyhow::Result<Vec<FaultWindow>> {
    faults.shuffle(chance);
    let mut windows = Vec::new();
    for fault in faults {
        load.accept_again(&(0..load.coupons.len()).collect(), "the fault before").await?;
        sleep(AFTERMATH).await;
        let before = (Instant::now(), Instant::now() + quiet);
        sleep(quiet).await;
        println!("{:>7.1} s  {fault:?}", load.seconds());
        let began = Instant::now();
        let own = make(stack, load, fault, chance).await.with_context(|| format!("{fault:?}"))?;
        stack.whole().await.with_context(|| format!("after {fault:?}"))?;
        load.accept_again(&own, &format!("{fault:?}")).await?;
        sleep(MEASURED_FOR.saturating_sub(began.elapsed())).await;
        stack.all_run()?;
        windows.push(FaultWindow {
            fault,
            is_acknowledged,
            own,
            quiet: before,
            lasted: (began, Instant::now()),
        });
    }
    Ok(windows)
}

/// Makes a fault. Returns the coupons whose partitions it concerned.
async fn make(
    stack: &mut ClusterStack,
    load: &ClusterLoad,
    fault: Fault,
    chance: &mut StdRng,
) -> anyhow::Result<BTreeSet<usize>> {
    let owners = stack.owners(0).await?;
    let slots: Vec<u16> = load.coupons.iter().map(|coupon| coupon.slot).collect();
    let slot = *slots.choose(chance).context("there are no coupons")?;
    let victim = owners.of(slot).context("a slot without a node")?;
    let others: Vec<usize> = owners.primaries().into_iter().filter(|place| *place != victim).collect();
    let witness = *others.choose(chance).context("there is one primary only")?;
    let concerned = |touches: &dyn Fn(u16) -> bool| -> BTreeSet<usize> {
        slots.iter().enumerate().filter(|(_, slot)| touches(**slot)).map(|(number, _)| number).collect()
    };
    let of_victim = concerned(&|slot| owners.of(slot) == Some(victim));
    match fault {
        Fault::PrimaryKilled => {
            stack.nodes[victim].kill().await?;
            stack.moved(slot, victim, witness).await?;
            sleep(DEAD).await;
            stack.nodes[victim].restart().await?;
            Ok(of_victim)
        }
        Fault::PrimaryFrozen => {
            let began = Instant::now();
            stack.nodes[victim].pause().await?;
            stack.moved(slot, victim, witness).await?;
            sleep(FROZEN.saturating_sub(began.elapsed())).await;
            stack.nodes[victim].resume()?;
            Ok(of_victim)
        }
        Fault::ReplicaPromoted => {
            let replica = stack.replica_of(victim).await?;
            stack.tell(replica, &["FAILOVER", "FORCE"]).await?;
            stack.moved(slot, victim, witness).await?;
            Ok(of_victim)
        }
        Fault::NodeAdded => {
            let moving = owners.around(slot, REACH_BY_KEY);
            let added = stack.add_primary().await?;
            let others: Vec<&RedisServer> = others.iter().map(|place| &stack.nodes[*place]).collect();
            move_by_key(&moving, &stack.nodes[victim], &stack.nodes[added], &others).await?;
            Ok(concerned(&|slot| moving.contains(&slot)))
        }
        Fault::SlotsMigrated => {
            let moving = owners.around(slot, REACH);
            migrate_slots(&moving, &stack.nodes[victim], &stack.nodes[witness]).await?;
            Ok(concerned(&|slot| moving.contains(&slot)))
        }
    }
}

impl FaultWindow {
    /// Prints how the other coupons fared, and says what of it must not be.
    pub fn judge(&self, load: &ClusterLoad, p99_anyway: Duration) {
        let told = load.told();
        let others = |window: (Instant, Instant)| -> Vec<&Sample> {
            let is_in = |sample: &&Sample| (window.0..window.1).contains(&sample.planned);
            let samples = told.samples.iter().filter(is_in);
            samples.filter(|sample| !self.own.contains(&sample.coupon)).collect()
        };
        let (before, during) = (others(self.quiet), others(self.lasted));
        let (quiet, trouble) = (p99(&before), p99(&during));
        let slowest = during.iter().map(|sample| sample.took).max().unwrap_or_default();
        let refused = during.iter().filter(|sample| sample.repeats > 0).count();
        let measured = during.len();
        let lasted = self.lasted.1.duration_since(self.lasted.0);
        println!(
            "{:<16} {:<12} {:>5.1} s {:>4} {:>9.1} s {:>7} {:>8.0} ms {:>7} {:>8.0} ms {:>8.0} ms {:>8}",
            format!("{:?}", self.fault),
            if self.is_acknowledged { "acknowledged" } else { "" },
            lasted.as_secs_f64(),
            self.own.len(),
            self.longest_gap(&told.samples).as_secs_f64(),
            before.len(),
            ms(quiet),
            measured,
            ms(trouble),
            ms(slowest),
            refused,
        );
        drop(told);
        let bound = (quiet * P99_RATIO_MAX).max(p99_anyway);
        if trouble > bound {
            load.violated(format!(
                "{:?}: other coupons' p99 was {:.0} ms instead of at most {:.0} ms",
                self.fault,
                ms(trouble),
                ms(bound)
            ));
        }
        if refused > 0 {
            load.violated(format!(
                "{:?}: {refused} requests for other coupons had to be repeated",
                self.fault
            ));
        }
        if measured < MEASURED_MIN {
            load.violated(format!("{:?}: {measured} requests are too few to measure", self.fault));
        }
    }

    /// The longest time in which none of a coupon of its own was accepted.
    fn longest_gap(&self, samples: &[Sample]) -> Duration {
        let (from, to) = self.lasted;
        let gap = |coupon: &usize| {
            let accepted = samples.iter().filter(|sample| sample.coupon == *coupon && sample.is_accepted);
            let mut at: Vec<Instant> = accepted.map(|sample| sample.planned + sample.took).collect();
            at.retain(|at| (from..to).contains(at));
            at.extend([from, to]);
            at.sort_unstable();
            at.windows(2).map(|pair| pair[1].duration_since(pair[0])).max().unwrap_or_default()
        };
        self.own.iter().map(gap).max().unwrap_or_default()
    }
}

fn p99(samples: &[&Sample]) -> Duration {
    let mut took: Vec<Duration> = samples.iter().map(|sample| sample.took).collect();
    took.sort_unstable();
    let place = (took.len() * 99).div_ceil(100);
    took.get(place.saturating_sub(1)).copied().unwrap_or_default()
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
