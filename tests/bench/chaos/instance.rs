//! An API or a worker as a child process, run as an operator runs it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

/// The longest time that a process may take to end.
const ENDED_MAX: Duration = Duration::from_secs(60);

/// An API or a worker.
pub struct Instance {
    name: String,
    own: PathBuf,
    other: Option<PathBuf>,
    runs_other: bool,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Instance {
    /// One of this build's programs, and perhaps the same of another release in the folder `other`, which is then chosen
    /// first. Its log is in `folder`.
    pub fn new(folder: &Path, name: &str, own: &str, other: Option<&Path>, arguments: Vec<String>) -> Self {
        let own = PathBuf::from(own);
        let other = other.and_then(|other| own.file_name().map(|program| other.join(program)));
        let log = folder.join(format!("{name}.log"));
        // Requests that the last release accepted continue with this one.
        let runs_other = other.is_some();
        Instance { name: name.to_owned(), own, other, runs_other, arguments, log, child: None }
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let program = match &self.other {
            Some(other) if self.runs_other => other,
            _ => &self.own,
        };
        let log = std::fs::File::options().create(true).append(true).open(&self.log)?;
        let child = Command::new(program)
            .args(&self.arguments)
            .args(["--log", "info"])
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("could not start {}", program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(pid.cast_signed()));
        if let Some(pid) = pid {
            // A process that has ended by itself is found, and reported, when the bench starts it again.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Ends the process as an operator does. Asserts that its exit code is 0.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM);
        let Some(mut child) = self.child.take() else { return Ok(()) };
        match tokio::time::timeout(ENDED_MAX, child.wait()).await {
            Ok(ended) if ended.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
            Ok(ended) => bail!("{} ended with {ended:?}; its log is {}", self.name, self.log.display()),
            Err(_) => bail!("{} did not end within {ENDED_MAX:?}", self.name),
        }
    }

    /// Starts the process, or resumes it.
    pub fn run_on(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::CONT);
        let ended = match &mut self.child {
            Some(child) => child.try_wait()?,
            None => return self.launch(),
        };
        match ended {
            None => Ok(()),
            Some(status) => {
                bail!("{} ended by itself: {status}; its log is {}", self.name, self.log.display())
            }
        }
    }

    /// Adds flags, with which it runs from its next start on.
    pub fn add_flags(&mut self, flags: impl IntoIterator<Item = String>) {
        self.arguments.extend(flags);
    }

    /// Whether there is a program of another release.
    pub fn has_other(&self) -> bool {
        self.other.is_some()
    }

    /// Chooses between the programs of the two releases.
    pub fn choose(&mut self, other: bool) {
        self.runs_other = other;
    }

    pub fn runs_other(&self) -> bool {
        self.runs_other
    }
}

/// A port that nothing listened on a moment ago.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
