//! How fast a worker drains, over a raw bulk insert of the same documents.
//!
//! Each round queues a backlog and lets one worker process drain it; then the very documents that it
//! wrote are read back and inserted with the same indexes and the same write concern, with as many
//! inserts at once as a worker has, in batches of several sizes, each in the order in which the ledger
//! inserts. The best size counts. In the order of the units, as one would write it, MongoDB takes much
//! longer; that is measured beside it, with the smallest size. Each has a
//! mongod of its own. Both are timed to the last durable document; the worker from the first that is
//! seen, as its start is no part of it.

use std::time::Instant;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use mongodb::bson::{RawDocumentBuf, doc};
use serde::Serialize;

use super::backlog::{BATCH_MAX, queue};
use super::context::BenchContext;
use super::env::BenchEnv;
use super::report::{FigureRow, FigureTarget, row};
use super::spread::Spread;
use crate::dev::servers::{MongoServer, Persistence};
use crate::issuance::ledger::queries::by_unit;
use crate::issuance::ledger::{COLLECTION, Layout, indexes, order};
use crate::mongo;

/// Sizes of raw inserts.
const RAW_BATCHES: [usize; 3] = [500, 1_000, 2_000];
/// Raw inserts at once: a worker's batches in hand, as shipped.
const RAW_AT_ONCE: usize = 4;
/// Workers at once.
const WORKERS: [usize; 2] = [2, 4];

/// Durable issuances per second.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainFigures {
    /// One worker process over the raw insert: the median of the rounds' ratios. To be 0.75 or more.
    pub drain_ratio: f64,
    /// One worker process.
    pub drained_per_second: Spread,
    /// The raw insert in batches of the best size.
    pub raw_per_second: Spread,
    /// That size.
    pub raw_batch: usize,
    /// One worker process over the raw insert in the order of the units, in batches of the smallest size.
    pub drain_unit_order_ratio: f64,
    pub raw_unit_order_per_second: Spread,
    /// By the number of worker processes: 1, 2, 4.
    pub drain_scaling: Vec<WorkerScaling>,
    /// Entries in a backlog.
    pub entries: u32,
}

/// So many worker processes drain one backlog.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerScaling {
    pub workers: usize,
    pub drained_per_second: f64,
}

pub(super) async fn measure(context: &BenchContext<'_>) -> anyhow::Result<DrainFigures> {
    let (rounds, entries) = (context.sizes.rounds, context.sizes.backlog);
    let mut drained = Vec::new();
    let mut unit_order = Vec::new();
    let mut raw = RAW_BATCHES.map(|batch| (batch, Vec::new()));
    for round in 1..=rounds {
        context.say(&format!("drain: round {round} of {rounds}, one worker"));
        let env = BenchEnv::make(context, Persistence::FsyncAlways).await?;
        drained.push(drain(&env, entries, 1).await?);
        context.say(&format!("drain: round {round} of {rounds}, raw inserts"));
        let documents = documents(&env).await?;
        // Its mongod still writes to disk what it has taken in, and would do so beside the next one.
        env.close().await?;
        for (batch, rates) in &mut raw {
            rates.push(insert(context, &documents, *batch, InsertOrder::Ledgers).await?);
        }
        unit_order.push(insert(context, &documents, RAW_BATCHES[0], InsertOrder::Units).await?);
    }
    let drained_per_second = Spread::of(drained);
    let raw = raw.map(|(batch, rates)| (batch, Spread::of(rates)));
    let best = raw.into_iter().max_by(|(_, one), (_, other)| one.median.total_cmp(&other.median));
    let Some((raw_batch, raw_per_second)) = best else { unreachable!("there are three sizes") };
    let mut drain_scaling = vec![WorkerScaling { workers: 1, drained_per_second: drained_per_second.median }];
    for workers in WORKERS {
        context.say(&format!("drain: {workers} workers"));
        let env = BenchEnv::make(context, Persistence::FsyncAlways).await?;
        drain_scaling
            .push(WorkerScaling { workers, drained_per_second: drain(&env, entries, workers).await? });
        env.close().await?;
    }
    let raw_unit_order_per_second = Spread::of(unit_order);
    Ok(DrainFigures {
        drain_ratio: drained_per_second.over(&raw_per_second).median,
        drain_unit_order_ratio: drained_per_second.over(&raw_unit_order_per_second).median,
        drained_per_second,
        raw_per_second,
        raw_batch,
        raw_unit_order_per_second,
        drain_scaling,
        entries,
    })
}

