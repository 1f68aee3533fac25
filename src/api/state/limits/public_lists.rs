//! How many lists are read at a time for callers without a key: a page is hundreds of records and figures, and anyone
//! may request one. Callers with a key are not limited.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access::Caller;
use crate::http::problem::jittered_ms;
use crate::http::{Code, Problem};

/// Lists that are read at the same time.
const PUBLIC_LISTS_MAX: usize = 8;
/// The longest wait for a place.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(1);
/// A client that finds no place should wait about this long.
const NO_PLACE_RETRY_MS: u64 = 2_000;

/// The places for lists.
pub(crate) struct PublicLists(Arc<Semaphore>);

impl Default for PublicLists {
    fn default() -> Self {
        PublicLists(Arc::new(Semaphore::new(PUBLIC_LISTS_MAX)))
    }
}

impl PublicLists {
    /// Waits for a place, if the caller needs one; it is free again when it is dropped.
    ///
    /// # Errors
    /// 503 `overloaded` if none becomes free in time.
    pub(crate) async fn enter(&self, caller: &Caller) -> Result<Option<OwnedSemaphorePermit>, Problem> {
        if matches!(caller, Caller::Key { .. }) {
            return Ok(None);
        }
        match tokio::time::timeout(PLACE_WAIT_MAX, Arc::clone(&self.0).acquire_owned()).await {
            Ok(Ok(place)) => Ok(Some(place)),
            _ => Err(Problem::new(Code::Overloaded).retry_after_ms(jittered_ms(NO_PLACE_RETRY_MS))),
        }
    }
}
