//! Forgetting people, while the accounts still add up, and not keeping records for ever.
//!
//! `DELETE /users/{id}` marks the user ([`crate::user::UserStore::mark_deleted`]) and gives them a
//! pseudonym. From then on they are unknown to MongoDB. An API process remembers users without asking, so
//! it learns of deletions all the time ([`DeletionWatcher`]), and stops trusting its memory when it has not for half of the
//! time after which a deletion is due. Once it is due, the [`Eraser`] waits until nothing of the user is in flight,
//! renames their records, and at last removes the user: then the id can be registered anew, by a new
//! person who holds nothing.
//!
//! The order of it, each step safe to repeat and to race:
//!
//! 1. Redis counts the user's issuances under the pseudonym too: records are compared with Redis by name,
//!    so an audit in between finds them under either.
//! 2. The ledger's records are renamed: issued ones, rejections, and who did what in their history.
//! 3. Loads of coupons that have read the old names are made to begin anew; what is loaded is moved.
//! 4. If nothing with the old name is left, the user's document goes.
//!
//! A process that slept in the middle renames nothing of the new person: it renames what was accepted
//! before it saw the mark. A worker that slept inserts by an id that is decided, and adopts that.
//!
//! [`Retention`] deletes rejections of coupons that ended long ago.

mod deletion_watcher;
mod erase;
mod pseudonymise;
mod retain;

pub use deletion_watcher::DeletionWatcher;
pub use erase::{EraseOutcome, Eraser};
pub use retain::{Retention, RetentionRound};
