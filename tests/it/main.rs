//! The whole system on real servers: every test has a redis-server of its own and a database of its
//! own in one shared mongod.

mod answers;
mod audit;
mod bench;
mod ctl;
mod damage;
mod exports;
mod faults;
mod helpers;
mod issuing;
mod losses;
mod metrics;
mod model;
mod openapi;
mod outcomes;
mod problems;
mod processes;
mod queries;
mod recovery;
mod replays;
mod resources;
mod retiring;
mod rush;
mod scripts;
mod settling;
mod steering;
mod waiting;
mod workers;
