//! What makes Redis's data trustworthy, and builds it again when it is not.
//!
//! A partition's data may be used only under its certificate: the open epoch, and the Redis instance
//! that it was opened on. Every script checks it (`certificate.lua`). A restart, a flush, a rewind, a
//! promoted replica: the certificate does not fit, every script refuses, the API answers 503, and one
//! recoverer ([`Keeper`], under a lease in MongoDB) rebuilds the partition under a new epoch from
//! the ledger and from what is still in flight. The first boot is a recovery of nothing.

mod check;
mod epoch;
mod keeper;
mod lease;
mod load;
mod rebuild;
mod settings;

pub use check::is_certified;
pub use epoch::Epoch;
pub use keeper::Keeper;
pub use load::{Loaded, load};
pub use rebuild::{Rebuilt, rebuild};
pub use settings::{Durability, check as check_settings};
