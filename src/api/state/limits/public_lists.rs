//! How many lists are read at a time for those who show no key: a page is hundreds of records and figures,
//! and anyone may ask. Operators have their own way past this.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access::Caller;
use crate::http::problem::jittered_ms;
use crate::http::{Code, Problem};

/// Lists that are read at a time.
const PUBLIC_LISTS_MAX: usize = 8;
/// The longest that one is waited for.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(1);
/// A client that found no place should stay away for about this long.
const NO_PLACE_RETRY_MS: u64 = 2_000;

/// The places.
pub(crate) struct PublicLists(Arc<Semaphore>);

impl Default for PublicLists {
    fn default() -> Self {
        PublicLists(Arc::new(Semaphore::new(PUBLIC_LISTS_MAX)))
    }
}

impl PublicLists {
    /// A place, where the caller needs one. It is given back when it is dropped.
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
