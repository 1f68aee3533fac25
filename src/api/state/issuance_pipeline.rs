//! The way of a request: reserved, queued, decided in the ledger, looked up and waited for.

use std::sync::Arc;

use super::drain_rate::DrainRate;
use crate::issuance::{Feed, Ledger, Lookup, Reservations};
use crate::redis::Partition;

/// Reserves units, and finds what became of each issuance.
pub(crate) struct IssuancePipeline {
    pub partition: Arc<Partition>,
    pub reservations: Reservations,
    pub ledger: Ledger,
    pub lookup: Lookup,
    pub feed: Feed,
    pub drain_rate: DrainRate,
}
