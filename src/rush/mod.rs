//! A simulated campaign, and the judgement of what came of it: `couponctl rush`.
//!
//! Requests are planned before the run ([`plan`], [`arrivals`]) and sent when they are due
//! ([`open_loop`], over [`connection`]s that do as little as they can); [`virtual_users::VirtualUsers`] know
//! what each user was told; [`verdict`] compares that with what the service holds, and [`report`]
//! says it to people and programs. The open loop takes any URL and any [`open_loop::Workload`].

pub(crate) mod api;
pub mod arrivals;
pub mod connection;
pub mod expect;
mod follow;
pub mod live;
pub mod open_loop;
pub mod plan;
pub mod report;
pub mod run;
pub mod sample;
pub mod setup;
pub mod target;
pub mod verdict;
pub mod virtual_users;

pub use connection::{ExchangeError, RawResponse};
pub use target::LoadTarget;
