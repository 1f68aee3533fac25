//! What goes over the wire: JSON in camelCase, times in RFC 3339 with `Z`. One file a resource; each
//! reads requests into domain types, and writes domain types as answers.

pub mod accept;
pub mod action;
pub mod advice;
pub mod body;
pub mod coupon;
pub mod event;
pub mod export;
pub mod fields;
pub mod figures;
pub mod idempotency;
pub mod issuance;
pub mod links;
pub mod media_type;
pub mod outcome;
pub mod page;
pub mod problem;
pub mod query;
pub mod queue;
pub mod redemption;
pub mod service;
pub mod strict;
pub mod user;
pub mod user_coupon;
pub mod wait;
