//! The spans of the requests that were accepted, for the workers that decide them: in a hash beside the queue
//! (`reserve.lua` writes it), which only sampled requests have a field of.
//!
//! Not in the stream entry: an entry of one has no room that earlier versions would pass over, and what is taken apart,
//! set aside, redriven, restored or rebuilt gets a new entry. So a trace goes on whatever happens to the entry, and
//! who does not trace never looks here.

use super::IssuanceId;
use crate::Failure;
use crate::redis::keys::trace_parents;
use crate::redis::{Partition, cmd};
use crate::runtime::traces::TraceParent;

/// Reads the span of each issuance's request; `None` where that was not sampled, or is not known any more.
///
/// # Errors
///
/// If Redis fails.
pub(crate) async fn read(
    partition: &Partition,
    ids: &[IssuanceId],
) -> Result<Vec<Option<TraceParent>>, Failure> {
    let mut command = cmd("HMGET");
    command.arg(trace_parents(partition.id()));
    for id in ids {
        command.arg(id.as_bytes().as_slice());
    }
    let read: Vec<Option<Vec<u8>>> = partition.query("read the spans of requests", &command).await?;
    Ok(read.into_iter().map(|bytes| TraceParent::from_bytes(&bytes?)).collect())
}

/// Forgets the spans of what is settled.
///
/// # Errors
///
/// If Redis fails; they expire then.
pub(crate) async fn forget(partition: &Partition, ids: &[IssuanceId]) -> Result<(), Failure> {
    let mut command = cmd("HDEL");
    command.arg(trace_parents(partition.id()));
    for id in ids {
        command.arg(id.as_bytes().as_slice());
    }
    partition.query("forget the spans of requests", &command).await
}
