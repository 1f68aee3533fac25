//! The whole system on real servers: every test has a redis-server of its own and a database of its
//! own in one shared mongod.

mod access;
mod answers;
mod audit;
mod bench;
mod browsers;
mod ctl;
mod damage;
mod doors;
mod exports;
mod faults;
mod helpers;
mod issuing;
mod limits;
mod losses;
mod metrics;
mod model;
mod openapi;
mod outcomes;
mod privacy;
mod problems;
mod processes;
mod queries;
mod recovery;
mod redeeming;
mod replays;
mod resources;
mod retiring;
mod rush;
mod scripts;
mod settling;
mod slow_clients;
mod steering;
mod waiting;
mod warming;
mod workers;
