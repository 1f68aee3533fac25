//! The background task, in every API process that asks who is registered, that remembers users before
//! they come: when a campaign opens, all users come for the first time. Idempotent and without input;
//! periodic.
//!
//! Reads: users, the newest first; at the start as many as are remembered, then those who are new.
//! Writes: what this process remembers. Wakes no other task. A hint: a user who is missed is read when they come.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::{RegisteredUsers, UserStore};
use crate::Failure;
use crate::runtime::tasks::Rounds;

/// Between two polls.
const EVERY: Duration = Duration::from_secs(1);
/// Users in one read.
const PAGE: usize = 10_000;
/// Users who were registered this long before the last poll are read again, as an insert takes time.
const OVERLAP: SignedDuration = SignedDuration::from_secs(1);
/// One poll in this many goes back further: the processes that register have clocks of their own. Not each
/// poll: a hundred thousand who were registered at once would be read again every second for as long.
const FAR_POLL_EVERY: usize = 10;
const FAR_OVERLAP: SignedDuration = SignedDuration::from_secs(20);

impl RegisteredUsers {
    /// Remembers users until `shutdown`, `room` of them at the start.
    pub(crate) async fn keep_prefetching(self, store: UserStore, room: usize, shutdown: CancellationToken) {
        let (mut rounds, mut polls, mut since) = (Rounds::now_and_every(EVERY, &shutdown), 0_usize, None);
        while rounds.next().await {
            polls += 1;
            let began = Timestamp::now();
            let prefetching = self.prefetch(&store, room, since);
            let Some(prefetched) = shutdown.run_until_cancelled(prefetching).await else { return };
            match prefetched {
                // Not since the newest of them: who came before that with many others would be read for ever.
                Ok(()) => {
                    let overlap = if polls.is_multiple_of(FAR_POLL_EVERY) { FAR_OVERLAP } else { OVERLAP };
                    since = began.checked_sub(overlap).ok();
                }
                Err(failure) => {
                    tracing::debug!(
                        error = failure.chain(),
                        "the API could not read users ahead; it tries again"
                    );
                }
            }
        }
    }

    /// Remembers those who were registered since a moment, or all, but no more than there is room for.
    async fn prefetch(
        &self,
        store: &UserStore,
        room: usize,
        since: Option<Timestamp>,
    ) -> Result<(), Failure> {
        let (mut after, mut read) = (None, 0);
        while read < room {
            let asked = Instant::now();
            let page = store.newest(since, after, PAGE.min(room - read)).await?;
            read += page.items.len();
            self.remember(asked, page.items.into_iter());
            after = page.next.filter(|(at, _)| since.is_none_or(|since| *at >= since));
            if after.is_none() {
                break;
            }
        }
        Ok(())
    }
}
