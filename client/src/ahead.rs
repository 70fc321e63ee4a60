//! Blocks that are fetched into tiers before anybody reads them: who fetches them, and which were read since.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_core::Block;
#[cfg(test)]
use weir_core::ClusterMap;
use weir_worker::{Ahead, Worker};

use crate::cluster::ClusterReader;

/// Blocks that are kept track of. Beyond that all are forgotten, and do not count as read.
const MAX_BLOCKS: usize = 100_000;

/// How long nothing is wished for after so many wishes in a row that were not wanted, or needless.
const PAUSE: Duration = Duration::from_millis(250);
const MOST_UNWANTED: u32 = 16;
const MOST_NEEDLESS: u32 = 128;
/// Blocks ahead of one sequential reader, of 4 MiB each: as much as keeps a connection of some gigabits busy over tens
/// of milliseconds; of several owners more can be had at once.
const WINDOW: u32 = 8;
const OWNERS_WINDOW: u32 = 16;

/// Who fetches blocks ahead.
#[derive(Clone)]
pub(crate) enum Fetcher {
    /// The worker in this process.
    Worker(Arc<Worker>),
    /// The blocks' owners.
    Owners {
        cluster: Arc<ClusterReader>,
        dataset: Arc<str>,
    },
}

impl Fetcher {
    /// Begins to fetch a block, once there is a place for it among others that nobody waits for.
    pub(crate) async fn fetch(&self, block: &Block) -> Ahead {
        match self {
            Self::Worker(worker) => worker.fill_ahead(block).await,
            Self::Owners { cluster, dataset } => cluster.fill_ahead(dataset, block).await,
        }
    }

    /// How many blocks ahead of one reader are worth a wish.
    pub(crate) fn window(&self) -> u32 {
        match self {
            Self::Worker(worker) => WINDOW.max(worker.blocks_ahead()),
            Self::Owners { .. } => OWNERS_WINDOW,
        }
    }

    /// Whether blocks that nobody waits for may be wanted. Owners say so when they are asked.
    fn may_want(&self) -> bool {
        match self {
            Self::Worker(worker) => worker.wants_ahead(),
            Self::Owners { .. } => true,
        }
    }
}

/// A block of a file: the file's index in the manifest, and the block's number.
pub(crate) type BlockAt = (u32, u32);

/// The blocks that were wished for.
pub(crate) struct Wishes {
    fetcher: Fetcher,
    blocks: HashMap<BlockAt, Wish>,
    /// Wishes in a row that were not wanted, and that were needless.
    unwanted: u32,
    needless: u32,
    /// None is to be opened before.
    pause: Option<Instant>,
}

/// What is known of a wish.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// It has not been answered.
    Open,
    /// A reader came before the answer.
    Read,
    /// The block is being fetched for it, or was.
    Begun,
}

/// What a wish came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The block is fetched for it.
    pub(crate) fetched: bool,
    /// And was read already.
    pub(crate) used: bool,
}

impl Wishes {
    /// No wishes to anybody.
    pub(crate) fn new(fetcher: Fetcher) -> Self {
        Self {
            fetcher,
            blocks: HashMap::new(),
            unwanted: 0,
            needless: 0,
            pause: None,
        }
    }

    /// Whether there is a point in wishing for blocks.
    pub(crate) fn may_be_heard(&self) -> bool {
        self.pause.is_none_or(|end| end < Instant::now()) && self.fetcher.may_want()
    }

    /// Who is told of wishes.
    pub(crate) fn fetcher(&self) -> Fetcher {
        self.fetcher.clone()
    }

    /// Notes a wish, before anybody is told. False when the block was fetched ahead and not read since.
    pub(crate) fn open(&mut self, block: BlockAt) -> bool {
        if self.blocks.get(&block) == Some(&Wish::Begun) {
            return false;
        }
        if self.blocks.len() >= MAX_BLOCKS {
            self.blocks.clear();
        }
        self.blocks.insert(block, Wish::Open);
        true
    }

