//! What goes over the wire: JSON in camelCase, times in RFC 3339 with `Z`. One file a resource, which reads requests
//! into domain types and writes domain types as answers; beside them what all resources share: bodies, queries,
//! fields, pages and links.

pub(crate) mod accept;
pub(crate) mod action;
pub(crate) mod advice;
pub(crate) mod audit;
pub mod body;
pub(crate) mod caller;
pub mod coupon;
pub(crate) mod event;
pub(crate) mod export;
pub(crate) mod fields;
pub(crate) mod figures;
pub(crate) mod idempotency;
pub mod issuance;
pub(crate) mod links;
pub(crate) mod media_type;
pub(crate) mod outcome;
pub mod page;
pub(crate) mod problem;
pub mod query;
pub(crate) mod queue;
pub(crate) mod redemption;
pub(crate) mod service;
pub(crate) mod strict;
pub mod user;
pub(crate) mod user_coupon;
pub(crate) mod wait;