/// Queues a backlog, and lets workers drain it.
async fn drain(env: &BenchEnv, entries: u32, workers: usize) -> anyhow::Result<f64> {
    let coupon = env.coupon(entries).await?;
    queue(env.backends.partitions.first(), &coupon, 0..entries, BATCH_MAX).await?;
    let workers = futures::future::try_join_all((0..workers).map(|_| env.worker()));
    let (workers, drained) = tokio::join!(workers, env.drained(&coupon, entries));
    let (before, took) = drained?;
    for worker in workers? {
        worker.stop().await?;
    }
    Ok(f64::from(entries - before) / took.as_secs_f64())
}

/// Everything in the ledger, by unit.
async fn documents(env: &BenchEnv) -> anyhow::Result<Vec<RawDocumentBuf>> {
    let records = env.backends.database.collection::<RawDocumentBuf>(COLLECTION);
    let found = mongo::run("read all records", async move {
        records
            .find(doc! {})
            .sort(by_unit(Layout::Partitioned))
            .allow_disk_use(true)
            .await?
            .try_collect()
            .await
    });
    Ok(found.await?)
}

/// In which order the documents of a batch are inserted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InsertOrder {
    /// The highest unit first, as the ledger does.
    Ledgers,
    Units,
}

/// Inserts documents, given by unit, into a MongoDB that has the indexes and nothing else.
async fn insert(
    context: &BenchContext<'_>,
    documents: &[RawDocumentBuf],
    batch: usize,
    inserted: InsertOrder,
) -> anyhow::Result<f64> {
    let folder = context.next_folder();
    let mut mongodb = MongoServer::start(context.mongod(folder.clone())).await?;
    let database = mongo::connect(&mongodb.url(), "bench").await.map_err(anyhow::Error::msg)?;
    let missing = indexes::ensure(&database, Layout::Partitioned).await?;
    anyhow::ensure!(missing.is_empty(), "{}", missing.join("; "));
    let records = database.collection::<RawDocumentBuf>(COLLECTION);
    let started = Instant::now();
    stream::iter(documents.chunks(batch))
        .map(|documents| {
            let (records, mut documents) = (records.clone(), documents.to_vec());
            if inserted == InsertOrder::Ledgers {
                order::arrange(&mut documents);
            }
            mongo::run("insert", async move { records.insert_many(documents).ordered(false).await })
        })
        .buffer_unordered(RAW_AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
    let took = started.elapsed();
    mongo::close(&database).await;
    mongodb.kill().await?;
    std::fs::remove_dir_all(&folder).context("cannot delete a folder of the bench")?;
    Ok(documents.len() as f64 / took.as_secs_f64())
}

impl DrainFigures {
    pub(super) fn rows(&self) -> Vec<FigureRow> {
        let mut rows = vec![
            row("drainRatio", self.drain_ratio, "one worker over a raw insert of the same documents")
                .with_target(FigureTarget::AtLeast(0.75)),
            row("drainedPerSecond", self.drained_per_second.median, "").over(&self.drained_per_second),
            row("rawPerSecond", self.raw_per_second.median, &format!("in batches of {}", self.raw_batch))
                .over(&self.raw_per_second),
            row(
                "drainUnitOrderRatio",
                self.drain_unit_order_ratio,
                "the same, inserted in the order of the units",
            ),
            row("rawUnitOrderPerSecond", self.raw_unit_order_per_second.median, "")
                .over(&self.raw_unit_order_per_second),
        ];
        rows.extend(self.drain_scaling.iter().map(|scaling| {
            row(&format!("drainScaling, {}", scaling.workers), scaling.drained_per_second, "worker processes")
        }));
        rows
    }
}
