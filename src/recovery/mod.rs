//! What makes Redis's data trustworthy, and builds it again when it is not.
//!
//! A partition's data may be used only under its certificate: the open epoch, and the Redis instance
//! that it was opened on. Every script checks it (`certificate.lua`). A restart, a flush, a rewind, a
//! promoted replica: the certificate does not fit, every script refuses, the API answers 503, and one
//! recoverer ([`Keeper`], under a lease in MongoDB) recovers: data that is intact is certified as it
//! is (`verify`); else the partition is rebuilt under a new epoch from the ledger and from what is
//! still in flight (`rebuild`). The first boot is a recovery of nothing.
//!
//! A certificate that fits is not enough: it must be that of the latest opening that MongoDB remembers
//! (`fence`). So a ledger is served by one Redis, whatever addresses lead to.
//!
//! A coupon gets into Redis through one script, computed in one way from the ledger and from what is in flight
//! for it: by a rebuild if something is, else by the [`Loader`] when somebody asks for it. [`keep_loading`] loads
//! what nobody asks for. It leaves by [`retire`] when it is over.

mod certificate;
mod fence;
mod forget;
mod id_secrets;
mod keep_loading;
mod keeper;
mod lease;
mod load;
mod picture;
mod progress;
mod rebuild;
mod recover;
mod refill;
mod retire;
mod settings;
mod staging;
mod survivors;
mod units;
mod verify;

pub use certificate::{Writable, is_certified, writable};
pub(crate) use fence::Fence;
pub use id_secrets::IdSecrets;
pub use keep_loading::{CURRENT_MAX, keep_loading};
pub use keeper::{Keeper, Kept, Standing, standing, wrong_ledger};
pub use lease::Lease;
pub use load::{Loaded, Loader};
pub use progress::{Step, Watch, unwatched};
pub use recover::{How, Recovered, Recovery};
pub(crate) use retire::members;
pub use retire::{KEPT_AFTER_END, keep_retiring, loaded, retire};
pub use settings::{Durability, check as check_settings};
pub(crate) use survivors::{coupons_in_flight, users_in_flight};
