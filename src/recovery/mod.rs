//! Certifies that Redis's data is what was left there, and rebuilds it when it is not.
//!
//! A partition's data may be used only under its certificate: the open epoch, and the Redis instance
//! that it was opened on. Every script checks it (`certificate.lua`). A restart, a flush, a rewind, a
//! promoted replica: then the certificate does not fit, every script refuses, the API responds 503, and one
//! recoverer ([`RecoverySupervisor`], under a lease in MongoDB) recovers: data that is intact is certified as it
//! is (`verify`); else the partition is rebuilt under a new epoch from the ledger and from what is
//! still in flight (`rebuild`). The first boot is a recovery of nothing.
//!
//! A certificate that fits is not enough: it must be that of the latest opening that MongoDB remembers
//! (`fence`). So a ledger is served by one Redis, whatever addresses lead to.
//!
//! A coupon gets into Redis through one script, computed in one way from the ledger and from what is in flight
//! for it: by a rebuild if something is, else by the [`Loader`] when a request asks for it. `keep_loading` loads
//! the others. It leaves by [`retire`] when it is over.

mod certificate;
mod coupon_state;
mod deployment;
mod fence;
mod keep_loading;
mod lease;
mod load;
mod old_epochs;
mod progress;
mod rebuild;
mod recover;
mod refill;
mod retire;
mod settings;
mod staging;
mod supervisor;
mod survivors;
mod verify;

pub use certificate::is_certified;
pub(crate) use certificate::{Writable, writable};
pub use deployment::Deployment;
pub(crate) use fence::Fences;
pub(crate) use keep_loading::{CURRENT_MAX, keep_loading};
pub use lease::Lease;
pub use load::{LoadOutcome, Loader, load_all};
pub use progress::{ProgressCallback, RecoveryStep, ignore_progress};
pub use recover::{RecoveryMode, RecoveryOutcome};
pub use retire::{KEPT_AFTER_END, loaded_coupons, retire};
pub(crate) use retire::{keep_retiring, loaded_members};
pub use settings::{Durability, SettingsReport};
pub(crate) use settings::{check as check_settings, check_all as check_all_settings};
pub use supervisor::{CertifyOutcome, RecoverySupervisor};
pub(crate) use supervisor::{OpeningStatus, opening_status, wrong_ledger};
pub(crate) use survivors::{coupons_in_flight, users_in_flight};
