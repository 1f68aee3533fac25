//! Redis as everything uses it: the [connections](RedisClient), the [`Partition`] with the one way to call a
//! script, and the names of all [`keys`]. Nothing here knows what the data means.

mod append_only_file;
mod connection;
mod epoch;
pub mod keys;
mod partition;
mod partitions;
mod reply;
mod scan;
mod script;
pub(crate) mod turn;

pub use append_only_file::{AppendOnlyFile, append_only_file};
pub(crate) use append_only_file::{RewriteAnswer, rewrite};
pub use connection::{Connection, RedisClient};
pub use epoch::Epoch;
pub(crate) use epoch::{OpenCertificate, Opening};
pub use partition::Partition;
pub(crate) use partition::{EpochBound, OpeningCheck};
pub use partitions::{PARTITIONS_MAX, Partitions, PerPartition};
pub(crate) use redis::{RedisError, Value, cmd, from_redis_value, pipe};
pub(crate) use reply::Reply;
pub(crate) use scan::KeyScan;
pub(crate) use script::{Call, LuaScript};

use redis::ErrorKind;

use crate::Failure;

/// Whether Redis ended a script because of an error in it, and not for want of something.
fn is_script_error(detail: &str) -> bool {
    detail.contains("user_script:") && !detail.contains("OOM") && !detail.contains("READONLY")
}

impl Failure {
    /// Names the Redis operation that failed.
    pub fn redis(operation: &'static str) -> impl FnOnce(RedisError) -> Failure {
        move |source| match source.kind() {
            // A script ends with an error of its own only over data that nothing of this program writes.
            _ if source.code() == Some("WRONGTYPE") || source.detail().is_some_and(is_script_error) => {
                Failure::Damaged { what: "data in Redis", why: source.to_string() }
            }
            ErrorKind::UnexpectedReturnType => {
                Failure::Damaged { what: "data in Redis", why: source.to_string() }
            }
            _ => Failure::Redis { operation, source: source.into() },
        }
    }
}
