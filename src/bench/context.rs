//! Where the bench works: a temporary folder, and the sizes of what it measures.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::Context;
use tempfile::TempDir;

use super::spread::Spread;
use crate::dev::servers::{MongoOptions, find_all};
use crate::failure::SetUpError;

const MONGODB_CACHE_GB: f64 = 1.0;
const FSYNCS: usize = 100;
const FSYNC_BYTES: usize = 4_096;

/// The sizes of what is measured.
#[derive(Debug, Clone)]
pub struct BenchSizes {
    /// Rounds of what is compared, each with everything that is compared.
    pub rounds: usize,
    /// Requests in one burst.
    pub burst: u32,
    /// Connections of the generator.
    pub connections: usize,
    /// Entries of a backlog that is drained.
    pub backlog: u32,
    /// How long requests come at half of a saturated rate.
    pub latency_seconds: u32,
    /// Connections over which the requests of an overload come.
    pub callers: usize,
    /// How long requests come at capacity, and at five times that.
    pub overload_seconds: u32,
    /// Issuances that are queued while the append-only file is rewritten.
    pub rewritten: u32,
    /// How long requests come without a rewrite, and with rewrites.
    pub rewrite_seconds: u32,
    /// Reservations, and calls, of one figure of Redis's at most.
    pub reservations: u32,
    pub calls: u32,
    /// Entries whose memory is weighed.
    pub weighed: u32,
}

impl BenchSizes {
    /// For figures to be kept.
    pub const FULL: BenchSizes = BenchSizes {
        rounds: 5,
        burst: 30_000,
        connections: 256,
        backlog: 100_000,
        latency_seconds: 15,
        callers: 12_000,
        overload_seconds: 8,
        rewritten: 500_000,
        rewrite_seconds: 5,
        reservations: 25_600,
        calls: 3_000,
        weighed: 100_000,
    };

    /// For rough figures, and for continuous integration.
    pub const QUICK: BenchSizes = BenchSizes {
        rounds: 3,
        burst: 2_000,
        connections: 64,
        backlog: 4_000,
        latency_seconds: 2,
        callers: 1_000,
        overload_seconds: 1,
        rewritten: 20_000,
        rewrite_seconds: 1,
        reservations: 1_280,
        calls: 100,
        weighed: 5_000,
    };
}

/// Called with a line about what is being measured.
pub type StatusCallback<'a> = &'a (dyn Fn(&str) + Sync);

/// What every section uses: the folder, the sizes, and where it reports what it does.
pub struct BenchContext<'a> {
    names: AtomicU32,
    pub(super) sizes: BenchSizes,
    tell: StatusCallback<'a>,
    folder: TempDir,
}

impl<'a> BenchContext<'a> {
    /// Makes a folder inside `parent`, and finds the server programs.
    ///
    /// # Errors
    ///
    /// [`SetUpError`] if the folder cannot be made; any error of finding redis-server and mongod.
    pub async fn open(parent: &Path, sizes: BenchSizes, tell: StatusCallback<'a>) -> anyhow::Result<Self> {
        let made = std::fs::create_dir_all(parent)
            .and_then(|()| tempfile::Builder::new().prefix("coupon-bench-").tempdir_in(parent));
        let folder = made.map_err(|error| {
            SetUpError(vec![format!("no folder can be made in {} (--folder): {error}", parent.display())])
        })?;
        find_all(tell).await?;
        Ok(BenchContext { names: AtomicU32::new(0), sizes, tell, folder })
    }

    /// Deletes the folder.
    ///
    /// # Errors
    ///
    /// If something in it cannot be deleted.
    pub fn close(self) -> anyhow::Result<()> {
        self.folder.close().context("the folder of the bench cannot be deleted")
    }

    pub(super) fn say(&self, what: &str) {
        (self.tell)(what);
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A mongod for a folder, with a cache that holds all that is written to it: the disk's turns at
    /// evicting are not what is measured.
    pub(super) fn mongod(&self, folder: PathBuf) -> MongoOptions {
        MongoOptions { cache_gb: MONGODB_CACHE_GB, ..MongoOptions::new(folder) }
    }

    /// A folder in it that nothing else has; it is not made.
    pub(super) fn next_folder(&self) -> PathBuf {
        self.folder().join(format!("bench-{}", self.names.fetch_add(1, Ordering::Relaxed)))
    }

    /// How long it takes to write a page to the folder's disk for good, in microseconds: most of what
    /// durability costs.
    pub(super) fn fsync_micros(&self) -> anyhow::Result<f64> {
        let path = self.folder().join("fsync");
        let mut file = std::fs::File::create(&path)?;
        let times = (0..FSYNCS)
            .map(|_| {
                let started = Instant::now();
                file.write_all(&[0; FSYNC_BYTES])?;
                file.sync_data()?;
                Ok(started.elapsed().as_secs_f64() * 1e6)
            })
            .collect::<std::io::Result<Vec<f64>>>()
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Spread::of(times).median)
    }
}
