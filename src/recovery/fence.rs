//! What MongoDB remembers of openings, so that one ledger is served by one Redis: its `recovery` document
//! names the term, the epoch and the Redis instance of the latest opening, and says when a process last saw
//! that instance serve. An opening is written there before it is made in Redis, under the lease. So a second
//! Redis, an old primary that comes back and an address that is changed step by step are noticed before
//! anything is answered from them.
//!
//! Terms, not clocks, say which of two openings is the later. A document that names an earlier opening than
//! Redis carries was not kept up by the program that opened it (one that does not know of this): the later
//! opening counts, and is remembered when it is next confirmed.

use std::time::Duration;

use crate::mongo::Database;
use futures::future::BoxFuture;
use mongodb::Collection;
use mongodb::bson::{Document, doc};
use mongodb::options::ReadConcern;

use super::lease::id;
use crate::ids::PartitionId;
use crate::redis::{Epoch, OpenCertificate, Opening, OpeningCheck};
use crate::{Failure, mongo};

/// How often a process confirms that the instance it uses serves; all of a deployment write once for it.
pub(super) const CONFIRM_EVERY: Duration = Duration::from_secs(1);
/// An instance that no process has confirmed for this long does not serve any more.
pub(super) const SILENT_AFTER: Duration = Duration::from_secs(5);

/// The longest that one read may take: a linearizable one waits for a majority.
const READ_MAX: Duration = Duration::from_secs(5);

/// What MongoDB remembers of the openings of a partition: which Redis was opened last, and when it last served.
#[derive(Debug, Clone)]
pub(crate) struct Fence {
    leases: Collection<Document>,
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

impl Fence {
    pub(crate) fn new(database: &Database, partition: PartitionId) -> Self {
        Fence { leases: database.collection("recovery"), partition }
    }

    /// The latest opening that is remembered.
    pub(super) async fn latest(&self) -> Result<Option<LatestOpening>, Failure> {
        self.read(ReadConcern::majority()).await
    }

    async fn read(&self, concern: ReadConcern) -> Result<Option<LatestOpening>, Failure> {
        let (leases, id) = (self.leases.clone(), id(self.partition));
        let wanted = doc! {
            "opened": 1,
            "servedAt": {"$convert": {"input": "$servedAt", "to": "long", "onError": 0_i64, "onNull": 0_i64}},
            "now": {"$toLong": "$$NOW"},
        };
        let found = mongo::run("read which Redis was opened last", async move {
            leases
                .find_one(doc! {"_id": id})
                .projection(wanted)
                .read_concern(concern)
                .max_time(READ_MAX)
                .await
        });
        Ok(found.await?.as_ref().and_then(latest_of))
    }

    /// Confirms that this opening serves.
    pub(super) async fn confirm(&self, opening: Opening) -> Result<ConfirmOutcome, Failure> {
        let latest = match self.latest().await? {
            Some(latest) if latest.term > opening.term => return Ok(ConfirmOutcome::Superseded),
            Some(latest) if latest.term == opening.term => latest,
            _ => return Ok(ConfirmOutcome::NotRemembered),
        };
        if latest.silent >= CONFIRM_EVERY {
            let mine = doc! {"_id": id(self.partition), "opened.term": opening.term};
            self.write("confirm that Redis serves", mine, doc! {"servedAt": "$$NOW"}).await?;
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
        let leases = self.leases.clone();
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
            let latest = self.read(ReadConcern::linearizable()).await?;
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
