//! The handlers: one file a resource, each function with its OpenAPI block.

pub(crate) mod actions;
pub(crate) mod admin;
pub(crate) mod coupons;
pub(crate) mod exports;
pub(crate) mod issuance_events;
pub(crate) mod issuances;
pub(crate) mod live_figures;
pub(crate) mod operations;
pub(crate) mod outcomes;
pub(crate) mod problems;
pub(crate) mod redemption;
pub(crate) mod service;
pub(crate) mod user_coupons;
pub(crate) mod users;
