//! Where the bench works: a temporary folder, a mongod in it, and how much of everything there is to
//! be.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::Context;
use tempfile::TempDir;

use super::spread::Spread;
use crate::boot::SetUpError;
use crate::dev::servers::{MongoOptions, MongoServer, find_all};

const FSYNCS: usize = 100;
const FSYNC_BYTES: usize = 4_096;

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Sizes {
    /// Rounds of what is compared, each with everything that is compared.
    pub rounds: usize,
    /// Requests in one burst.
    pub burst: u32,
    /// Connections of the generator.
    pub connections: usize,
    /// Entries of a backlog that is drained.
    pub backlog: u32,
    /// How long requests come at half the saturated rate.
    pub latency_seconds: u32,
    /// Reservations, and calls, of one figure of Redis's at most.
    pub reservations: u32,
    pub calls: u32,
    /// Entries whose memory is weighed.
    pub weighed: u32,
    /// Settled users beside whom reservations are made.
    pub settled: &'static [u32],
}

impl Sizes {
    /// For figures to be kept.
    pub const FULL: Sizes = Sizes {
        rounds: 5,
        burst: 30_000,
        connections: 256,
        backlog: 100_000,
        latency_seconds: 15,
        reservations: 25_600,
        calls: 3_000,
        weighed: 100_000,
        settled: &[0, 100_000, 1_000_000],
    };

    /// For a look, and for continuous integration.
    pub const QUICK: Sizes = Sizes {
        rounds: 3,
        burst: 2_000,
        connections: 64,
        backlog: 4_000,
        latency_seconds: 2,
        reservations: 1_280,
        calls: 100,
        weighed: 5_000,
        settled: &[0, 5_000, 20_000],
    };
}

/// Tells what is being done, in a line.
pub type Tell<'a> = &'a (dyn Fn(&str) + Sync);

/// See the module's documentation.
pub struct Lab<'a> {
    mongodb: MongoServer,
    beds: AtomicU32,
    pub(super) sizes: Sizes,
    tell: Tell<'a>,
    // Last, so that it is deleted after mongod has ended.
    folder: TempDir,
}

impl<'a> Lab<'a> {
    /// Makes a folder inside `parent`, and starts mongod in it.
    pub async fn open(parent: &Path, sizes: Sizes, tell: Tell<'a>) -> anyhow::Result<Self> {
        let made = std::fs::create_dir_all(parent)
            .and_then(|()| tempfile::Builder::new().prefix("coupon-bench-").tempdir_in(parent));
        let folder = made.map_err(|error| {
            SetUpError(vec![format!("no folder can be made in {} (--folder): {error}", parent.display())])
        })?;
        find_all(tell).await?;
        let mongodb = MongoServer::start(MongoOptions::new(folder.path().join("mongodb"))).await?;
        Ok(Lab { mongodb, beds: AtomicU32::new(0), sizes, tell, folder })
    }

    /// Stops mongod and deletes the folder.
    pub async fn close(mut self) -> anyhow::Result<()> {
        self.mongodb.kill().await?;
        self.folder.close().context("the folder of the bench cannot be deleted")
    }

    pub(super) fn say(&self, what: &str) {
        (self.tell)(what);
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn mongodb_uri(&self) -> String {
        self.mongodb.url()
    }

    /// Of mongod.
    pub(super) fn mongodb_pid(&self) -> anyhow::Result<u32> {
        self.mongodb.pid().context("mongod has ended")
    }

    /// A name for a folder and a database that nothing else has.
    pub(super) fn next_name(&self) -> String {
        format!("bench-{}", self.beds.fetch_add(1, Ordering::Relaxed))
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
