//! What MongoDB remembers of openings, so that one ledger is served by one Redis: its `recovery` document
//! names the term, the epoch and the Redis instance of the latest opening, and says when a process last saw
//! that instance serve. An opening is written there before it is made in Redis, under the lease. So a second
//! Redis, an old primary that comes back and an address that is changed step by step are noticed before
//! anything is answered from them.
//!
//! Terms, not clocks, say which of two openings is the later. A document that names an earlier opening than
//! Redis carries was not kept up by the program that opened it (one that does not know of this): the later
//! opening counts, and is remembered when it is next confirmed.

use std::collections::HashMap;
use std::time::Duration;

use crate::mongo::Database;
use futures::future::BoxFuture;
use mongodb::Collection;
use mongodb::bson::{Document, doc};
use mongodb::options::{FindOptions, ReadConcern};

use super::lease::id;
use crate::ids::PartitionId;
use crate::redis::{Epoch, OpenCertificate, Opening, OpeningCheck};
use crate::runtime::batch::{Batcher, Bounds};
use crate::{Failure, mongo};

/// How often a process confirms that the instance it uses serves; all of a deployment write once for it.
pub(super) const CONFIRM_EVERY: Duration = Duration::from_secs(1);
/// An instance that no process has confirmed for this long does not serve any more.
pub(super) const SILENT_AFTER: Duration = Duration::from_secs(5);

/// The longest that one read may take: a linearizable one waits for a majority.
const READ_MAX: Duration = Duration::from_secs(5);

/// Partitions that are asked about with one query; all that a process has.
const BOUNDS: Bounds = Bounds { batch: 2_048, calls: 2, waiting: 8_192, wait: READ_MAX };

/// The fences of all partitions of a process. What is asked of many of them at the same time is one query. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Fences {
    leases: Collection<Document>,
    latest: Batcher<PartitionId, Option<LatestOpening>>,
    /// Notes that these partitions serve, each under the opening with this term.
    serving: Batcher<(PartitionId, i64), ()>,
}

impl Fences {
    /// Starts the batchers.
    pub(crate) fn start(database: &Database) -> Self {
        let leases: Collection<Document> = database.collection("recovery");
        let of_latest = leases.clone();
        let latest = Batcher::start("read which Redis was opened last", BOUNDS, move |ids: Vec<_>| {
            let leases = of_latest.clone();
            async move {
                let found = read(leases, &ids, ReadConcern::majority()).await?;
                Ok(ids.iter().map(|id| Ok(found.get(id).cloned())).collect())
            }
        });
        let of_serving = leases.clone();
        let serving = Batcher::start("confirm that Redis serves", BOUNDS, move |mine: Vec<_>| {
            let leases = of_serving.clone();
            async move {
                let filter =
                    mine.iter().map(|(partition, term)| doc! {"_id": id(*partition), "opened.term": *term});
                let filter = doc! {"$or": filter.collect::<Vec<_>>()};
                let update = vec![doc! {"$set": {"servedAt": "$$NOW"}}];
                let written = mongo::run("confirm that Redis serves", async move {
                    leases.update_many(filter, update).await
                });
                written.await?;
                Ok(mine.iter().map(|_| Ok(())).collect())
            }
        });
        Fences { leases, latest, serving }
    }

    /// That of one partition.
    pub(crate) fn of(&self, partition: PartitionId) -> Fence {
        Fence { all: self.clone(), partition }
    }
}

/// What MongoDB remembers of the openings of a partition: which Redis was opened last, and when it last served.
#[derive(Clone)]
pub(crate) struct Fence {
    all: Fences,
    partition: PartitionId,
}

/// The latest opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LatestOpening {
    pub term: i64,
    /// Where it is: see [`Partition::instance`](crate::redis::Partition::instance).
    pub instance: String,
    /// When it was last seen to serve, by MongoDB's clock, in milliseconds.
    pub served_at: i64,
    /// How long ago that was.
    pub silent: Duration,
}

/// The outcome of confirming an opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConfirmOutcome {
    /// The opening is the latest.
    Latest,
    /// The opening is later than the one that is remembered.
    NotRemembered,
    /// Another Redis has been opened since.
    Superseded,
}

