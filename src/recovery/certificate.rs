//! The certificate: asking whether it fits, closing it, opening it again.

use std::sync::LazyLock;

use redis::Script;

use super::Epoch;
use super::lease::Lease;
use crate::Failure;
use crate::keys::{self, EpochKeys, GROUP};
use crate::partition::{Call, Partition, Reply, script};
use crate::service::Service;

static CHECK: LazyLock<Script> = LazyLock::new(|| script(include_str!("check.lua")));
static CLOSE: LazyLock<Script> = LazyLock::new(|| script(include_str!("close.lua")));
static CERTIFY: LazyLock<Script> = LazyLock::new(|| script(include_str!("certify.lua")));

/// Whether the partition's data may be used. Learns on the way which epoch is open, and since when.
pub async fn is_certified(partition: &Partition) -> Result<bool, Failure> {
    let asked = partition.call_quietly(&CHECK, "check the certificate", |keys, call| {
        call.key(keys.stream()).arg(GROUP);
    });
    match asked.await {
        Ok(mut reply) => {
            partition.set_opened_at(reply.number()?);
            Ok(true)
        }
        Err(Failure::Uncertified) => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// What the certificate says besides, whether it fits or not.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// The term that it was closed or opened under last; 0 if there is none.
    pub term: i64,
    /// The ledger that the data belongs to, if there is data.
    pub ledger: Option<String>,
}

/// Reads what the certificate says, without checking it.
pub(super) async fn read(partition: &Partition) -> Result<Known, Failure> {
    let (term, ledger): (Option<i64>, Option<String>) = redis::cmd("HMGET")
        .arg(keys::certificate(partition.id()))
        .arg(&["term", "ledger"])
        .query_async(&mut partition.connection())
        .await
        .map_err(Failure::redis("read the certificate"))?;
    Ok(Known { term: term.unwrap_or(0), ledger })
}

/// What the closing of the certificate came to.
pub(super) enum Closed {
    /// Closed; this epoch was open last, if the certificate was there.
    After(Option<EpochKeys>),
    /// Somebody recovers under a later term.
    Superseded,
}

/// Closes the certificate, as the holder of a lease; `take_over`: even one of another ledger.
pub(super) async fn close(partition: &Partition, lease: &Lease, take_over: bool) -> Result<Closed, Failure> {
    let mut call = Call::default();
    call.key(keys::certificate(partition.id())).arg(lease.term).arg(lease.epoch.to_string());
    call.arg(&lease.ledger).arg(u8::from(take_over));
    let mut reply = partition.invoke(&CLOSE, "close the certificate", &call).await?;
    if reply.text()? != "closed" {
        return Ok(Closed::Superseded);
    }
    let epoch = reply.text()?;
    if epoch.is_empty() {
        return Ok(Closed::After(None));
    }
    let epoch: Epoch = epoch.parse().map_err(|_| reply.wrong())?;
    Ok(Closed::After(Some(EpochKeys::new(partition.id(), epoch))))
}

/// What the opening of an epoch came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Opening {
    Opened,
    /// Somebody else recovers, or has done so.
    Superseded,
    /// Redis restarted since the closing, so it stays closed: what was looked at must be looked at again.
    Restarted,
    /// Something is missing, so it stays closed.
    Incomplete(String),
}

/// The failure of a recovery during which Redis restarted.
pub(super) fn restarted() -> Failure {
    Failure::Redis {
        operation: "open the certificate",
        source: "Redis restarted meanwhile; its data is looked at again".into(),
    }
}

/// Opens the epoch that was open last again, as it is, with the service in this state.
pub(super) async fn certify(
    partition: &Partition,
    lease: &Lease,
    last: &EpochKeys,
    service: Service,
) -> Result<Opening, Failure> {
    let mut call = Call::default();
    call.key(last.certificate()).key(last.stream()).key(last.counters()).key(last.audited());
    call.arg(lease.term).arg(lease.epoch.to_string()).arg(last.epoch().to_string()).arg(GROUP);
    call.arg(service.generation).arg(u8::from(service.paused));
    opening(partition.invoke(&CERTIFY, "open the certificate", &call).await?)
}

/// Reads the reply of a script that opens.
pub(super) fn opening(mut reply: Reply) -> Result<Opening, Failure> {
    match reply.text()?.as_str() {
        "opened" => Ok(Opening::Opened),
        "superseded" => Ok(Opening::Superseded),
        "restarted" => Ok(Opening::Restarted),
        "incomplete" => Ok(Opening::Incomplete(reply.text()?)),
        _ => Err(reply.wrong()),
    }
}
