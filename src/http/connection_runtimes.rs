//! The threads that serve connections. Each has a Tokio runtime of its own, apart from the one that everything else
//! runs on.
//!
//! A runtime takes tasks from its queue in turn. On a single runtime an admitted request would stand in that queue
//! behind thousands of new ones, once for each step: to join a batch, to be sent, to be answered. At five times the
//! load that the system can take, it then answered next to none of the requests that it had admitted. So the steps
//! run elsewhere, and a connection's runtime takes what comes from there, an answer or a new connection, before the
//! next request.
//!
//! It is the cheaper way, too: with one runtime for all, a request cost the API between a twentieth (64 connections) and a
//! quarter (1,024) more processor time under wrk, and one switch of threads instead of one in three or in ten.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use super::queue_delay::QueueDelay;

/// A runtime takes what comes from other threads first, at each step.
const GLOBAL_QUEUE_INTERVAL: u32 = 1;

/// The runtimes. They end, with all that they still serve, when this is dropped.
pub(crate) struct ConnectionRuntimes {
    runtimes: Vec<ConnectionRuntime>,
    over: CancellationToken,
}

/// One runtime on a thread of its own.
pub(super) struct ConnectionRuntime {
    pub handle: Handle,
    pub queue_delay: Arc<QueueDelay>,
}

impl ConnectionRuntimes {
    /// Starts one for each thread of the caller's own runtime: by default, one a core.
    ///
    /// # Errors
    /// The system refuses a thread or a runtime.
    pub fn start() -> io::Result<Self> {
        let count = Handle::current().metrics().num_workers();
        let over = CancellationToken::new();
        let runtimes = (0..count)
            .map(|number| ConnectionRuntime::start(number, over.clone()))
            .collect::<Result<_, _>>()?;
        Ok(ConnectionRuntimes { runtimes, over })
    }

    /// Each in turn.
    pub(super) fn in_turn(&self) -> impl Iterator<Item = &ConnectionRuntime> {
        self.runtimes.iter().cycle()
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
        let thread = ConnectionRuntime { handle: runtime.handle().clone(), queue_delay: Arc::default() };
        runtime.spawn(Arc::clone(&thread.queue_delay).measure());
        thread::Builder::new()
            .name(format!("connections-{number}"))
            .spawn(move || runtime.block_on(over.cancelled_owned()))?;
        Ok(thread)
    }
}
