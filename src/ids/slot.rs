//! The slots of a Redis Cluster, and hash tags that spread over them.

/// The slots of a cluster.
pub const SLOTS: u16 = 16_384;

/// The slot of every key with this hash tag: CRC-16/XMODEM, as of the specification of Redis Cluster.
pub fn slot_of(tag: &str) -> u16 {
    let crc = tag.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => (crc << 1) ^ 0x1021,
        })
    });
    crc % SLOTS
}

/// A hash tag of a slot in the `part`th of `count` equal parts of all slots, counted from 0: the name itself, or the name,
/// a dot and the smallest number that does.
pub(crate) fn tag_in_part(name: &str, part: u16, count: u16) -> String {
    let part_of = |tag: &str| u32::from(slot_of(tag)) * u32::from(count) / u32::from(SLOTS);
    let numbered = (1_u32..).map(|number| format!("{name}.{number}"));
    let mut tags = std::iter::once(name.to_owned()).chain(numbered);
    tags.find(|tag| part_of(tag) == u32::from(part))
        .expect("each part has slots, and there is no end of tags")
}
