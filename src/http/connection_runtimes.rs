//! The threads that serve connections: each has a scheduler of its own, apart from the one that
//! everything else runs on.
//!
//! A scheduler has one queue for all, and takes from it in turn. Were there only one, whoever was let in
//! would stand in it behind thousands who ask, once for each step of the way: to be put into a batch, to
//! be sent, to be answered. At five times what the system can take, next to nothing came of those whom it
//! let in. So the steps are taken elsewhere, and what comes from there, an answer to somebody who was let
//! in or a new connection, is taken before the next request.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use super::queue_delay::QueueDelay;

/// What comes from other threads is taken first, at each step.
const GLOBAL_QUEUE_INTERVAL: u32 = 1;

/// See the module's documentation. They end, with all that they still serve, when this is dropped.
pub struct ConnectionRuntimes {
    threads: Vec<ConnectionRuntime>,
    over: CancellationToken,
}

/// One of them.
pub(super) struct ConnectionRuntime {
    pub handle: Handle,
    pub lag: Arc<QueueDelay>,
}

impl ConnectionRuntimes {
    /// Starts as many as the caller's own scheduler has: one a core, where nobody said otherwise.
    pub fn start() -> io::Result<Self> {
        let count = Handle::current().metrics().num_workers();
        let over = CancellationToken::new();
        let threads = (0..count)
            .map(|number| ConnectionRuntime::start(number, over.clone()))
            .collect::<Result<_, _>>()?;
        Ok(ConnectionRuntimes { threads, over })
    }

    /// Each in turn.
    pub(super) fn in_turn(&self) -> impl Iterator<Item = &ConnectionRuntime> {
        self.threads.iter().cycle()
    }
}

impl Drop for ConnectionRuntimes {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

impl ConnectionRuntime {
    fn start(number: usize, over: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .global_queue_interval(GLOBAL_QUEUE_INTERVAL)
            .build()?;
        let thread = ConnectionRuntime { handle: runtime.handle().clone(), lag: Arc::default() };
        runtime.spawn(Arc::clone(&thread.lag).measure());
        thread::Builder::new()
            .name(format!("connections-{number}"))
            .spawn(move || runtime.block_on(over.cancelled_owned()))?;
        Ok(thread)
    }
}
