//! Settings: each explores one dimension deeply. All of them at once would have too many states.

use super::{EventCounts, Protocol, Request, Variant};

/// The first user's request with a key: it is sent again and again.
pub const FIRST: Request = Request { user: 0, keyed: true };
/// The second user's request.
pub const SECOND: Request = Request { user: 1, keyed: false };
/// The first user's further request, which is another issuance.
pub const AGAIN: Request = Request { user: 0, keyed: false };

pub const NOTHING: EventCounts = EventCounts {
    restocks: 0,
    restarts: 0,
    flushes: 0,
    rewinds: 0,
    certificates_lost: 0,
    steals: 0,
    recoverers_stopped: 0,
    discards: 0,
    left_out: 0,
    splits: 0,
};

/// Two users, two units, two workers and one recoverer; nothing happens to them.
pub fn peace() -> Protocol {
    Protocol {
        variant: Variant::Sound,
        requests: vec![FIRST, SECOND],
        total: 2,
        per_user: 1,
        workers: 2,
        recoverers: 1,
        loaders: 0,
        verify: false,
        bounds: NOTHING,
        witnesses: Vec::new(),
    }
}

pub fn three() -> Vec<Request> {
    vec![FIRST, SECOND, AGAIN]
}