/// Reads the latest openings of partitions, of those that one is remembered of.
async fn read(
    leases: Collection<Document>,
    partitions: &[PartitionId],
    concern: ReadConcern,
) -> Result<HashMap<PartitionId, LatestOpening>, Failure> {
    let wanted = doc! {
        "opened": 1,
        "servedAt": {"$convert": {"input": "$servedAt", "to": "long", "onError": 0_i64, "onNull": 0_i64}},
        "now": {"$toLong": "$$NOW"},
    };
    let options = FindOptions::builder().projection(wanted).read_concern(concern).max_time(READ_MAX).build();
    let filter = match partitions {
        [one] => doc! {"_id": id(*one)},
        several => doc! {"_id": {"$in": several.iter().copied().map(id).collect::<Vec<_>>()}},
    };
    let found: Vec<Document> =
        mongo::find("read which Redis was opened last", &leases, filter, options).await?;
    let latest = |lease: &Document| {
        let partition = PartitionId::new(u16::try_from(lease.get_i32("_id").ok()?).ok()?)?;
        Some((partition, latest_of(lease)?))
    };
    Ok(found.iter().filter_map(latest).collect())
}

impl Fence {
    /// The latest opening that is remembered.
    pub(super) async fn latest(&self) -> Result<Option<LatestOpening>, Failure> {
        self.all.latest.ask(self.partition).await
    }

    /// Confirms that this opening serves.
    pub(super) async fn confirm(&self, opening: Opening) -> Result<ConfirmOutcome, Failure> {
        let latest = match self.latest().await? {
            Some(latest) if latest.term > opening.term => return Ok(ConfirmOutcome::Superseded),
            Some(latest) if latest.term == opening.term => latest,
            _ => return Ok(ConfirmOutcome::NotRemembered),
        };
        if latest.silent >= CONFIRM_EVERY {
            self.all.serving.ask((self.partition, opening.term)).await?;
        }
        Ok(ConfirmOutcome::Latest)
    }

    /// Remembers an opening that another program made, unless a later one is remembered by now.
    pub(super) async fn remember(&self, opening: Opening, instance: &str) -> Result<(), Failure> {
        let older = doc! {
            "_id": id(self.partition),
            "$or": [{"opened.term": {"$lt": opening.term}}, {"opened.term": {"$not": {"$type": "number"}}}],
        };
        let known = opened(opening.term, opening.epoch, instance);
        self.write("remember which Redis was opened last", older, known).await.map(drop)
    }

    async fn write(&self, operation: &'static str, filter: Document, set: Document) -> Result<bool, Failure> {
        let leases = self.all.leases.clone();
        let update = vec![doc! {"$set": set}];
        let written = mongo::run(operation, async move { leases.update_one(filter, update).await });
        Ok(written.await?.matched_count == 1)
    }
}

impl OpeningCheck for Fence {
    fn admits<'a>(&'a self, open: &'a OpenCertificate) -> BoxFuture<'a, Result<bool, Failure>> {
        Box::pin(async move {
            Ok(match self.latest().await? {
                None => true,
                Some(latest) if latest.term == open.opening.term => latest.instance == open.instance,
                Some(latest) => latest.term < open.opening.term,
            })
        })
    }

    fn is_latest(&self, opening: Opening) -> BoxFuture<'_, Result<bool, Failure>> {
        Box::pin(async move {
            // A linearizable read is one of a single document.
            let one = [self.partition];
            let latest =
                read(self.all.leases.clone(), &one, ReadConcern::linearizable()).await?.remove(&one[0]);
            Ok(latest.is_none_or(|latest| latest.term <= opening.term))
        })
    }
}

/// The fields that remember an opening.
pub(super) fn opened(term: i64, epoch: Epoch, instance: &str) -> Document {
    doc! {
        "opened": {"term": term, "epoch": epoch.to_string(), "instance": instance},
        "servedAt": "$$NOW",
    }
}

/// Nothing, if it is not there or of another shape: then the next opening is remembered over it.
fn latest_of(lease: &Document) -> Option<LatestOpening> {
    let opened = lease.get_document("opened").ok()?;
    let served_at = lease.get_i64("servedAt").ok()?;
    let silent = lease.get_i64("now").ok()? - served_at;
    Some(LatestOpening {
        term: opened.get_i64("term").ok()?,
        instance: opened.get_str("instance").ok()?.to_owned(),
        served_at,
        // One from the future: the clock was put back, and no process can have confirmed it since.
        silent: u64::try_from(silent).map_or(SILENT_AFTER, Duration::from_millis),
    })
}
