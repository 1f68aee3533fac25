//! What processes use: processor time and resident memory, as Linux tells it.

use std::time::Duration;

/// The processor time that this process has used.
pub(super) fn own_cpu() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(used.tv_sec).unwrap_or(0), u32::try_from(used.tv_nsec).unwrap_or(0))
}

/// The processor time, user and system, that a process has used; to a hundredth of a second.
#[cfg(target_os = "linux")]
pub(super) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = procfs::process::Process::new(i32::try_from(pid)?)?.stat()?;
    let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
    Ok(Duration::from_secs_f64(seconds))
}

/// The memory, in bytes, that a process has resident.
#[cfg(target_os = "linux")]
pub(super) fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let stat = procfs::process::Process::new(i32::try_from(pid)?)?.stat()?;
    Ok(stat.rss * procfs::page_size())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn cpu(_: u32) -> anyhow::Result<Duration> {
    anyhow::bail!("only Linux tells what other processes use: run the bench there")
}

#[cfg(not(target_os = "linux"))]
pub(super) fn resident_bytes(_: u32) -> anyhow::Result<u64> {
    anyhow::bail!("only Linux tells what other processes use: run the bench there")
}
