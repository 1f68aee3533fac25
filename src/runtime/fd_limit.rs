//! The limit of open files of this process. Each connection is one, and a process often starts with a limit of
//! 1,024: far fewer than the users who press the button in the same second.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Files kept for other uses than clients' connections: Redis, MongoDB, listeners, logs, with room to spare.
const RESERVED: u64 = 256;
/// One process serves at most this many connections, whatever the system allows.
const CONNECTIONS_MAX: usize = 60_000;
/// One process serves at least this many connections, even if the limit is lower.
const CONNECTIONS_MIN: usize = 64;

/// Raises the soft limit of open files to the hard limit, for this process and its children, and logs it.
/// Returns the new limit.
pub fn raise_limit() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => {
            tracing::info!(open_files_max = allowed(), before = before.unwrap_or(u64::MAX), "open files")
        }
        Err(error) => tracing::warn!(open_files_max = allowed(), %error, "the limit of open files stays"),
    }
    allowed()
}

/// The number of client connections that fit into the present limit.
pub(crate) fn connections_max() -> usize {
    fitting(allowed())
}

fn allowed() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn fitting(files: u64) -> usize {
    let left = usize::try_from(files.saturating_sub(RESERVED)).unwrap_or(usize::MAX);
    left.clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_what_the_process_needs_itself() {
        assert_eq!(fitting(1_024), 768);
        assert_eq!(fitting(20_000), 19_744);
        assert_eq!(fitting(u64::MAX), CONNECTIONS_MAX);
        assert_eq!(fitting(0), CONNECTIONS_MIN);
    }

    #[test]
    fn the_limit_is_raised_to_what_is_allowed() {
        assert_eq!(Some(raise_limit()), getrlimit(Resource::Nofile).maximum.or(Some(u64::MAX)));
    }
}
