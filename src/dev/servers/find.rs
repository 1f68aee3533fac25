//! Where the server programs are: on PATH, fetched before, or fetched now.
//!
//! `deploy/fetch-servers.sh` knows all of this and is the only place that does; it is part of this
//! program, and takes some milliseconds where there is nothing to fetch.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::Command,
    sync::OnceCell,
    time::timeout,
};

const SCRIPT: &str = include_str!("../../../deploy/fetch-servers.sh");
const SCRIPT_NAME: &str = "fetch-servers: ";
/// Long enough for a slow network: about 45 MB, and the package lists.
const FETCH_WAIT_MAX: Duration = Duration::from_secs(20 * 60);

/// A server program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerProgram {
    /// redis-server, 7.0 or later
    Redis,
    /// mongod, 4.4 or later
    Mongod,
    /// valkey-server, 9.0 or later, which takes redis-server's settings
    Valkey,
}

impl ServerProgram {
    /// What its file is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis-server",
            Self::Mongod => "mongod",
            Self::Valkey => "valkey-server",
        }
    }

    fn script_argument(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Mongod => "mongod",
            Self::Valkey => "valkey",
        }
    }

    fn found(self) -> &'static OnceCell<InstalledProgram> {
        static REDIS: OnceCell<InstalledProgram> = OnceCell::const_new();
        static MONGOD: OnceCell<InstalledProgram> = OnceCell::const_new();
        static VALKEY: OnceCell<InstalledProgram> = OnceCell::const_new();
        match self {
            Self::Redis => &REDIS,
            Self::Mongod => &MONGOD,
            Self::Valkey => &VALKEY,
        }
    }
}

/// A server program that is ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledProgram {
    /// The program's file.
    pub path: PathBuf,
    /// The folder of shared libraries that were fetched with it.
    pub library_dir: Option<PathBuf>,
}

impl InstalledProgram {
    /// What LD_LIBRARY_PATH must be for the program; `None` leaves it as it is.
    pub(super) fn library_path_variable(&self) -> Option<OsString> {
        let mut value = self.library_dir.as_ref()?.clone().into_os_string();
        if let Some(inherited) = std::env::var_os("LD_LIBRARY_PATH").filter(|v| !v.is_empty()) {
            value.push(":");
            value.push(inherited);
        }
        Some(value)
    }
}

/// Finds `program`, fetching it if it is nowhere. `on_progress` gets a line for every step of that,
/// and none if there is nothing to fetch. The answer is kept for as long as this process runs.
pub async fn find(program: ServerProgram, on_progress: impl Fn(&str)) -> anyhow::Result<InstalledProgram> {
    program.found().get_or_try_init(|| run_script(program, on_progress)).await.cloned()
}

/// Finds the programs that the system itself needs, fetching them side by side, so that starting them later takes no time.
pub(crate) async fn find_all(on_progress: impl Fn(&str)) -> anyhow::Result<()> {
    tokio::try_join!(find(ServerProgram::Redis, &on_progress), find(ServerProgram::Mongod, &on_progress))?;
    Ok(())
}

async fn run_script(program: ServerProgram, on_progress: impl Fn(&str)) -> anyhow::Result<InstalledProgram> {
    let name = program.name();
    let (status, stdout, complaints) = timeout(FETCH_WAIT_MAX, script_output(program, on_progress))
        .await
        .with_context(|| format!("{name} was not fetched within {FETCH_WAIT_MAX:?}; check the network"))?
        .with_context(|| format!("could not run the script that finds {name}; it needs bash"))?;
    if !status.success() {
        bail!("could not find or fetch {name}:\n{}", complaints.join("\n"));
    }
    parse(program, &stdout)
}

/// Runs the script: how it ended, its stdout, and the lines of its stderr.
async fn script_output(
    program: ServerProgram,
    on_progress: impl Fn(&str),
) -> std::io::Result<(ExitStatus, String, Vec<String>)> {
    let mut script = Command::new("bash")
        .args(["-s", "--", program.script_argument()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let pipes = (script.stdin.take(), script.stdout.take(), script.stderr.take());
    let (Some(mut stdin), Some(mut stdout), Some(stderr)) = pipes else {
        unreachable!("all three are piped");
    };
    let write = async move { stdin.write_all(SCRIPT.as_bytes()).await };
    let read_stdout = async {
        let mut text = String::new();
        stdout.read_to_string(&mut text).await.map(|_| text)
    };
    let read_stderr = async {
        let mut lines = BufReader::new(stderr).lines();
        let mut all = Vec::new();
        while let Some(line) = lines.next_line().await? {
            let line = line.strip_prefix(SCRIPT_NAME).unwrap_or(&line);
            on_progress(line);
            all.push(line.to_owned());
        }
        Ok(all)
    };
    let ((), stdout, stderr) = tokio::try_join!(write, read_stdout, read_stderr)?;
    Ok((script.wait().await?, stdout, stderr))
}

/// Reads the script's line: name, program and library folder (may be empty), with tabs between.
fn parse(program: ServerProgram, stdout: &str) -> anyhow::Result<InstalledProgram> {
    let fields: Vec<&str> = stdout.trim_end_matches('\n').split('\t').collect();
    match fields[..] {
        [name, path, library_dir] if name == program.name() && !path.is_empty() => Ok(InstalledProgram {
            path: path.into(),
            library_dir: (!library_dir.is_empty()).then(|| library_dir.into()),
        }),
        _ => bail!("deploy/fetch-servers.sh was asked for {} and answered {stdout:?}", program.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_answer_is_read() {
        let fetched = parse(ServerProgram::Redis, "redis-server\t/s/redis-server\t/s/lib\n").unwrap();
        assert_eq!(fetched.path, PathBuf::from("/s/redis-server"));
        assert_eq!(fetched.library_dir, Some(PathBuf::from("/s/lib")));

        let on_path = parse(ServerProgram::Mongod, "mongod\t/usr/bin/mongod\t\n").unwrap();
        assert_eq!(on_path.library_dir, None);
        assert_eq!(on_path.library_path_variable(), None);
    }

    #[test]
    fn another_answer_is_an_error() {
        for stdout in ["", "\n", "mongod\t/m\t\n", "redis-server\t\t\n", "redis-server\t/r\n"] {
            assert!(parse(ServerProgram::Redis, stdout).is_err(), "{stdout:?}");
        }
    }
}
