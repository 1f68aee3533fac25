//! A program of the system as a child process: started as in production, watched from outside.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::ChildStderr;

use crate::dev::servers::spawn_child;
use crate::failure::SetUpError;

/// From its start until it says where it listens.
const START_MAX: Duration = Duration::from_secs(60);
/// From SIGTERM until it has ended; then it is killed.
const STOP_MAX: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Lines that are told of a program that ended too soon.
const LINES_TOLD_MAX: usize = 5;

/// Killed when dropped, and when this process dies.
pub(super) struct ChildProgram {
    child: Child,
    address: SocketAddr,
}

/// The file of a program that is built together with this one.
pub(super) fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("this program does not know its own file")?;
    let path = own.with_file_name(name);
    if path.is_file() {
        Ok(path)
    } else {
        let why = format!("{} is missing: build all programs with `cargo build --release`", path.display());
        Err(SetUpError(vec![why]).into())
    }
}

impl ChildProgram {
    /// Starts a program that logs JSON to standard error, and waits for the line with the address that
    /// it serves on.
    pub async fn start(file: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let name = file.display();
        let mut command = Command::new(file);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = spawn_child(command).await.with_context(|| format!("cannot start {name}"))?;
        let log = child.stderr.take().context("its log is piped")?;
        let address = tokio::time::timeout(START_MAX, listening(log)).await;
        match address {
            Ok(Ok(address)) => Ok(ChildProgram { child, address }),
            failed => {
                kill(&mut child);
                let why = failed.unwrap_or_else(|_| bail!("it said nothing of it within {START_MAX:?}"));
                Err(why.err().context("an error")?.context(format!("{name} does not serve")))
            }
        }
    }

    /// The base of its URLs.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The id of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, and waits until it has.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).context("cannot tell a program to end")?;
        let ended = async {
            while self.child.try_wait()?.is_none() {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Ok::<_, io::Error>(())
        };
        tokio::time::timeout(STOP_MAX, ended).await.context("a program did not end when told to")??;
        Ok(())
    }
}

impl Drop for ChildProgram {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

fn kill(child: &mut Child) {
    // One that has ended already needs neither.
    let _ = child.kill();
    let _ = child.wait();
}

/// Reads the log up to the address; the rest is read too, so that the program never blocks on it.
async fn listening(log: std::process::ChildStderr) -> anyhow::Result<SocketAddr> {
    let mut lines = BufReader::new(ChildStderr::from_std(log)?).lines();
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await? {
        let parsed: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
        if let Some(address) = parsed["listen"].as_str() {
            let address = address.parse().context("it names no address")?;
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(address);
        }
        said.push(line);
    }
    bail!("it ended: {}", said[said.len().saturating_sub(LINES_TOLD_MAX)..].join("\n"))
}
