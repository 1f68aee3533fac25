//! Whatever is in a stream entry is an issuance, or undecodable with a reason. The first byte says
//! whether the version is the one that is read.

#![no_main]

use coupon_system::issuance::InFlight;
use coupon_system::queue::entry::{VERSION, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, value)) = data.split_first() else { return };
    let name = if *kind == b'x' { vec![*kind] } else { VERSION.as_bytes().to_vec() };
    match decode("1700000000000-0".into(), &vec![(name, value.to_vec())]) {
        Ok(entry) => {
            assert_eq!(entry.entry, "1700000000000-0");
            assert_ne!(entry.serial, Some(0));
        }
        Err(undecodable) => assert!(!undecodable.why.is_empty()),
    }
    // The in-flight hash holds the same text, after the entry's id: what is read is written back alike.
    if let Ok(text) = std::str::from_utf8(value)
        && let Ok(in_flight) = text.parse::<InFlight>()
    {
        assert_eq!(in_flight.to_string().parse::<InFlight>().as_ref(), Ok(&in_flight));
    }
});
