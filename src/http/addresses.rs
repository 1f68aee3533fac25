//! Where clients are, as far as limits go by it: an IPv4 address, or the /64 network of an IPv6 one,
//! which is what one customer is given and may choose from freely.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};

/// Who counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place(IpAddr);

impl Place {
    /// Where this address is.
    pub fn of(address: IpAddr) -> Self {
        Place(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            v4 => v4,
        })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(out)
    }
}

/// The address at the other end of the connection, in every request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// Counts the connections from each place.
#[derive(Clone)]
pub(super) struct Places {
    most: usize,
    taken: Arc<Mutex<HashMap<Place, usize>>>,
}

/// A connection that counts; it does so until this is dropped.
pub(super) struct Counted {
    place: Place,
    taken: Arc<Mutex<HashMap<Place, usize>>>,
}

impl Places {
    /// At most `most` connections from one place.
    pub fn new(most: usize) -> Self {
        Places { most, taken: Arc::default() }
    }

    /// Counts one more from here; `None` if there are as many as may be.
    pub fn enter(&self, address: IpAddr) -> Option<Counted> {
        let place = Place::of(address);
        let mut taken = self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let count = taken.entry(place).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Counted { place, taken: Arc::clone(&self.taken) })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(count) = taken.get_mut(&self.place) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_address_or_a_network_of_64_bits() {
        let place = |text: &str| Place::of(text.parse().unwrap());
        assert_ne!(place("192.0.2.1"), place("192.0.2.2"));
        assert_eq!(place("192.0.2.1"), place("::ffff:192.0.2.1"));
        assert_eq!(place("2001:db8:0:1::1"), place("2001:db8:0:1:ffff::2"));
        assert_ne!(place("2001:db8:0:1::1"), place("2001:db8:0:2::1"));
    }

    #[test]
    fn connections_count_while_they_are_open_and_leave_nothing_behind() {
        let (here, there) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let places = Places::new(2);
        let one = places.enter(here).unwrap();
        let two = places.enter(here).unwrap();
        assert!(places.enter(here).is_none() && places.enter(there).is_some());
        drop(one);
        assert!(places.enter(here).is_some());
        drop(two);
        assert!(places.taken.lock().unwrap().is_empty());
    }
}
