//! The figures of the whole service on the wire.

use serde::Serialize;
use utoipa::ToSchema;

use super::coupon::Coupon;
use super::queue::{Queue, Worker};

/// One reading.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Figures {
    pub queue: Queue,
    pub workers: Vec<Worker>,
    /// The newest twenty of the current ones, with their stock.
    pub coupons: Vec<Coupon>,
}
