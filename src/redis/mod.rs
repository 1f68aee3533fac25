//! Redis as everything uses it: the [servers](RedisNodes) and the [connections](RedisClient) to them, the [`Partition`]
//! with the one way to call a script, and the names of all [`keys`]. Nothing here knows what the data means.

mod address;
mod append_only_file;
mod connection;
mod discovery;
mod epoch;
pub mod keys;
mod node;
mod nodes;
mod partition;
mod partitions;
mod reply;
mod scan;
mod script;
mod slots;
pub(crate) mod turn;

pub use append_only_file::{AppendOnlyFile, append_only_file};
pub(crate) use append_only_file::{RewriteAnswer, rewrite};
pub use connection::{Connection, RedisClient, Replacements, Subscription};
pub use epoch::Epoch;
pub(crate) use epoch::{OpenCertificate, Opening};
pub(crate) use nodes::Primary;
pub use nodes::RedisNodes;
pub use partition::Partition;
pub(crate) use partition::{EpochBound, OpeningCheck};
pub(crate) use partitions::answers_of_any;
pub use partitions::{PARTITIONS_MAX, Partitions, PerPartition};
pub(crate) use redis::{RedisError, Value, cmd, from_redis_value, pipe};
pub(crate) use reply::Reply;
pub(crate) use scan::KeyScan;
pub(crate) use script::{Call, LuaScript};
pub(crate) use slots::read_ranges;

use redis::ErrorKind;

use crate::Failure;

/// Whether Redis ended a script because of an error in it, and not for want of something: memory, the right server, or
/// a slot that lies there as a whole.
fn is_script_error(detail: &str) -> bool {
    const WANTS: [&str; 4] = ["OOM", "READONLY", "non local key", "the cluster is down"];
    detail.contains("user_script:") && !WANTS.iter().any(|want| detail.contains(want))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_that_lacks_a_server_or_memory_has_met_no_damage() {
        let at = "script: 4e1e, on @user_script:26.";
        for (says, is_damage) in [
            ("user_script:9: bad argument #1 to 'sub'", true),
            ("-OOM command not allowed when used memory > 'maxmemory'.", false),
            ("-READONLY You can't write against a read only replica.", false),
            ("Script attempted to access a non local key in a cluster node", false),
            ("Script attempted to execute a command while the cluster is down", false),
        ] {
            assert_eq!(is_script_error(&format!("{says} {at}")), is_damage, "{says}");
        }
    }
}
