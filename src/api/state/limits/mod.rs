//! How much a user, an address, or all clients together may ask of this process.

mod open_requests;
mod public_lists;
mod rate_limits;
mod slots;

use std::sync::Arc;

pub(crate) use open_requests::{OpenRequest, OpenRequestLimits};
pub(crate) use public_lists::PublicLists;
pub(crate) use rate_limits::{AddressLimit, UserLimit};
pub(crate) use slots::{Slot, Slots};

use crate::access::Access;
use crate::config::IngressConfig;
use crate::http::server::Bounds;
use crate::redis::Partition;

/// The limits on what comes in.
pub(crate) struct RequestLimits {
    /// Of a listener.
    pub connections: Bounds,
    pub user: UserLimit,
    /// `None` counts no address.
    pub address: Option<AddressLimit>,
    pub open_requests: OpenRequestLimits,
    pub public_lists: PublicLists,
    /// Streams of live figures.
    pub figures: Slots,
    /// Exports under way.
    pub exports: Slots,
    /// Requests that follow the outcomes. Each keeps one of this process's connections to MongoDB busy.
    pub followers: Slots,
}

impl RequestLimits {
    /// The limits of the configuration, with nothing counted yet.
    pub fn start(config: &IngressConfig, access: &Arc<Access>, partition: &Arc<Partition>) -> Self {
        RequestLimits {
            connections: config.bounds(),
            user: UserLimit::start(config, partition),
            address: AddressLimit::start(config, access, partition),
            open_requests: OpenRequestLimits::new(config),
            public_lists: PublicLists::default(),
            figures: Slots::new(50, 10_000),
            exports: Slots::new(8, 10_000),
            followers: Slots::new(16, 5_000),
        }
    }
}
