//! Asking whether the certificate fits, and learning which epoch is open.

use std::sync::LazyLock;

use redis::Script;

use crate::Failure;
use crate::keys::GROUP;
use crate::partition::{Partition, script};

static CHECK: LazyLock<Script> = LazyLock::new(|| script(include_str!("check.lua")));

/// Whether the partition's data may be used. Learns the open epoch on the way.
pub async fn is_certified(partition: &Partition) -> Result<bool, Failure> {
    let asked = partition.call_quietly(&CHECK, "check the certificate", |keys, call| {
        call.key(keys.stream()).arg(GROUP);
    });
    match asked.await {
        Ok(_) => Ok(true),
        Err(Failure::Uncertified) => Ok(false),
        Err(failure) => Err(failure),
    }
}
