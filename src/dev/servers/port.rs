//! Free loopback ports that stay free.
//!
//! A server that is killed and started again on its port must find it free. So ports come from below
//! the range that the kernel hands to outgoing connections: in that range a client that keeps trying
//! to reconnect can be given the very port it calls, connect to itself, and hold it.

use std::{
    net::{Ipv4Addr, TcpListener},
    ops::RangeInclusive,
};

use anyhow::bail;
use rand::RngExt;

const LOWEST: u16 = 15_000;
/// Where Linux begins unless it is told otherwise.
const OUTGOING_LOWEST_DEFAULT: u16 = 32_768;
const OUTGOING_RANGE_FILE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const ATTEMPTS_MAX: usize = 64;

/// A port that no process listened on a moment ago. Another process may still be quicker to take it.
pub(super) fn free() -> anyhow::Result<u16> {
    let candidates = candidates(std::fs::read_to_string(OUTGOING_RANGE_FILE).ok().as_deref());
    let mut random = rand::rng();
    for _ in 0..ATTEMPTS_MAX {
        let port = random.random_range(candidates.clone());
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!(
        "found no free port on 127.0.0.1 between {} and {} in {ATTEMPTS_MAX} attempts; end other servers, or give a port",
        candidates.start(),
        candidates.end()
    )
}

/// The ports below the range that `outgoing` ("32768\t60999") names, where that leaves enough.
fn candidates(outgoing: Option<&str>) -> RangeInclusive<u16> {
    let outgoing_lowest = outgoing
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .unwrap_or(OUTGOING_LOWEST_DEFAULT);
    if outgoing_lowest > LOWEST + 1_000 {
        LOWEST..=outgoing_lowest - 1
    } else {
        LOWEST..=OUTGOING_LOWEST_DEFAULT - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_lie_below_those_of_outgoing_connections() {
        assert_eq!(candidates(Some("32768\t60999\n")), 15_000..=32_767);
        assert_eq!(candidates(Some("20000\t60999\n")), 15_000..=19_999);
    }

    #[test]
    fn a_range_that_leaves_no_room_is_not_avoided() {
        assert_eq!(candidates(Some("1024\t65535\n")), 15_000..=32_767);
        assert_eq!(candidates(Some("unreadable")), 15_000..=32_767);
        assert_eq!(candidates(None), 15_000..=32_767);
    }
}
