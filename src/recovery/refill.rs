//! Moving the queue into a new epoch: stream, group, in-flight hash, dead letters; then its counters.

use std::sync::LazyLock;

use redis::Script;

use super::Step;
use super::forget::Forgotten;
use super::progress::Watch;
use super::survivors::Survivor;
use crate::Failure;
use crate::keys::{EpochKeys, GROUP};
use crate::partition::{Call, Partition, script};
use crate::queue::DEAD_LETTER_CONSUMER;
use crate::service::Service;

static MOVE: LazyLock<Script> = LazyLock::new(|| script(include_str!("move.lua")));
static BUILT: LazyLock<Script> = LazyLock::new(|| script(include_str!("built.lua")));

/// Issuances that are moved at once: a script must stay short.
const PIECE: usize = 500;

/// Moves the queue from `old` epochs to the one of `keys`: dead letters first, the rest in the order of
/// acceptance. The group begins after the dead letters, which are given to their consumer, so that no worker is
/// ever handed one.
pub(super) async fn move_queue(
    partition: &Partition,
    keys: &EpochKeys,
    old: &[EpochKeys],
    queue: &mut [Survivor],
    service: Service,
    watch: &Watch,
) -> Result<Forgotten, Failure> {
    queue.sort_by_key(|survivor| (survivor.dead.is_none(), survivor.in_flight.sequence));
    let of = queue.len();
    let mut entries = 0;
    for piece in queue.chunks_mut(PIECE) {
        let mut call = Call::default();
        call.key(keys.certificate()).key(keys.stream()).key(keys.in_flight()).key(keys.dead());
        for old in old {
            call.key(old.in_flight()).key(old.dead());
        }
        call.arg(keys.epoch().to_string()).arg(GROUP).arg(DEAD_LETTER_CONSUMER);
        for survivor in piece {
            entries += 1;
            survivor.in_flight.sequence = entries as u64;
            call.arg(survivor.id.as_bytes().as_slice()).arg(survivor.in_flight.after_entry());
            call.arg(survivor.dead.as_deref().unwrap_or_default());
        }
        if partition.invoke(&MOVE, "move the queue", &call).await?.text()? != "moved" {
            return Ok(Forgotten::Superseded);
        }
        watch(&Step::Queueing { entries, of });
    }

    let mut call = Call::default();
    call.key(keys.certificate()).key(keys.stream()).key(keys.counters()).key(keys.built());
    call.arg(keys.epoch().to_string()).arg(GROUP).arg(of);
    call.arg(service.generation).arg(u8::from(service.paused));
    match partition.invoke(&BUILT, "end the queue", &call).await?.text()?.as_str() {
        "built" => Ok(Forgotten::All),
        _ => Ok(Forgotten::Superseded),
    }
}
