//! The whole system on real servers: every test has a redis-server of its own and a database of its
//! own in one shared mongod.

mod answers;
mod ctl;
mod faults;
mod helpers;
mod issuing;
mod losses;
mod metrics;
mod openapi;
mod processes;
mod queries;
mod recovery;
mod replays;
mod resources;
mod scripts;
mod settling;
mod steering;
mod waiting;
mod workers;
