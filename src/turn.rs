//! Turns at work that one process at a time should do: a key in Redis that expires by itself. Were there two
//! at once, they would only do the same twice.

use std::time::Duration;

use redis::AsyncCommands;

use crate::Failure;
use crate::partition::Partition;

/// Takes the turn that a key stands for, if nobody has it. `lasts` is shorter than a round, so that the next
/// one is free.
pub(crate) async fn take(partition: &Partition, key: &str, lasts: Duration) -> Result<bool, Failure> {
    let failed = || Failure::redis("take a turn");
    let mut connection = partition.connection();
    let lasts = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut set = redis::cmd("SET");
    set.arg(key).arg(crate::random_id()).arg("PX").arg(lasts);
    let taken: Option<String> = set.clone().arg("NX").query_async(&mut connection).await.map_err(failed())?;
    if taken.is_some() {
        return Ok(true);
    }
    // One that ends later than any can was taken before the clock was set back: it is over.
    let left_ms: i64 = connection.pttl(key).await.map_err(failed())?;
    if u64::try_from(left_ms).map_or(left_ms == -2, |left_ms| left_ms <= lasts) {
        return Ok(false);
    }
    let taken: Option<String> = set.arg("XX").query_async(&mut connection).await.map_err(failed())?;
    Ok(taken.is_some())
}
