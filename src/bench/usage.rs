//! What processes use: processor time and resident memory, as Linux tells it.

use std::time::Duration;

/// The processor time, user and system, that a process has used; to a hundredth of a second.
pub(super) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    Ok(of(pid)?.0)
}

/// The memory, in bytes, that a process has resident.
pub(super) fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    Ok(of(pid)?.1)
}

#[cfg(target_os = "linux")]
fn of(pid: u32) -> anyhow::Result<(Duration, u64)> {
    let stat = procfs::process::Process::new(i32::try_from(pid)?)?.stat()?;
    let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
    Ok((Duration::from_secs_f64(seconds), stat.rss * procfs::page_size()))
}

#[cfg(not(target_os = "linux"))]
fn of(_: u32) -> anyhow::Result<(Duration, u64)> {
    anyhow::bail!("only Linux tells what other processes use: run the bench there")
}
