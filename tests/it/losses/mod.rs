//! The promises hold when Redis loses data: it is killed, emptied, rewound or failed over, while recoverers, workers and
//! API processes die or sleep.
//!
//! Each test prints the seed of its random choices; `COUPON_TEST_SEED` repeats them, and
//! `COUPON_TEST_ROUNDS` says how often the long ones go round (`COUPON_TEST_ROUNDS=100 cargo test --test it
//! -- losses::kills`).

mod busy;
mod failover;
mod kills;
mod lost_data;
mod pending;
mod recoverers;
mod set_up;
mod sleepers;
mod storm;
mod verifying;

use coupon_system::recovery::{CertifyOutcome, RecoveryMode, RecoveryOutcome, ignore_progress};
use tokio_util::sync::CancellationToken;

use crate::helpers::{System, eventually};

/// Rebuilds the partition, even if its data is intact.
async fn rebuild(system: &System) {
    let keeper = system.supervisor();
    eventually("it is rebuilt", async || {
        let kept = keeper.recover(RecoveryMode::Rebuild, &ignore_progress(), &CancellationToken::new()).await;
        match kept.expect("it can be rebuilt") {
            CertifyOutcome::Recovered(RecoveryOutcome::Rebuilt { .. }) => Some(()),
            // The API has noticed that nothing was certified, and holds the lease for a moment.
            _ => None,
        }
    })
    .await;
}
