//! The way of a request: reserved, queued, decided in the ledger, looked up and waited for.

use std::sync::Arc;
use std::time::Duration;

use super::drain_rate::{DrainRate, WaitEstimate};
use super::placements::PlacementReader;
use crate::Failure;
use crate::http::{Code, Problem};
use crate::ids::IssuanceId;
use crate::issuance::pressure::TurnedAway;
use crate::issuance::reserve::QueuedIssuance;
use crate::issuance::shares::Refills;
use crate::issuance::{Feed, Ledger, Lookup, Reservations};
use crate::mongo::Database;
use crate::recovery::Deployment;
use crate::redis::{Partition, Partitions, PerPartition};
use crate::runtime::batch::{Batcher, Bounds};

/// A poll of a partition that this process does not know waits no longer than this for the number of partitions.
const GROWN: Bounds = Bounds { batch: 4_096, calls: 1, waiting: 8_192, wait: Duration::from_secs(2) };

/// Starts the reader of the number of partitions.
pub(super) fn start_grown(database: &Database) -> Batcher<(), u16> {
    let database = database.clone();
    Batcher::start("read the number of partitions", GROWN, move |asked: Vec<()>| {
        let database = database.clone();
        async move {
            let partitions = Deployment::partitions_linearizable(&database).await?;
            Ok(asked.iter().map(|()| Ok(partitions)).collect())
        }
    })
}

/// Reserves units, and finds what became of each issuance.
pub(crate) struct IssuancePipeline {
    pub partitions: Partitions,
    /// The way into each partition.
    pub lanes: PerPartition<Lane>,
    pub placements: Arc<PlacementReader>,
    /// Reads the number of partitions, once for all who ask at the same time.
    pub grown: Batcher<(), u16>,
    /// Moves units to shares of coupons that are empty.
    pub refills: Refills,
    pub ledger: Ledger,
    pub lookup: Lookup,
    pub feed: Feed,
    /// Counts the requests that are refused before it is known where they go.
    pub turned_away: TurnedAway,
}

/// The way of requests into one partition.
pub(crate) struct Lane {
    pub reservations: Reservations,
    pub drain_rate: DrainRate,
}

impl IssuancePipeline {
    /// The partition of an issuance that a client names.
    ///
    /// # Errors
    ///
    /// 404 `issuance-not-found` if the deployment has no such partition; 503 if this process does not know it yet, or
    /// MongoDB does not answer.
    pub async fn partition_of(&self, id: IssuanceId) -> Result<&Arc<Partition>, Problem> {
        let unknown = match self.partitions.get(id.partition()) {
            Ok(partition) => return Ok(partition),
            Err(unknown) => unknown,
        };
        Err(if id.partition().number() > self.grown.ask(()).await? {
            Problem::new(Code::IssuanceNotFound)
        } else {
            unknown.into()
        })
    }

    /// The way into the partition of an issuance.
    ///
    /// # Errors
    ///
    /// If this process does not know the partition.
    pub fn lane_of(&self, id: IssuanceId) -> Result<&Lane, Failure> {
        self.lanes.get(id.partition())
    }

    /// How long an issuance will wait, by the rate at which its partition drains.
    pub fn estimate(&self, queued: &QueuedIssuance) -> WaitEstimate {
        let lane = self.lane_of(queued.id).unwrap_or_else(|_| self.lanes.first());
        lane.drain_rate.estimate(&queued.progress)
    }

    /// Whether every request for a unit would be refused now, because too many wait in each partition.
    pub fn refuses(&self) -> bool {
        self.lanes.iter().all(|lane| lane.reservations.refuses())
    }
}
