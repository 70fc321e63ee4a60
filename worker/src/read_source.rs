//! Where a read found its bytes, as it is counted and told.

/// Where the bytes of a read came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The memory tier, or a block on its way to the SSD tier.
    Memory,
    /// The SSD tier.
    Ssd,
    /// The origin.
    Origin,
    /// Another worker, which held the block when this one became its owner.
    Worker,
}

impl Source {
    /// All sources, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Ssd, Self::Origin, Self::Worker];

    /// The source as a metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Ssd => "ssd",
            Self::Origin => "origin",
            Self::Worker => "worker",
        }
    }
}
