//! Which cores a process may use: where the generator must not take from what it loads, nor the other
//! way round, each has some of its own.

use std::fs::read_dir;
use std::ops::Range;

use anyhow::Context;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

/// The cores of the system and those of the generator; `None` on a machine with one core.
pub(super) fn halves() -> anyhow::Result<Option<[Range<usize>; 2]>> {
    let cores = std::thread::available_parallelism()?.get();
    Ok((cores > 1).then_some([0..cores / 2, cores / 2..cores]))
}

/// Keeps all threads of a process, and those that they start, on these cores.
pub(super) fn confine(pid: u32, cores: &Range<usize>) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    cores.clone().for_each(|core| set.set(core));
    let threads = read_dir(format!("/proc/{pid}/task")).context("only Linux tells a process's threads")?;
    for thread in threads {
        let name = thread?.file_name();
        let thread = name.to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
        // One that has ended meanwhile is no matter.
        let _ = sched_setaffinity(thread, &set);
    }
    Ok(())
}
