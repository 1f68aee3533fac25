//! Turns at periodic work that one process at a time should do: a key in Redis that expires by itself. Two
//! processes with the same turn would do no harm: they would do the same work twice.

use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Duration;

use crate::Failure;
use crate::redis::keys::EpochKeys;
use crate::redis::{Call, LuaScript, Partition, Partitions, cmd};
use crate::runtime::background::{IsBusy, in_background};

/// How long a partition may take to answer, before the turn is taken at the next one.
const ANSWER_MAX: Duration = Duration::from_secs(2);

static TURN: LuaScript = LuaScript::new(include_str!("lua/turn.lua"));

/// Does one round of work that is done every `period`, in the background, if this process gets the turn that `key`
/// stands for. Returns `None` if another process has the turn.
///
/// # Errors
///
/// If Redis fails, or the work does.
pub(crate) async fn background_round<T>(
    partition: &Partition,
    key: String,
    period: Duration,
    is_busy: &IsBusy,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<Option<T>, Failure> {
    // A turn is shorter than a period, so that another process's next round finds it over.
    in_turn(partition, key, period.mul_f64(0.8), in_background(is_busy.clone(), work)).await
}

/// Does `work` if this process gets the turn that `key` stands for, and keeps the turn until it is done. Returns
/// `None` if another process has the turn. `lasts` should be shorter than the period of the work, so that the turn is
/// free for the next round.
///
/// # Errors
///
/// If Redis fails, or the work does.
pub(crate) async fn in_turn<T>(
    partition: &Partition,
    key: String,
    lasts: Duration,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<Option<T>, Failure> {
    hold(partition, &key, &crate::ids::random_id(), lasts, pin!(work)).await
}

/// The same, but the turn is free again as soon as the work is done. `lasts` is how long the turn of a process that was
/// killed keeps others out. The turn, whose key `key` tells, is that of the first partition that answers: the death of one
/// keeps nothing from being done to the others.
///
/// # Errors
///
/// If no partition answers, or the work fails.
pub(crate) async fn alone<T>(
    partitions: &Partitions,
    key: impl Fn(&EpochKeys) -> String,
    lasts: Duration,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<Option<T>, Failure> {
    let partition = first_to_answer(partitions).await?;
    alone_at(partition, key(&partition.keys()), lasts, work).await
}

/// The same, where the turn is always that of one partition.
///
/// # Errors
///
/// If Redis fails, or the work does.
pub(crate) async fn alone_at<T>(
    partition: &Partition,
    key: String,
    lasts: Duration,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<Option<T>, Failure> {
    let name = crate::ids::random_id();
    let done = hold(partition, &key, &name, lasts, pin!(work)).await;
    // A turn that is not given up ends by itself.
    drop(call(partition, &key, &name, 0).await);
    done
}

/// The first partition that answers.
///
/// # Errors
///
/// If none does: why the last one does not.
pub(crate) async fn first_to_answer(partitions: &Partitions) -> Result<&Partition, Failure> {
    let mut failed = Failure::Uncertified;
    for partition in partitions {
        match tokio::time::timeout(ANSWER_MAX, partition.query::<()>("answer", &cmd("PING"))).await {
            Ok(Ok(())) => return Ok(partition),
            Ok(Err(failure)) => failed = failure,
            Err(_) => failed = Failure::Overloaded { operation: "take a turn" },
        }
    }
    Err(failed)
}

async fn hold<T>(
    partition: &Partition,
    key: &str,
    name: &str,
    lasts: Duration,
    mut work: Pin<&mut impl Future<Output = Result<T, Failure>>>,
) -> Result<Option<T>, Failure> {
    if !take(partition, key, name, lasts).await? {
        return Ok(None);
    }
    loop {
        match tokio::time::timeout(lasts / 2, &mut work).await {
            Ok(done) => return done.map(Some),
            // If it cannot be kept, another process may take it, and does the same.
            Err(_) => drop(take(partition, key, name, lasts).await),
        }
    }
}

async fn take(partition: &Partition, key: &str, name: &str, lasts: Duration) -> Result<bool, Failure> {
    call(partition, key, name, u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX).max(1)).await
}

async fn call(partition: &Partition, key: &str, name: &str, lasts_ms: u64) -> Result<bool, Failure> {
    let mut call = Call::default();
    call.key(key.to_owned()).arg(name).arg(lasts_ms);
    let mut reply = partition.invoke(&TURN, "take a turn", &call).await?;
    Ok(reply.text()? == "1")
}
