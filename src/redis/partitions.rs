//! The partitions of a deployment: partition 0, and those that coupons are spread over.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::Partition;
use crate::Failure;
use crate::ids::{CouponId, PartitionId, SHARES_MAX, Shares, slot_of};

/// The partitions that coupons may be spread over at most.
pub const PARTITIONS_MAX: u16 = 1_024;

/// What a node hands out in about a second: a coupon of fewer units gains nothing from another share.
const UNITS_A_SHARE: u32 = 100_000;

/// How long a partition may take to answer a question that all are asked.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Something of each partition, by its number. Cheap to clone.
pub struct PerPartition<T>(Arc<[T]>);

/// Every partition that this process knows. Cheap to clone.
pub type Partitions = PerPartition<Arc<Partition>>;

impl<T> PerPartition<T> {
    /// That of one partition.
    ///
    /// # Errors
    ///
    /// [`Failure::Stale`] if this process does not know the partition: the deployment has grown since it started.
    pub fn get(&self, id: PartitionId) -> Result<&T, Failure> {
        self.0.get(usize::from(id.number())).ok_or_else(|| Failure::Stale {
            operation: "find the partition",
            why: format!(
                "this process knows {} partitions from its start, and not {id}: restart it",
                self.0.len()
            ),
        })
    }

    /// That of partition 0, which every deployment has.
    pub fn first(&self) -> &T {
        &self.0[0]
    }

    /// Those of all partitions, in the order of their numbers.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// Something else of each partition.
    pub fn each<U>(&self, make: impl FnMut(&T) -> U) -> PerPartition<U> {
        PerPartition(self.0.iter().map(make).collect())
    }

    /// Whether partition 0 is the only one.
    pub fn is_one(&self) -> bool {
        self.0.len() == 1
    }

    /// Items by the partition that they belong to, in the order of the partitions; and those of partitions that this
    /// process does not know, which keep nothing from being done to the others.
    pub(crate) fn group<I>(
        &self,
        items: impl IntoIterator<Item = I>,
        of: impl Fn(&I) -> PartitionId,
    ) -> (Vec<(&T, Vec<I>)>, Vec<I>) {
        let mut groups: BTreeMap<PartitionId, Vec<I>> = BTreeMap::new();
        for item in items {
            groups.entry(of(&item)).or_default().push(item);
        }
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for (id, items) in groups {
            match self.get(id) {
                Ok(partition) => known.push((partition, items)),
                Err(_) => unknown.extend(items),
            }
        }
        (known, unknown)
    }
}

impl<T> Clone for PerPartition<T> {
    fn clone(&self) -> Self {
        PerPartition(Arc::clone(&self.0))
    }
}

impl<'a, T> IntoIterator for &'a PerPartition<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Partitions {
    /// Partition 0 and this many others, each made by `open`.
    pub(crate) fn new(others: u16, open: impl Fn(PartitionId) -> Partition) -> Self {
        let ids = (0..=others.min(PARTITIONS_MAX)).filter_map(PartitionId::new);
        PerPartition(ids.map(|id| Arc::new(open(id))).collect())
    }

    /// Where the units of a new coupon are to lie, by a hash of the coupon's id: in partition 0 if it is the only one, else in as
    /// many of the others as it is to have shares, spread evenly over the slots and so over the nodes. `None` if there
    /// are not as many. Where the units of a coupon lie that was made before, its record says.
    pub fn place(&self, coupon: &CouponId, shares: u32) -> Option<Shares> {
        let mut others: Vec<PartitionId> = self.iter().skip(1).map(|partition| partition.id()).collect();
        if others.is_empty() {
            others.push(PartitionId::ONE);
        }
        let (count, shares) = (others.len() as u64, u64::from(shares));
        if shares > count {
            return None;
        }
        let hash = Sha256::digest(coupon.as_str());
        let first = hash.first_chunk().map_or(0, |hash| u64::from_be_bytes(*hash)) % count;
        if shares == 1 {
            return Some(Shares::one(others[first as usize]));
        }
        others.sort_by_key(|partition| slot_of(partition.tag()));
        let place = |share: u64| others[((first + share * count / shares) % count) as usize];
        Shares::new((0..shares).map(place).collect())
    }

    /// How many shares a coupon can have.
    pub fn shares_max(&self) -> usize {
        (self.0.len() - 1).clamp(1, SHARES_MAX)
    }

    /// How many shares a coupon of a total should have: one on each node, as long as each has as many units as a node hands out
    /// in a second.
    pub fn shares_by_default(&self, total: u32) -> u32 {
        let most = u32::try_from(self.nodes().min(self.shares_max())).unwrap_or(1);
        (total / UNITS_A_SHARE).clamp(1, most)
    }

    /// How many nodes of Redis hold partitions, as far as this process has learned it.
    pub(crate) fn nodes(&self) -> usize {
        let nodes: HashSet<_> =
            self.iter().map(|partition| partition.client().known_primary().map(|node| node.name())).collect();
        nodes.len()
    }

    /// Asks all partitions at the same time. The answers stand in the order of the partitions; one that takes longer than
    /// [`ANSWER_MAX`] is a failure, so that one Redis that hangs does not keep the others' answers.
    pub(crate) async fn ask_all<T, F>(
        &self,
        operation: &'static str,
        ask: impl Fn(Arc<Partition>) -> F,
    ) -> Vec<Result<T, Failure>>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let asked = self.iter().map(|partition| timeout(ANSWER_MAX, ask(Arc::clone(partition))));
        let answers = join_all(asked).await.into_iter();
        answers.map(|answer| answer.unwrap_or(Err(Failure::Overloaded { operation }))).collect()
    }

    /// `ask_all`, for what can be said without the partitions that do not answer. Returns the answers, in the
    /// order of the partitions, and which did not answer.
    ///
    /// # Errors
    ///
    /// If no partition answers.
    pub(crate) async fn ask_any<T, F>(
        &self,
        operation: &'static str,
        ask: impl Fn(Arc<Partition>) -> F,
    ) -> Result<(Vec<T>, Vec<PartitionId>), Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        self.answered(self.ask_all(operation, ask).await)
    }

    /// What was answered by partitions, in their order, and which did not answer.
    ///
    /// # Errors
    ///
    /// If no partition answered.
    pub(crate) fn answered<T>(
        &self,
        answers: Vec<Result<T, Failure>>,
    ) -> Result<(Vec<T>, Vec<PartitionId>), Failure> {
        let asked = self.iter().map(|partition| partition.id()).zip(answers);
        let (answers, failed) = answers_of_any(asked)?;
        let answers = answers.into_iter().map(|(_, answer)| answer).collect();
        Ok((answers, failed.into_iter().map(|(partition, _)| partition).collect()))
    }
}

/// Those who answered and what, and those who failed and why.
type AnswersAndFailures<K, T> = (Vec<(K, T)>, Vec<(K, Failure)>);

/// Those who answered and those who failed, where it is enough that one answers.
///
/// # Errors
///
/// If none answered.
pub(crate) fn answers_of_any<K, T>(
    asked: impl IntoIterator<Item = (K, Result<T, Failure>)>,
) -> Result<AnswersAndFailures<K, T>, Failure> {
    let (mut answers, mut failures) = (Vec::new(), Vec::new());
    for (who, answer) in asked {
        match answer {
            Ok(answer) => answers.push((who, answer)),
            Err(failure) => failures.push((who, failure)),
        }
    }
    match failures.pop() {
        Some((_, failure)) if answers.is_empty() => Err(failure),
        last => {
            failures.extend(last);
            Ok((answers, failures))
        }
    }
}
