//! Failures of Redis. Each records which accepted requests it loses.

use super::state::{Redis, Set, State};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// A new process with the same data: the certificate no longer fits.
    Restart,
    /// All data gone, in the same process.
    Flush,
    /// Only the certificate is gone.
    LoseCertificate,
    /// A new process with earlier data: a promoted replica, a restored backup.
    Rewind,
}

impl Failure {
    pub fn strike(self, state: &mut State) {
        match self {
            Failure::Restart => {
                state.spent.restarts += 1;
                state.instance += 1;
            }
            Failure::Flush => {
                state.spent.flushes += 1;
                replace(state, Redis::default());
            }
            Failure::LoseCertificate => {
                state.spent.certificates_lost += 1;
                state.redis.certificate = None;
            }
            Failure::Rewind => {
                state.spent.rewinds += 1;
                state.instance += 1;
                if let Some(earlier) = state.snapshot.take() {
                    replace(state, earlier);
                }
            }
        }
    }
}

/// Records accepted requests as lost that are neither decided nor in flight any more.
fn replace(state: &mut State, redis: Redis) {
    let survive = redis.epochs.values().fold(Set::default(), |all, data| all.union(data.flying()));
    let decided = state.ledger.issued().union(state.ledger.rejected());
    let lost = state.history.accepted.without(survive).without(decided);
    state.history.lost = state.history.lost.union(lost);
    state.history.data_lost = true;
    state.redis = redis;
}