    /// Notes what a wish has come to.
    pub(crate) fn answered(&mut self, block: BlockAt, outcome: Ahead) -> Outcome {
        let before = self.blocks.remove(&block);
        let fetched = outcome == Ahead::Begun;
        let used = fetched && before == Some(Wish::Read);
        if fetched && before == Some(Wish::Open) {
            self.blocks.insert(block, Wish::Begun);
        }
        self.heard(outcome);
        Outcome { fetched, used }
    }

    /// Learns from an answer whether there is a point in more wishes.
    pub(crate) fn heard(&mut self, outcome: Ahead) {
        (self.unwanted, self.needless) = match outcome {
            Ahead::Begun => (0, 0),
            Ahead::Needless => (0, self.needless + 1),
            Ahead::Unwanted => (self.unwanted + 1, 0),
        };
        if self.unwanted == MOST_UNWANTED || self.needless == MOST_NEEDLESS {
            (self.unwanted, self.needless) = (0, 0);
            self.pause = Some(Instant::now() + PAUSE);
        }
    }

    /// Notes that a block is read; true when it was fetched ahead and had not been read since.
    pub(crate) fn read(&mut self, block: BlockAt) -> bool {
        match self.blocks.get_mut(&block) {
            Some(Wish::Begun) => self.blocks.remove(&block).is_some(),
            Some(wish) => {
                *wish = Wish::Read;
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
impl Fetcher {
    /// The owners in a cluster without workers.
    pub(crate) fn to_nobody() -> Self {
        Self::Owners {
            cluster: Arc::new(ClusterReader::of_map(ClusterMap::default())),
            dataset: "set".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: BlockAt = (7, 3);

    fn wishes() -> Wishes {
        Wishes::new(Fetcher::to_nobody())
    }

    #[tokio::test]
    async fn after_many_wishes_in_vain_there_is_a_pause() {
        for (outcome, most) in [
            (Ahead::Unwanted, MOST_UNWANTED),
            (Ahead::Needless, MOST_NEEDLESS),
        ] {
            let mut wishes = wishes();
            for _ in 1..most {
                wishes.heard(outcome);
            }
            wishes.heard(Ahead::Begun);
            for _ in 0..most {
                assert!(wishes.may_be_heard());
                wishes.heard(outcome);
            }
            assert!(!wishes.may_be_heard());
        }
    }

    #[tokio::test]
    async fn a_block_counts_as_used_once_whether_its_reader_comes_before_the_answer_or_after() {
        let fetched = |used| Outcome {
            fetched: true,
            used,
        };
        let mut wishes = wishes();
        assert!(wishes.open(BLOCK));
        assert_eq!(wishes.answered(BLOCK, Ahead::Begun), fetched(false));
        assert!(!wishes.open(BLOCK), "it is here");
        assert!(wishes.read(BLOCK));
        assert!(!wishes.read(BLOCK));

        assert!(wishes.open(BLOCK));
        assert!(!wishes.read(BLOCK));
        assert_eq!(wishes.answered(BLOCK, Ahead::Begun), fetched(true));
        assert!(!wishes.read(BLOCK));
    }

    #[tokio::test]
    async fn a_wish_that_fetched_nothing_is_never_used() {
        for outcome in [Ahead::Needless, Ahead::Unwanted] {
            let nothing = Outcome {
                fetched: false,
                used: false,
            };
            let mut wishes = wishes();
            assert!(wishes.open(BLOCK));
            assert_eq!(wishes.answered(BLOCK, outcome), nothing);
            assert!(!wishes.read(BLOCK));
            assert!(wishes.open(BLOCK));
            assert!(!wishes.read(BLOCK));
            assert_eq!(wishes.answered(BLOCK, outcome), nothing);
            assert!(!wishes.read(BLOCK));
        }
    }
}
