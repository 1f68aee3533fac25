/// The number of a partition: one Redis slot. One partition is built now; every key and every
/// issuance id names it, so that more can follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId(u16);

impl PartitionId {
    /// The only partition there is now.
    pub const ONE: PartitionId = PartitionId(0);
    /// Partition numbers fit the twelve spare bits of an issuance id.
    const BITS: u32 = 12;

    /// The partition with this number, if it fits into [`PartitionId::BITS`].
    pub fn new(number: u16) -> Option<Self> {
        (number < 1 << Self::BITS).then_some(PartitionId(number))
    }

    /// The number of the partition.
    pub fn number(self) -> u16 {
        self.0
    }
}

impl std::fmt::Display for PartitionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}
