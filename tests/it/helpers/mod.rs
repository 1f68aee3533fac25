//! What every test uses: servers, the system on them, and a client.

mod accounts;
mod builder;
mod chance;
mod client;
mod contract;
mod decisions;
mod failing;
mod older;
mod processes;
mod raw;
mod rush;
mod servers;
mod system;

pub use accounts::{accounts_hold, adopted, recovered};
pub use chance::{chance, rounds};
pub use client::{Answer, Client};
pub use decisions::{NO_BACKLOG_MAX, decided, decision, discarded, issued_to, native, request};
pub use failing::{fail, obedient_mongodb};
pub use older::{as_an_older_version_made_it, older_record};
pub use processes::{
    API, CTL, CommandOutput, WORKER, couponctl, logging, program, program_as_it_is, program_on, send,
    serving, stopped, worker,
};
pub use raw::{RawAnswer, RawConnection};
pub use rush::{NotFound, POLL_EVERY, RequestTally, issued, rush, rush_from};
pub use servers::{cluster, cluster_of, cluster_options, database, mongodb, redis};
pub use system::{System, api_key, at, eventually, supervisor};
