//! The double look: whether every share of a coupon is empty, at one instant.
//!
//! The first pass looks at each share. One that has units, or lends some, ends it: there is something to wait for. One that
//! cannot be looked at ends it too. Then the moves that the ledger has are compared with those that were credited: a
//! unit whose donor forgot, with its data, that it lent it is on its way all the same.† The second pass looks at each share
//! again. If none gained a unit since its first look, nor was opened in another epoch†, each was empty from its first
//! look to its second, and so were all at the instant between the passes.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::timeout;

use crate::Failure;
use crate::ids::{CouponId, PartitionId, Shares, UserId};
use crate::redis::{LuaScript, Partition, Partitions};

static LOOK: LuaScript = LuaScript::new(include_str!("look.lua"));
static DRAINED: LuaScript = LuaScript::new(include_str!("drained.lua"));

/// A share that takes longer to answer cannot be looked at now.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// How long an empty share may answer for all shares that they are empty, after they were.
pub(super) const DRAINED_FOR_MS: u64 = 500;

/// What one look at a share showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// By the share's clock, in ms.
    pub now: u64,
    /// Free units.
    pub free: u64,
    /// Units that it lends to other shares.
    pub lending: u64,
    /// How many units were credited to it.
    pub credited: u64,
    /// Another text after every gain, and in another epoch.
    mark: String,
}

impl Sight {
    /// Whether the share gained nothing from this look to a later one.
    pub fn gained_nothing_until(&self, later: &Sight) -> bool {
        self.mark == later.mark
    }
}

/// A look at a share, if it could be made.
#[derive(Debug)]
pub enum Looked {
    Seen(Sight),
    /// The coupon is not loaded there, or cannot be read.
    NotLoaded,
    /// The share did not answer.
    Unreachable(Failure),
}

/// Looks at every share of a coupon, at the same time. The answers stand in the order of the shares.
pub async fn look(partitions: &Partitions, coupon: &CouponId, shares: &Shares) -> Vec<Looked> {
    let looks = shares.partitions().iter().map(|share| async move {
        let asked = async { look_at(partitions.get(*share)?, coupon, shares).await };
        match timeout(ANSWER_MAX, asked).await {
            Ok(Ok(Some(sight))) => Looked::Seen(sight),
            Ok(Ok(None)) => Looked::NotLoaded,
            Ok(Err(failure)) => Looked::Unreachable(failure),
            Err(_) => Looked::Unreachable(Failure::Overloaded { operation: "look at a share of the coupon" }),
        }
    });
    join_all(looks).await
}

async fn look_at(
    partition: &Partition,
    coupon: &CouponId,
    shares: &Shares,
) -> Result<Option<Sight>, Failure> {
    let others = shares.partitions().iter().filter(|share| **share != partition.id());
    let others: Vec<UserId> = others.map(|share| UserId::of_share(*share)).collect();
    let call = partition.call(&LOOK, "look at a share of the coupon", |keys, call| {
        call.key(keys.coupon(coupon)).key(keys.holders(coupon)).key(keys.free(coupon));
        call.key(keys.dead());
        for share in &others {
            call.arg(share.as_str());
        }
    });
    let mut reply = call.await?;
    let now = reply.number()?;
    if reply.len() == 0 {
        return Ok(None);
    }
    let (free, lending, credited) = (reply.number()?, reply.number()?, reply.number()?);
    Ok(Some(Sight { now, free, lending, credited, mark: reply.text()? }))
}

/// What all looks showed, if each could be made.
pub(super) fn all_seen(looks: &[Looked]) -> Option<Vec<&Sight>> {
    let seen = looks.iter().map(|looked| match looked {
        Looked::Seen(sight) => Some(sight),
        Looked::NotLoaded | Looked::Unreachable(_) => None,
    });
    seen.collect()
}

/// Looks at all shares once more. If none gained a unit since `first`, which showed that all were empty, each is told that it
/// may say so for half a second. Returns whether none did.
pub(super) async fn look_again(
    partitions: &Partitions,
    coupon: &CouponId,
    shares: &Shares,
    first: &[&Sight],
) -> bool {
    let looks = look(partitions, coupon, shares).await;
    let Some(second) = all_seen(&looks) else { return false };
    if !first.iter().zip(&second).all(|(first, second)| first.gained_nothing_until(second)) {
        return false;
    }
    let told = shares.partitions().iter().zip(second).map(|(share, sight)| {
        let until = sight.now + DRAINED_FOR_MS;
        async move { tell_drained(partitions, *share, coupon, until).await }
    });
    // A share that cannot be told asks again.
    join_all(told).await.into_iter().filter_map(Result::err).for_each(|failure| {
        tracing::debug!(%coupon, error = failure.chain(), "a share could not be told that all are empty");
    });
    true
}

async fn tell_drained(
    partitions: &Partitions,
    share: PartitionId,
    coupon: &CouponId,
    until: u64,
) -> Result<(), Failure> {
    let call = partitions.get(share)?.call(&DRAINED, "tell a share that all are empty", |keys, call| {
        call.key(keys.coupon(coupon)).arg(until);
    });
    call.await.map(drop)
}
