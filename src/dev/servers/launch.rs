//! Starts child processes that die with this process.
//!
//! On Linux the kernel is asked to kill a child when its parent dies. It takes "parent" to be the
//! *thread* that started the child, and the threads of tests and runtimes come and go: so every child
//! is started by one thread that lives as long as the process.

use std::{
    io,
    process::{Child, Command},
    sync::{
        LazyLock,
        mpsc::{self, Sender},
    },
    thread,
};

use tokio::sync::oneshot;

struct LaunchJob {
    command: Command,
    reply: oneshot::Sender<io::Result<Child>>,
}

static LAUNCHER: LazyLock<Sender<LaunchJob>> = LazyLock::new(|| {
    let (jobs, inbox) = mpsc::channel::<LaunchJob>();
    thread::Builder::new()
        .name("server-launcher".to_owned())
        .spawn(move || {
            // Ends never: the sender is a static.
            for mut job in inbox {
                if let Err(Ok(mut unwanted)) = job.reply.send(job.command.spawn()) {
                    // The caller has gone away and cannot end it.
                    let _ = unwanted.kill();
                    let _ = unwanted.wait();
                }
            }
        })
        .expect("a thread can be started");
    jobs
});

/// Starts `command` as the leader of its own process group, to be killed when this process dies.
pub(crate) async fn spawn(mut command: Command) -> io::Result<Child> {
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    #[cfg(target_os = "linux")]
    die_with_parent(&mut command);
    let (reply, child) = oneshot::channel();
    LAUNCHER.send(LaunchJob { command, reply }).map_err(io::Error::other)?;
    child.await.map_err(io::Error::other)?
}

#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

    let parent = getpid();
    let in_child = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // A parent that died before the line above will never send the signal.
        if getppid() != Some(parent) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    #[expect(
        unsafe_code,
        reason = "between fork and exec only two system calls run, and nothing is allocated"
    )]
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(command, in_child);
    }
}
