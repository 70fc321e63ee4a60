//! What a worker is made of.

use std::path::PathBuf;
use std::time::Duration;

use weir_core::{BLOCK_SIZE, ByteSize, FreeSpace, NodeName, WorkerId};
use weir_origin::{FetchPolicy, SourcePolicy};

/// Default of [`WorkerConfig::fill_budget`]: eight whole blocks, enough to keep a fast origin busy.
pub const FILL_BUDGET: ByteSize = ByteSize(8 * BLOCK_SIZE);
/// The least [`WorkerConfig::fill_budget`]; a smaller one is taken for this.
pub const LEAST_FILL_BUDGET: ByteSize = ByteSize(2 * BLOCK_SIZE);
/// The part of the budget that blocks may take which nobody waits for yet: five eighths.
const PREFETCH_SHARE: (u64, u64) = (5, 8);
/// The part of the cache that copies of other workers' blocks may take.
const COPIES_SHARE: u64 = 8;

/// One SSD directory and the most bytes that it takes.
#[derive(Clone, Debug)]
pub struct SsdConfig {
    /// Directory for segment files; made if it is missing.
    pub dir: PathBuf,
    /// Most bytes of files in it.
    pub capacity: ByteSize,
    /// When it is full, what nobody has read for this long makes room; [`Duration::MAX`] for never.
    pub evict_idle: Duration,
    /// What is left free of its file system: the tier gives back what others take of that.
    pub left_free: FreeSpace,
}

/// What a worker is made of.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// The worker's name.
    pub id: WorkerId,
    /// The machine that it runs on.
    pub node: NodeName,
    /// Bytes of the memory tier; 0 turns it off.
    pub memory: ByteSize,
    /// The SSD tier's devices.
    pub ssd: Vec<SsdConfig>,
    /// Most bytes of blocks on their way from an origin or to a device.
    pub fill_budget: ByteSize,
    /// Most bytes of copies of other workers' blocks, which many want at once; an eighth of the cache without.
    pub copies: Option<ByteSize>,
    /// Most bytes of other workers' blocks that are kept for this node alone; an eighth of the cache without.
    pub keep: Option<ByteSize>,
    /// Most bytes that are sent to other machines in a second; any number without.
    pub egress_limit: Option<ByteSize>,
    /// Where the list of origins is kept over a restart.
    pub origins_file: Option<PathBuf>,
    /// How origins are read.
    pub fetch: FetchPolicy,
    /// Which sources are read, whatever the master names.
    pub sources: SourcePolicy,
}

impl WorkerConfig {
    /// Where files may be made that are of use to this process alone.
    pub(crate) fn scratch_dir(&self) -> Option<PathBuf> {
        let ssd = self.ssd.first().map(|ssd| ssd.dir.clone());
        ssd.or_else(|| Some(self.origins_file.as_ref()?.parent()?.to_owned()))
    }

    /// Bytes of cache in all tiers.
    pub(crate) fn capacity(&self) -> u64 {
        let ssd: u64 = self.ssd.iter().map(|device| device.capacity.0).sum();
        if ssd > 0 { ssd } else { self.memory.0 }
    }

    /// Most bytes of copies of other workers' blocks.
    pub(crate) fn copies(&self) -> u64 {
        let share = self.capacity() / COPIES_SHARE;
        self.copies.map_or(share, |copies| copies.0)
    }

    /// Most bytes of other workers' blocks that are kept for this node alone.
    pub(crate) fn keep(&self) -> u64 {
        let share = self.capacity() / COPIES_SHARE;
        self.keep.map_or(share, |keep| keep.0)
    }

    /// Bytes of the fill budget.
    pub(crate) fn budget(&self) -> u64 {
        self.fill_budget.max(LEAST_FILL_BUDGET).0
    }

    /// Those of it that blocks may take which nobody waits for yet.
    pub(crate) fn prefetch_budget(&self) -> u64 {
        let (part, of) = PREFETCH_SHARE;
        self.budget() / of * part
    }
}
