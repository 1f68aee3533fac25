use std::sync::OnceLock;

use super::slot::tag_in_part;

/// The number of a partition: a part of the data in one Redis slot, whose keys share its [tag](PartitionId::tag). Every
/// key and every issuance id names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId(u16);

/// The tags of partitions are spread over this many equal parts of the slots.
const PARTS: u16 = 64;
/// Partition numbers fit the twelve spare bits of an issuance id.
const NUMBERS: usize = 1 << 12;

impl PartitionId {
    /// Partition 0, which every deployment has: the only one of a deployment on one Redis.
    pub const ONE: PartitionId = PartitionId(0);

    /// The partition with this number; `None` if it is larger than an issuance id can name.
    pub fn new(number: u16) -> Option<Self> {
        (usize::from(number) < NUMBERS).then_some(PartitionId(number))
    }

    /// The number of the partition.
    pub fn number(self) -> u16 {
        self.0
    }

    /// The hash tag of the partition's keys, without its braces. It never changes: that of partition 0 is `0`, and those
    /// of the others are searched so that any number of partitions from 1 on lies evenly over the slots, and so over
    /// the nodes of a cluster; plain numbers would not.
    pub fn tag(self) -> &'static str {
        static TAGS: [OnceLock<Box<str>>; NUMBERS] = [const { OnceLock::new() }; NUMBERS];
        TAGS[usize::from(self.0)].get_or_init(|| match self.0.checked_sub(1) {
            None => "0".into(),
            Some(place) => {
                // The bits of a number, read backwards, fill a range evenly however many numbers there are.
                let part = (place % PARTS).reverse_bits() >> (u16::BITS - PARTS.ilog2());
                tag_in_part(&self.0.to_string(), part, PARTS).into()
            }
        })
    }
}

impl std::fmt::Display for PartitionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::slot::{SLOTS, slot_of};

    #[test]
    fn a_tag_has_the_slot_that_redis_gives_it() {
        // CLUSTER KEYSLOT of Redis 7.0; 12739 is the check value of the specification.
        for (tag, expected) in [("123456789", 12_739), ("0", 13_907), ("foo", 12_182)] {
            assert_eq!(slot_of(tag), expected, "{tag}");
        }
    }

    #[test]
    fn any_number_of_partitions_lies_evenly_over_any_number_of_nodes() {
        for partitions in [1, 2, 3, 8, 16, 24, 64, 100, 128] {
            for nodes in [1_u16, 2, 3, 4, 6, 8] {
                let mut on = vec![0_u16; usize::from(nodes)];
                for number in 1..=partitions {
                    let tag = PartitionId::new(number).unwrap().tag();
                    on[usize::from(slot_of(tag)) * usize::from(nodes) / usize::from(SLOTS)] += 1;
                }
                let (least, most) = (on.iter().min().unwrap(), on.iter().max().unwrap());
                assert!(most - least <= 3, "{partitions} over {nodes}: {on:?}");
            }
        }
    }

    #[test]
    fn partition_0_keeps_the_tag_of_deployments_that_have_no_other() {
        assert_eq!(PartitionId::ONE.tag(), "0");
    }
}
