//! How much a user, an address, or all clients together may ask of this process.

mod open_requests;
mod rate_limits;
mod slots;

use std::sync::Arc;
use std::time::Duration;

pub(crate) use open_requests::{OpenRequest, OpenRequestLimits};
pub(crate) use rate_limits::{AddressLimit, CountOutcome, RateLimitFields, UserLimit};
pub(crate) use slots::{Slot, Slots};

use crate::access::{Access, Caller};
use crate::config::IngressConfig;
use crate::http::Problem;
use crate::http::server::Bounds;
use crate::redis::Partitions;

/// The longest wait for a slot for a list.
const LIST_WAIT_MAX: Duration = Duration::from_secs(1);

/// The limits on what comes in.
pub(crate) struct RequestLimits {
    /// The connections that the listeners accept.
    pub connections: Bounds,
    pub user: UserLimit,
    /// `None` counts no address.
    pub address: Option<AddressLimit>,
    pub open_requests: OpenRequestLimits,
    /// Lists that callers without a key read: a page is hundreds of records and figures, and anyone may request one.
    public_lists: Slots,
    /// Streams of live figures.
    pub figures: Slots,
    /// Exports under way.
    pub exports: Slots,
    /// Requests that follow the outcomes. Each keeps one of this process's connections to MongoDB busy.
    pub followers: Slots,
}

impl RequestLimits {
    /// The limits of the configuration, with nothing counted yet.
    pub fn start(config: &IngressConfig, access: &Arc<Access>, partitions: &Partitions) -> Self {
        let partition = partitions.first();
        RequestLimits {
            connections: config.bounds(),
            user: UserLimit::start(config, partition),
            address: AddressLimit::start(config, access, partition),
            open_requests: OpenRequestLimits::new(config),
            public_lists: Slots::new(8, 2_000),
            figures: Slots::new(50, 10_000),
            exports: Slots::new(8, 10_000),
            followers: Slots::new(16, 5_000),
        }
    }

    /// Waits for a slot for a list, unless the caller has a key.
    ///
    /// # Errors
    /// 503 `overloaded` if none is free in time.
    pub async fn list_slot(&self, caller: &Caller) -> Result<Option<Slot>, Problem> {
        if matches!(caller, Caller::Key { .. }) {
            return Ok(None);
        }
        self.public_lists.wait(LIST_WAIT_MAX).await.map(Some)
    }
}
