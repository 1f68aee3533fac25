//! A server's data folder, held by one server at a time.
//!
//! Two redis-servers would write the same append-only file without noticing each other. The lock is
//! shared with the server process (it is its stdin), so it is free exactly when both the server and
//! whoever started it are gone, also after `kill -9`.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use super::POLL_INTERVAL;

/// How long a server that is being killed may still hold its folder.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    lock: File,
}

impl DataDir {
    /// Creates the folder if need be, and takes it for the server called `name`.
    pub(super) async fn open(path: &Path, name: &str) -> anyhow::Result<Self> {
        let path = std::path::absolute(path)
            .with_context(|| format!("could not resolve the data folder {}", path.display()))?;
        fs::create_dir_all(&path)
            .with_context(|| format!("could not create the data folder {}", path.display()))?;
        // Not "mongod.lock", which mongod takes for itself.
        let lock_path = path.join(format!("{name}.in-use"));
        let lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .with_context(|| format!("could not open {}", lock_path.display()))?;
        let deadline = Instant::now() + LOCK_WAIT_MAX;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { path, lock }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    sleep(POLL_INTERVAL).await;
                }
                Err(TryLockError::WouldBlock) => bail!(
                    "another {name} is running on the data folder {}; end the program that started it, or use another folder",
                    path.display()
                ),
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("could not lock {}", lock_path.display()));
                }
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The lock, for the server process to hold as well.
    pub(super) fn share_lock(&self) -> anyhow::Result<Stdio> {
        let lock = self.lock.try_clone().context("could not share the lock")?;
        Ok(Stdio::from(lock))
    }
}
