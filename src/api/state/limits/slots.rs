//! How many answers of one kind may be under way at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::problem::jittered_ms;
use crate::http::{Code, Problem};

/// One answer under way: it counts until this is dropped.
pub(crate) type Slot = OwnedSemaphorePermit;

/// The slots for one kind of answer.
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    retry_ms: u64,
}

impl Slots {
    /// `most` slots; a client that finds none should stay away for one to two times `retry_ms`.
    pub fn new(most: usize, retry_ms: u64) -> Self {
        Slots { free: Arc::new(Semaphore::new(most)), retry_ms }
    }

    /// Takes a slot.
    ///
    /// # Errors
    /// 503 `overloaded` if none is free.
    pub fn take(&self) -> Result<Slot, Problem> {
        Arc::clone(&self.free).try_acquire_owned().map_err(|_| self.overloaded())
    }

    /// Waits for a slot, at most this long.
    ///
    /// # Errors
    /// 503 `overloaded` if none is free by then.
    pub async fn wait(&self, most: Duration) -> Result<Slot, Problem> {
        let free = tokio::time::timeout(most, Arc::clone(&self.free).acquire_owned()).await;
        free.ok().and_then(Result::ok).ok_or_else(|| self.overloaded())
    }

    fn overloaded(&self) -> Problem {
        Problem::new(Code::Overloaded).retry_after_ms(jittered_ms(self.retry_ms))
    }
}
