//! Turns at periodic work that one process at a time should do: a key in Redis that expires by itself. Two
//! processes with the same turn would do no harm: they would do the same work twice.

use std::time::Duration;

use crate::Failure;
use crate::redis::{Call, LuaScript, Partition};

static TURN: LuaScript = LuaScript::new(include_str!("lua/turn.lua"));

/// Takes the turn that `key` stands for. Returns `false` if another process has it. `lasts` should be shorter
/// than the period of the work, so that the turn is free for the next round.
pub(crate) async fn take(partition: &Partition, key: String, lasts: Duration) -> Result<bool, Failure> {
    let lasts = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut call = Call::default();
    call.key(key).arg(crate::ids::random_id()).arg(lasts);
    let mut reply = partition.invoke(&TURN, "take a turn", &call).await?;
    Ok(reply.text()? == "1")
}
