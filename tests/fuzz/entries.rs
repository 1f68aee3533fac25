//! Whatever is in a stream entry is an issuance, or undecodable with a reason. The first byte says whether the
//! entry is of one issuance, of many, or of no version that is read.

#![no_main]

use coupon_system::issuance::InFlight;
use coupon_system::queue::entry::{VERSION_OF_MANY, VERSION_OF_ONE, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, value)) = data.split_first() else { return };
    let fields = match kind {
        b'x' => vec![(vec![*kind], value.to_vec())],
        b'm' => {
            let many = value.chunks(60).map(|one| one.split_at(one.len().min(16)));
            let mut fields = vec![(VERSION_OF_MANY.into(), Vec::new())];
            fields.extend(many.map(|(id, text)| (id.to_vec(), text.to_vec())));
            fields
        }
        _ => vec![(VERSION_OF_ONE.into(), value.to_vec())],
    };
    let decoded = decode("1700000000000-0", &fields);
    assert!(!decoded.is_empty());
    for one in &decoded {
        match one {
            Ok(entry) => {
                assert_eq!((entry.entry.as_str(), entry.of), ("1700000000000-0", decoded.len()));
                assert!(entry.unit.is_none_or(|unit| unit.serial() > 0));
            }
            Err(undecodable) => assert!(!undecodable.why.is_empty()),
        }
    }
    // The in-flight hash holds the same text, after the entry's id: what is read is written back alike.
    if let Ok(text) = std::str::from_utf8(value)
        && let Ok(in_flight) = text.parse::<InFlight>()
    {
        assert_eq!(in_flight.to_string().parse::<InFlight>().as_ref(), Ok(&in_flight));
    }
});
