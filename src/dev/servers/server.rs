//! The life of a server, the same for redis-server and mongod: start, stop, kill, restart, pause.

use std::{ffi::OsString, path::Path, time::Duration};

use anyhow::{Context, bail};
use tokio::time::timeout;

use super::{
    data_dir::DataDir,
    exit::{ExitCause, ServerExit, tail},
    find::{InstalledProgram, ServerProgram, find},
    port,
    process::ServerProcess,
};

/// How often another free port is tried when another process was quicker to take it.
const PORT_ATTEMPTS_MAX: usize = 5;

/// What a server is started with, and what is particular to its program.
pub trait ServerSpec: Send + Sync {
    /// How long it may take from its start until it is ready; reading its data back is part of that.
    const READY_WAIT_MAX: Duration;

    /// The program to run.
    fn program(&self) -> ServerProgram;

    /// The folder that holds its data.
    fn data_dir(&self) -> &Path;

    /// The port to listen on; any free one if `None`.
    fn port(&self) -> Option<u16>;

    /// The program's arguments.
    fn arguments(&self, port: u16) -> Vec<OsString>;

    /// Where clients connect to.
    fn url(port: u16) -> String;

    /// Returns when the process `pid` serves requests on `port`. Tries for as long as it takes: the
    /// caller bounds it, and notices when the process ends.
    fn ready(&self, port: u16, pid: u32) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// A server as a child process. Killed when dropped, and when this process dies.
#[derive(Debug)]
pub struct Server<S: ServerSpec> {
    spec: S,
    installed: InstalledProgram,
    port: u16,
    /// `None` after it was stopped or killed here.
    process: Option<ServerProcess>,
    // Last, so that the folder is given up after the process is gone.
    data_dir: DataDir,
}

impl<S: ServerSpec> Server<S> {
    /// Starts a server and waits until it is ready. Fetches its program first if it is nowhere.
    pub async fn start(spec: S) -> anyhow::Result<Self> {
        let name = spec.program().name();
        let installed = find(spec.program(), |line| tracing::info!("{line}")).await?;
        let data_dir = DataDir::open(spec.data_dir(), name).await?;
        let mut attempt = 1;
        loop {
            let port = match spec.port() {
                Some(port) => port,
                None => port::free()?,
            };
            match launch(&spec, &installed, port, &data_dir).await {
                Ok(process) => {
                    return Ok(Self { spec, installed, port, process: Some(process), data_dir });
                }
                Err(error)
                    if spec.port().is_none() && attempt < PORT_ATTEMPTS_MAX && is_port_taken(&error) =>
                {
                    tracing::debug!(
                        server = name,
                        port,
                        "another process has taken the port; trying another"
                    );
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Where clients connect to.
    pub fn url(&self) -> String {
        S::url(self.port)
    }

    /// The port on 127.0.0.1, the same for its whole life.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id; `None` after `stop` and `kill`.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(ServerProcess::id)
    }

    /// What it was started with.
    pub fn spec(&self) -> &S {
        &self.spec
    }

    /// Asks the server to end (SIGTERM) and waits until it has; after a bounded wait it is killed.
    /// Nothing to do if it has ended already.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        match self.process.take() {
            Some(process) => process.stop().await,
            None => Ok(()),
        }
    }

    /// Kills the server (SIGKILL) and waits until it is gone. Nothing to do if it has ended already.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        match self.process.take() {
            Some(process) => process.kill().await,
            None => Ok(()),
        }
    }

    /// Starts the server again on its port and data, and waits until it is ready. One that still runs
    /// is stopped first; after `kill` this is what a crash and a new start look like.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await?;
        let process = launch(&self.spec, &self.installed, self.port, &self.data_dir).await?;
        self.process = Some(process);
        Ok(())
    }

    /// Holds the server (SIGSTOP): connections stay open and nothing is answered. When this returns
    /// the server does nothing any more.
    pub async fn pause(&mut self) -> anyhow::Result<()> {
        self.running()?.pause().await
    }

    /// Lets a paused server run on (SIGCONT).
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.running()?.resume()
    }

    fn running(&mut self) -> anyhow::Result<&mut ServerProcess> {
        let name = self.spec.program().name();
        self.process.as_mut().with_context(|| format!("{name} is not running: it was stopped or killed"))
    }
}

/// Starts the process and waits until it is ready, has died, or has taken too long.
async fn launch<S: ServerSpec>(
    spec: &S,
    installed: &InstalledProgram,
    port: u16,
    data_dir: &DataDir,
) -> anyhow::Result<ServerProcess> {
    let name = spec.program().name();
    let mut process = ServerProcess::start(name, installed, &spec.arguments(port), data_dir).await?;
    let ready = timeout(S::READY_WAIT_MAX, spec.ready(port, process.id()));
    tokio::select! {
        status = process.ended() => {
            let (status, log, output) = (status?, process.log().clone(), process.output());
            bail!(ServerExit { name, status, port, log, output })
        }
        ready = ready => match ready {
            Ok(ready) => {
                ready.with_context(|| format!("could not make {name} on port {port} ready"))?;
                Ok(process)
            }
            Err(_) => bail!(
                "{name} on port {port} was not ready within {:?}; from {}:\n{}",
                S::READY_WAIT_MAX,
                process.log().display(),
                tail(&process.output())
            ),
        }
    }
}

fn is_port_taken(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ServerExit>().is_some_and(|died| died.cause() == ExitCause::PortTaken)
}
