//! Reports damaged records in the log. Every list, sweep and audit that reads a damaged record meets it, in
//! every process; an operator needs one line about it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A process reports one record once in this time.
pub(crate) const NAMED_EVERY: Duration = Duration::from_secs(300);
/// The most records that are remembered as reported. While there are this many, others are not reported.
const NAMED_MAX: usize = 4_096;

/// Logs an error about one damaged thing: `damaged!(name; event)`, where `event` is what `tracing::error!`
/// takes. The same event about a thing of the same name is logged once in [`NAMED_EVERY`].
macro_rules! damaged {
    ($name:expr; $($event:tt)+) => {
        if $crate::runtime::damage::is_news(concat!(module_path!(), ":", line!()), &$name) {
            tracing::error!($($event)+);
        }
    };
}
pub(crate) use damaged;

/// Whether the event at a place in the source should be logged about the record of this name.
pub(crate) fn is_news(place: &str, name: &dyn std::fmt::Display) -> bool {
    static NAMED: LazyLock<Mutex<Named>> = LazyLock::new(Mutex::default);
    let mut named = NAMED.lock();
    let news = named.add(place, &name.to_string(), Instant::now());
    if news == News::TooMany {
        tracing::error!(
            named = NAMED_MAX,
            "more is damaged than is named in the log; couponctl audit --full names all of it"
        );
    }
    news == News::New
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    New,
    Known,
    /// It is not remembered, and this is to be said now.
    TooMany,
}

/// What was named lately.
#[derive(Default)]
struct Named {
    hasher: RandomState,
    /// When each was named, by the hash of place and name.
    at: HashMap<u64, Instant>,
    full_at: Option<Instant>,
}

impl Named {
    fn add(&mut self, place: &str, name: &str, now: Instant) -> News {
        let is_recent = |at: &Instant| now.duration_since(*at) < NAMED_EVERY;
        let thing = self.hasher.hash_one((place, name));
        if self.at.get(&thing).is_some_and(is_recent) {
            return News::Known;
        }
        if self.at.len() >= NAMED_MAX {
            if self.full_at.as_ref().is_some_and(is_recent) {
                return News::Known;
            }
            self.at.retain(|_, at| is_recent(at));
            if self.at.len() >= NAMED_MAX {
                self.full_at = Some(now);
                return News::TooMany;
            }
        }
        self.at.insert(thing, now);
        News::New
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_named_once_in_a_while_and_hides_no_other() {
        let (mut named, now) = (Named::default(), Instant::now());
        assert_eq!(named.add("list", "summer", now), News::New);
        for _ in 0..1_000 {
            assert_eq!(named.add("list", "summer", now + NAMED_EVERY / 2), News::Known);
        }
        assert_eq!(named.add("list", "winter", now), News::New);
        assert_eq!(named.add("export", "summer", now), News::New);
        assert_eq!(named.add("list", "summer", now + NAMED_EVERY), News::New);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_so_is_what_is_logged_beyond_it() {
        let (mut named, now) = (Named::default(), Instant::now());
        for number in 0..NAMED_MAX {
            assert_eq!(named.add("list", &number.to_string(), now), News::New);
        }
        assert_eq!(named.add("list", "one more", now), News::TooMany);
        assert_eq!(named.add("list", "another", now), News::Known);
        assert_eq!(named.add("list", "0", now), News::Known);
        assert_eq!(named.at.len(), NAMED_MAX);
        assert_eq!(named.add("list", "another", now + NAMED_EVERY), News::New);
        assert_eq!(named.at.len(), 1, "what was named long ago is forgotten");
    }
}
