//! Figures of the process itself, where the system tells them (Linux).

use crate::metrics::names;

/// Sets them in the current recorder.
#[cfg(target_os = "linux")]
pub(super) fn set() {
    use procfs::process::Process;

    let Ok(process) = Process::myself() else { return };
    if let Ok(stat) = process.stat() {
        metrics::gauge!(names::RESIDENT_BYTES).set((stat.rss * procfs::page_size()) as f64);
        let seconds = (stat.utime + stat.stime) / procfs::ticks_per_second();
        metrics::counter!(names::CPU_SECONDS).absolute(seconds);
        if let Ok(boot) = procfs::boot_time_secs() {
            let since_boot = stat.starttime as f64 / procfs::ticks_per_second() as f64;
            metrics::gauge!(names::START_SECONDS).set(boot as f64 + since_boot);
        }
    }
    if let Ok(count) = process.fd_count() {
        metrics::gauge!(names::OPEN_FDS).set(count as f64);
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn set() {}
