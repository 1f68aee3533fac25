//! Who sends a request, what they may do, and what operators did.
//!
//! A program or person of the shop has an API key ([`key`], kept in MongoDB, held in memory by
//! [`keyring`]); an end user has a token that the shop signs ([`token`]). Both come in
//! `Authorization: Bearer …`. Each route is for an [`Audience`]. What operators do is recorded
//! ([`action`]) before it is done.

pub mod action;
mod audience;
mod authenticate;
mod caller;
pub mod key;
mod key_store;
pub mod keyring;
mod refusals;
pub mod token;

pub use action::ActionLog;
pub(crate) use audience::{Audience, RouteAccess};
pub(crate) use authenticate::{Access, AuthRefusal, Identification};
pub use caller::{Caller, Role};
pub(crate) use key_store::{ACTIVE_MAX, LISTED_MAX};
pub use key_store::{ActiveKeys, KeyInsert, KeyStore, RevokeOutcome};
