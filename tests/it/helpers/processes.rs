//! The three programs, run as an operator runs them.

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{System, eventually};

pub const API: &str = env!("CARGO_BIN_EXE_coupon-api");
pub const WORKER: &str = env!("CARGO_BIN_EXE_coupon-worker");
pub const CTL: &str = env!("CARGO_BIN_EXE_couponctl");

/// A program on the system's servers; an API asks no caller for credentials.
pub fn program(path: &str, system: &System) -> Command {
    let mut command = program_as_it_is(path, system);
    if path == API {
        command.arg("--open");
    }
    command
}

/// A program on the system's servers, with no other flag.
pub fn program_as_it_is(path: &str, system: &System) -> Command {
    program_on(path, system, &system.mongodb_uri)
}

/// The same, with another URI of the system's MongoDB.
pub fn program_on(path: &str, system: &System, mongodb_uri: &str) -> Command {
    let mut command = Command::new(path);
    command
        .args(["--redis-url", &system.redis_url, "--mongodb-uri", mongodb_uri])
        .args(["--mongodb-database", &system.database])
        .kill_on_drop(true)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs a `couponctl` command that takes the servers' addresses, and ends with what it printed.
pub async fn couponctl(system: &System, words: &[&str]) -> CommandOutput {
    let mut command = Command::new(CTL);
    command.args(words).args(["--redis-url", &system.redis_url, "--mongodb-uri", &system.mongodb_uri]);
    command.args(["--mongodb-database", &system.database]);
    command.output().await.expect("it runs").into()
}

/// Starts a program that serves, and reads the address it serves on from its JSON log.
pub async fn serving(mut command: Command) -> (Child, std::net::SocketAddr) {
    let mut child = command.args(["--log-format", "json"]).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
    let address = loop {
        let line = lines.next_line().await.expect("a line").expect("it serves before it ends");
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        if let Some(listen) = line["listen"].as_str() {
            break listen.parse().expect("an address");
        }
    };
    // Else the program would block on a full pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (child, address)
}

/// What a program has logged so far.
#[derive(Clone, Default)]
pub struct ProcessLog(Arc<Mutex<Vec<String>>>);

impl ProcessLog {
    /// Waits until the program has logged a line that contains the text.
    pub async fn says(&self, text: &str) -> String {
        eventually(&format!("{text:?} is logged"), async || {
            self.lines().into_iter().find(|line| line.contains(text))
        })
        .await
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no panic").clone()
    }
}

/// Starts a program that serves, and keeps what it logs.
pub async fn logging(mut command: Command) -> (Child, std::net::SocketAddr, ProcessLog) {
    let mut child = command.args(["--log-format", "json"]).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
    let log = ProcessLog::default();
    let kept = log.clone();
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            kept.0.lock().expect("no panic").push(line);
        }
    });
    let line = log.says("\"listen\"").await;
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    (child, line["listen"].as_str().and_then(|listen| listen.parse().ok()).expect("an address"), log)
}

/// Starts a worker process, with more flags.
pub async fn worker(system: &System, flags: &[&str]) -> Child {
    let mut worker = program(WORKER, system);
    worker.args(["--metrics-listen", "127.0.0.1:0"]).args(flags);
    serving(worker).await.0
}

pub async fn stopped(mut child: Child) -> std::process::ExitStatus {
    send(&child, Signal::TERM);
    child.wait().await.expect("it ends")
}

/// Sends a signal to a program.
pub fn send(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id().expect("it runs")).expect("a pid");
    rustix::process::kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("it is told");
}

/// How a command ended, and what it printed.
pub struct CommandOutput {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<std::process::Output> for CommandOutput {
    fn from(output: std::process::Output) -> Self {
        CommandOutput {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("UTF-8"),
            err: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}

impl CommandOutput {
    /// Asserts the exit code, and parts of what it printed to standard output and standard error.
    #[track_caller]
    pub fn assert(&self, code: i32, out: &[&str], err: &[&str]) {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        for part in out {
            assert!(self.out.contains(part), "no {part:?} in:\n{}", self.out);
        }
        for part in err {
            assert!(self.err.contains(part), "no {part:?} in:\n{}", self.err);
        }
    }

    /// Standard output, which is JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}:\n{}\n{}", self.out, self.err))
    }
}
