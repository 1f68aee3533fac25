//! Writing the queue of a new epoch: stream, group, in-flight hash, dead letters, counters.

use super::Step;
use super::progress::Watch;
use super::survivors::Survivor;
use crate::Failure;
use crate::keys::{EpochKeys, GROUP};
use crate::partition::Partition;
use crate::queue::{DEAD_LETTER_CONSUMER, entry};
use crate::service::Service;

/// Entries in one pipeline.
const CHUNK: usize = 1_000;

/// Writes the queue: dead letters first, the rest in the order of acceptance. The group begins after
/// the dead letters, which are given to their consumer, so that no worker is ever handed one.
pub(super) async fn write_queue(
    partition: &Partition,
    keys: &EpochKeys,
    queue: &mut [Survivor],
    service: Service,
    watch: &Watch,
) -> Result<(), Failure> {
    let failed = || Failure::redis("write the queue");
    let mut connection = partition.connection();
    queue.sort_by_key(|survivor| (survivor.dead.is_none(), survivor.in_flight.sequence));
    let of = queue.len();
    let mut sequence = 0_u64;
    for chunk in queue.chunks_mut(CHUNK) {
        let mut entries = redis::pipe();
        for survivor in chunk.iter() {
            entry::append(&mut entries, &keys.stream(), survivor.id, &survivor.in_flight);
        }
        let entries: Vec<String> = entries.query_async(&mut connection).await.map_err(failed())?;
        let mut hashes = redis::pipe();
        let (mut in_flight, mut dead) = (redis::cmd("HSET"), redis::cmd("HSET"));
        in_flight.arg(keys.in_flight());
        dead.arg(keys.dead());
        let mut any_dead = false;
        for (survivor, entry) in chunk.iter_mut().zip(entries) {
            sequence += 1;
            survivor.in_flight.sequence = sequence;
            survivor.in_flight.entry = entry;
            let id = survivor.id.as_bytes().as_slice();
            in_flight.arg(id).arg(survivor.in_flight.to_string());
            if let Some(why) = &survivor.dead {
                dead.arg(id).arg(format!("{} {why}", survivor.in_flight.entry));
                any_dead = true;
            }
        }
        hashes.add_command(in_flight).ignore();
        if any_dead {
            hashes.add_command(dead).ignore();
        }
        hashes.query_async::<()>(&mut connection).await.map_err(failed())?;
        watch(&Step::Queueing { entries: usize::try_from(sequence).unwrap_or(of), of });
    }

    let dead: Vec<&str> = queue
        .iter()
        .take_while(|survivor| survivor.dead.is_some())
        .map(|survivor| survivor.in_flight.entry.as_str())
        .collect();
    let after = dead.last().copied().unwrap_or("0");
    let mut rest = redis::pipe();
    rest.cmd("XGROUP").arg("CREATE").arg(keys.stream()).arg(GROUP).arg(after).arg("MKSTREAM").ignore();
    for dead in dead.chunks(CHUNK) {
        rest.cmd("XCLAIM").arg(keys.stream()).arg(GROUP).arg(DEAD_LETTER_CONSUMER).arg(0).arg(dead);
        rest.arg("FORCE").arg("JUSTID").ignore();
    }
    rest.cmd("HSET").arg(keys.counters()).arg("accepted").arg(sequence).arg("settled").arg(0).ignore();
    rest.cmd("HSET")
        .arg(keys.counters())
        .arg("service_generation")
        .arg(service.generation)
        .arg("paused")
        .arg(u8::from(service.paused))
        .ignore();
    // Last of all: what is built without it is not complete.
    rest.set(keys.built(), keys.epoch().to_string()).ignore();
    rest.query_async::<()>(&mut connection).await.map_err(failed())
}
