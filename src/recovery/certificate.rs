//! The certificate: asking whether it fits, closing it, opening it again.

use std::error::Error;

use redis::RedisError;

use super::lease::Lease;
use crate::Failure;
use crate::redis::keys::{EpochKeys, GROUP};
use crate::redis::{Call, LuaScript, Partition, Reply, keys};
use crate::service::Service;

static CHECK: LuaScript = LuaScript::new(include_str!("check.lua"));
static PROBE: LuaScript = LuaScript::new(include_str!("probe.lua"));
static KNOWN: LuaScript = LuaScript::new(include_str!("known.lua"));
static CLOSE: LuaScript = LuaScript::new(include_str!("close.lua"));
static CERTIFY: LuaScript = LuaScript::new(include_str!("certify.lua"));

/// Whether the partition's data may be used. The partition learns on the way which epoch is open, and since when.
///
/// # Errors
///
/// If Redis cannot be reached.
pub async fn is_certified(partition: &Partition) -> Result<bool, Failure> {
    let asked = partition.call_without_wake(&CHECK, "check the certificate", |keys, call| {
        call.key(keys.stream())
            .key(keys.in_flight())
            .key(keys.dead())
            .key(keys.counters())
            .key(keys.loaded());
        call.arg(GROUP);
    });
    match asked.await {
        // One that cannot be read counts as missing, as the rest of a damaged certificate does.
        Ok(mut reply) => Ok(reply.number().is_ok_and(|opened_at| {
            partition.set_opened_at(opened_at);
            true
        })),
        Err(Failure::Uncertified) => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// Whether a request can be accepted, as far as Redis is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writable {
    Yes,
    /// The certificate does not fit.
    Uncertified,
    /// The certificate fits, and Redis refuses every write that needs room: it follows another, its disk or its memory is
    /// full, or it lacks the replicas that it must have.
    Refused,
}

/// Determines whether Redis would accept a request's write. Writes nothing.
///
/// # Errors
///
/// If Redis does not answer.
pub async fn writable(partition: &Partition) -> Result<Writable, Failure> {
    match partition.call_without_wake(&PROBE, "take writes", |_, _| {}).await {
        Ok(_) => Ok(Writable::Yes),
        Err(Failure::Uncertified) => Ok(Writable::Uncertified),
        Err(Failure::Redis { source, .. }) if refuses_writes(&*source) => Ok(Writable::Refused),
        Err(failure) => Err(failure),
    }
}

fn refuses_writes(error: &(dyn Error + 'static)) -> bool {
    let code = error.downcast_ref::<RedisError>().and_then(RedisError::code);
    code.is_some_and(|code| ["READONLY", "MISCONF", "OOM", "NOREPLICAS"].contains(&code))
}

/// The fields of a certificate, whether it fits or not, and the Redis that it was read from.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct CertificateFields {
    /// The term that it was closed or opened under last; 0 if there is none.
    pub term: i64,
    /// The ledger that the data belongs to, if there is data.
    pub ledger: Option<String>,
    /// A recoverer found that another was opened since its data was, and did not come to its end.
    pub out_of_date: bool,
    /// The Redis that it was read from: see [`Partition::instance`].
    pub instance: String,
}

/// Reads the certificate without checking it. A field that cannot be read counts as missing.
pub(super) async fn read(partition: &Partition) -> Result<CertificateFields, Failure> {
    let mut call = Call::default();
    call.key(keys::certificate(partition.id()));
    let mut reply = partition.invoke(&KNOWN, "read the certificate", &call).await?;
    let term = reply.text()?.parse().map_err(|_| reply.wrong())?;
    let ledger = Some(reply.text()?).filter(|ledger| !ledger.is_empty());
    let out_of_date = reply.text()? == "1";
    Ok(CertificateFields { term, ledger, out_of_date, instance: partition.instance(&reply.text()?) })
}

/// The Redis on which the certificate was closed.
pub(super) struct ClosedInstance {
    /// See [`Partition::instance`].
    pub instance: String,
    /// It was a replica, and took the place of its primary, which may live on.
    pub was_replica: bool,
    /// Another was opened since its data was.
    pub out_of_date: bool,
}

/// The outcome of closing the certificate.
pub(super) enum CloseOutcome {
    /// Closed; `last` was open last, if the certificate was there and not out of date.
    After { last: Option<EpochKeys>, on: ClosedInstance },
    /// Another process recovers under a later term.
    Superseded,
}

/// Closes the certificate, as the holder of a lease; `take_over`: even one of another ledger.
pub(super) async fn close(
    partition: &Partition,
    lease: &Lease,
    take_over: bool,
) -> Result<CloseOutcome, Failure> {
    let mut call = Call::default();
    call.key(keys::certificate(partition.id())).arg(lease.term).arg(lease.epoch.to_string());
    call.arg(&lease.ledger).arg(u8::from(take_over)).arg(lease.latest_term);
    let mut reply = partition.invoke(&CLOSE, "close the certificate", &call).await?;
    if reply.text()? != "closed" {
        return Ok(CloseOutcome::Superseded);
    }
    let (epoch, run_id) = (reply.text()?, reply.text()?);
    let last = match epoch.as_str() {
        "" => None,
        // What is not an epoch's was never open: all epochs with something in flight are searched for.
        epoch => epoch.parse().ok().map(|epoch| EpochKeys::new(partition.id(), epoch)),
    };
    let (instance, was_replica) = (partition.instance(&run_id), reply.text()? == "1");
    let on = ClosedInstance { instance, was_replica, out_of_date: reply.text()? == "1" };
    Ok(CloseOutcome::After { last, on })
}

/// The outcome of opening an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OpenOutcome {
    Opened,
    /// Another process recovers, or has done so.
    Superseded,
    /// Redis restarted since the closing, so it stays closed: what was checked must be checked again.
    Restarted,
    /// Something is missing, so it stays closed.
    Incomplete(String),
}

/// The failure of a recovery during which Redis restarted.
pub(super) fn restarted() -> Failure {
    Failure::Redis {
        operation: "open the certificate",
        source: "Redis restarted meanwhile; its data is checked again".into(),
    }
}

/// Opens the epoch that was open last again, as it is, with the service in this state.
pub(super) async fn certify(
    partition: &Partition,
    lease: &Lease,
    last: &EpochKeys,
    service: Service,
) -> Result<OpenOutcome, Failure> {
    let mut call = Call::default();
    call.key(last.certificate()).key(last.stream()).key(last.counters()).key(last.audited());
    call.arg(lease.term).arg(lease.epoch.to_string()).arg(last.epoch().to_string()).arg(GROUP);
    call.arg(service.generation).arg(u8::from(service.paused));
    open_outcome(partition.invoke(&CERTIFY, "open the certificate", &call).await?)
}

/// Reads the reply of a script that opens.
pub(super) fn open_outcome(mut reply: Reply) -> Result<OpenOutcome, Failure> {
    match reply.text()?.as_str() {
        "opened" => Ok(OpenOutcome::Opened),
        "superseded" => Ok(OpenOutcome::Superseded),
        "restarted" => Ok(OpenOutcome::Restarted),
        "incomplete" => Ok(OpenOutcome::Incomplete(reply.text()?)),
        _ => Err(reply.wrong()),
    }
}
