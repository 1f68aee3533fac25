//! What goes over the wire: JSON in camelCase, times in RFC 3339 with `Z`. One file a resource; each
//! reads requests into domain types, and writes domain types as answers.

pub mod action;
pub mod coupon;
pub mod event;
pub mod export;
pub mod issuance;
pub mod outcome;
pub mod page;
pub mod problem;
pub mod queue;
pub mod redemption;
pub mod service;
pub mod user;
pub mod user_coupon;
