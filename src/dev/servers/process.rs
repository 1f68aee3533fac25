//! One running server process and its output: signals, waiting for its end, never leaving it behind.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};
use tokio::time::{sleep, timeout};

use super::{POLL_INTERVAL, data_dir::DataDir, find::InstalledProgram, launch};

/// How long a server may take to write its data out and end. A mongod that is primary steps down first.
const STOP_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long the kernel may take to clear away a killed process.
const REAP_WAIT_MAX: Duration = Duration::from_secs(10);
const PAUSE_WAIT_MAX: Duration = Duration::from_secs(5);
/// A log longer than this is emptied when its server is started.
const LOG_BYTES_MAX: u64 = 16 << 20;
const OUTPUT_BYTES_READ_MAX: u64 = 256 << 10;

/// Killed when dropped.
#[derive(Debug)]
pub(super) struct ServerProcess {
    name: &'static str,
    child: Child,
    pid: Pid,
    log: PathBuf,
    /// Where in the log this process began to write.
    log_start: u64,
}

impl ServerProcess {
    /// Starts `installed` with its output in `<data dir>/<name>.log`.
    pub(super) async fn start(
        name: &'static str,
        installed: &InstalledProgram,
        arguments: &[OsString],
        data_dir: &DataDir,
    ) -> anyhow::Result<Self> {
        let log = data_dir.path().join(format!("{name}.log"));
        let (output, log_start) =
            open_log(&log).with_context(|| format!("could not open {}", log.display()))?;
        let mut command = Command::new(&installed.path);
        command
            .args(arguments)
            .current_dir(data_dir.path())
            // Messages in English, whatever the user's locale: `exit` reads them.
            .env("LC_ALL", "C")
            .stdin(data_dir.share_lock()?)
            .stdout(Stdio::from(output.try_clone().context("could not share the log")?))
            .stderr(Stdio::from(output));
        if let Some(value) = installed.library_path_variable() {
            command.env("LD_LIBRARY_PATH", value);
        }
        let child = launch::spawn(command).await.with_context(|| {
            format!(
                "could not run {}; delete it if it is broken, and it is fetched again",
                installed.path.display()
            )
        })?;
        Ok(Self { name, pid: Pid::from_child(&child), child, log, log_start })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn log(&self) -> &PathBuf {
        &self.log
    }

    /// What the process has written since it was started, at most its last `OUTPUT_BYTES_READ_MAX`.
    pub(super) fn output(&self) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.log)?;
            let end = file.metadata()?.len();
            let start = self.log_start.max(end.saturating_sub(OUTPUT_BYTES_READ_MAX));
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.take(OUTPUT_BYTES_READ_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => format!("could not read {}: {error}", self.log.display()),
        }
    }

    /// Waits until the process has ended.
    pub(super) async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        loop {
            if let Some(status) = self.try_ended()? {
                return Ok(status);
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Asks the process to end and waits for it. Kills it if it takes too long.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        if self.try_ended()?.is_some() {
            return Ok(());
        }
        self.signal(Signal::TERM)?;
        // A paused process would not hear it.
        self.signal(Signal::CONT)?;
        if timeout(STOP_WAIT_MAX, self.ended()).await.is_err() {
            tracing::warn!(
                server = self.name,
                pid = self.id(),
                "did not stop within {STOP_WAIT_MAX:?}, killing it"
            );
            return self.kill().await;
        }
        Ok(())
    }

    /// Kills the process and waits until it is gone.
    pub(super) async fn kill(mut self) -> anyhow::Result<()> {
        self.send_kill()?;
        match timeout(REAP_WAIT_MAX, self.ended()).await {
            Ok(ended) => ended.map(|_| ()),
            Err(_) => bail!(
                "{} (pid {}) is still there {REAP_WAIT_MAX:?} after SIGKILL; check the disk it writes to",
                self.name,
                self.id()
            ),
        }
    }

    /// Holds the process where it is. When this returns, none of its threads runs.
    pub(super) async fn pause(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)?;
        let stopped = async {
            loop {
                let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
                match waitid(WaitId::Pid(self.pid), options) {
                    Ok(Some(_)) => return Ok(()),
                    Ok(None) => sleep(POLL_INTERVAL).await,
                    Err(error) => return Err(error),
                }
            }
        };
        timeout(PAUSE_WAIT_MAX, stopped)
            .await
            .with_context(|| format!("{} did not pause within {PAUSE_WAIT_MAX:?}", self.name))?
            .with_context(|| format!("could not wait for {} to pause", self.name))
    }

    /// Lets a paused process run on.
    pub(super) fn resume(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    fn try_ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("could not wait for {} (pid {})", self.name, self.pid))
    }

    fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        // After its end is known the pid may belong to another process.
        let ended = self.try_ended()?;
        ensure!(
            ended.is_none(),
            "{} (pid {}) is not running any more; its output is in {}",
            self.name,
            self.pid,
            self.log.display()
        );
        kill_process(self.pid, signal)
            .with_context(|| format!("could not signal {} (pid {})", self.name, self.pid))
    }

    /// With the whole group go the children that redis-server forks to rewrite its files.
    fn send_kill(&mut self) -> anyhow::Result<()> {
        if self.try_ended()?.is_some() {
            return Ok(());
        }
        kill_process_group(self.pid, Signal::KILL)
            .with_context(|| format!("could not kill {} (pid {})", self.name, self.pid))
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        if let Err(error) = self.send_kill() {
            tracing::warn!(server = self.name, "{error:#}");
        }
        let deadline = Instant::now() + REAP_WAIT_MAX;
        while matches!(self.try_ended(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(POLL_INTERVAL);
        }
    }
}

/// The log, to be written at its end, and how long it is already.
fn open_log(path: &PathBuf) -> std::io::Result<(File, u64)> {
    if fs::metadata(path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
        fs::remove_file(path)?;
    }
    let file = File::options().append(true).create(true).open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}
