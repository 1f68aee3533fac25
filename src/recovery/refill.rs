//! Moving the queue into a new epoch: stream, group, in-flight hash, dead letters; then its counters.

use super::RecoveryStep;
use super::old_epochs::GuardedWrite;
use super::progress::ProgressCallback;
use super::survivors::{Survivor, UnreadableInFlight};
use crate::ids::IssuanceId;
use crate::queue::DEAD_LETTER_CONSUMER;
use crate::redis::keys::{EpochKeys, GROUP};
use crate::redis::{Call, LuaScript, Partition};
use crate::service::Service;
use crate::{Failure, metrics};

static MOVE: LuaScript = LuaScript::new(include_str!("move.lua"));
static BUILT: LuaScript = LuaScript::new(include_str!("built.lua"));

/// Issuances that are moved at once: a script must stay short.
const PIECE: usize = 500;

/// The issuances that are to be in flight in the new epoch.
pub(super) struct RebuiltQueue {
    pub survivors: Vec<Survivor>,
    /// Values that cannot be read. Those under ids that are none are not moved.
    pub damaged: Vec<UnreadableInFlight>,
}

impl RebuiltQueue {
    fn damaged(&self) -> impl Iterator<Item = (IssuanceId, &UnreadableInFlight)> {
        self.damaged.iter().filter_map(|damaged| Some((damaged.id()?, damaged)))
    }

    /// How many issuances there are.
    pub(super) fn len(&self) -> usize {
        self.survivors.len() + self.damaged().count()
    }

    /// How many of them are dead letters.
    pub(super) fn dead(&self) -> usize {
        self.survivors.iter().filter(|survivor| survivor.dead.is_some()).count() + self.damaged().count()
    }
}

/// Moves the queue from the hashes `from` into the epoch of `keys`: dead letters first, the rest in the order
/// of acceptance. What cannot be read is a dead letter. The group begins after the dead letters, which are given
/// to their consumer, so that no worker is ever handed one.
pub(super) async fn move_queue(
    partition: &Partition,
    keys: &EpochKeys,
    from: &[String],
    queue: &mut RebuiltQueue,
    service: Service,
    progress: &ProgressCallback,
) -> Result<GuardedWrite, Failure> {
    let of = queue.len();
    let begin = || {
        let mut call = Call::default();
        call.key(keys.certificate()).key(keys.stream()).key(keys.in_flight()).key(keys.dead());
        for hash in from {
            call.key(hash.clone());
        }
        call.arg(keys.epoch().to_string()).arg(GROUP).arg(DEAD_LETTER_CONSUMER);
        call
    };
    let mut entries = 0;
    let damaged: Vec<_> = queue.damaged().collect();
    for piece in damaged.chunks(PIECE) {
        let mut call = begin();
        for (id, damaged) in piece {
            entries += 1;
            let why = damaged.why_dead();
            tracing::error!(issuance = %id, why, "its in-flight value and its stream entry cannot be read: made it a dead letter");
            call.arg(id.as_bytes().as_slice()).arg(damaged.after_entry()).arg(why);
        }
        if !is_moved(partition, &call).await? {
            return Ok(GuardedWrite::Superseded);
        }
        metrics::DEAD_LETTERED.increment(piece.iter().filter(|(_, one)| one.dead.is_none()).count() as u64);
    }
    queue.survivors.sort_by_key(|survivor| (survivor.dead.is_none(), survivor.in_flight.sequence));
    for piece in queue.survivors.chunks_mut(PIECE) {
        let mut call = begin();
        for survivor in piece {
            entries += 1;
            survivor.in_flight.sequence = entries as u64;
            call.arg(survivor.id.as_bytes().as_slice()).arg(survivor.in_flight.after_entry());
            call.arg(survivor.dead.as_deref().unwrap_or_default());
        }
        if !is_moved(partition, &call).await? {
            return Ok(GuardedWrite::Superseded);
        }
        progress(&RecoveryStep::Queueing { entries, of });
    }

    let mut call = Call::default();
    call.key(keys.certificate()).key(keys.stream()).key(keys.counters()).key(keys.built());
    call.arg(keys.epoch().to_string()).arg(GROUP).arg(of);
    call.arg(service.generation).arg(u8::from(service.paused));
    match partition.invoke(&BUILT, "end the queue", &call).await?.text()?.as_str() {
        "built" => Ok(GuardedWrite::Done),
        _ => Ok(GuardedWrite::Superseded),
    }
}

async fn is_moved(partition: &Partition, call: &Call) -> Result<bool, Failure> {
    Ok(partition.invoke(&MOVE, "move the queue", call).await?.text()? == "moved")
}
