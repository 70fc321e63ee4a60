//! What is asked to be fetched into the tiers ahead: which requests are out, which blocks were read since, and whether
//! there is a point in more.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use weir_worker::PrefetchAnswer;

/// Blocks that are kept track of. Beyond that all are forgotten, and do not count as read.
const MAX_BLOCKS: usize = 100_000;

/// How long nothing is asked for after so many requests in a row that were refused, or not needed.
const PAUSE: Duration = Duration::from_millis(250);
const MOST_REFUSED: u32 = 16;
const MOST_NOT_NEEDED: u32 = 128;

/// A block of a file: the file's index in the manifest, and the block's number.
pub(super) type BlockAt = (u32, u32);

/// The blocks that were asked for.
#[derive(Default)]
pub(super) struct Requests {
    blocks: HashMap<BlockAt, Request>,
    /// Requests in a row that were refused, and that were not needed.
    refused: u32,
    not_needed: u32,
    /// None is to be made before.
    pause: Option<Instant>,
}

/// What is known of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Request {
    /// It has not been answered.
    Sent,
    /// A reader came before the answer.
    Overtaken,
    /// The block is being fetched for it, or was.
    Accepted,
}

/// What a request came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The block is fetched for it.
    pub(super) fetched: bool,
    /// And was read already.
    pub(super) used: bool,
}

impl Requests {
    /// Whether the answers of late give reason to ask for more.
    pub(super) fn may_ask(&self) -> bool {
        self.pause.is_none_or(|end| end < Instant::now())
    }

    /// Notes a request, before it is made. False when the block was fetched for an earlier one and not read since.
    pub(super) fn add(&mut self, block: BlockAt) -> bool {
        if self.blocks.get(&block) == Some(&Request::Accepted) {
            return false;
        }
        if self.blocks.len() >= MAX_BLOCKS {
            self.blocks.clear();
        }
        self.blocks.insert(block, Request::Sent);
        true
    }

    /// Notes the answer to a request.
    pub(super) fn answered(&mut self, block: BlockAt, answer: PrefetchAnswer) -> Outcome {
        let before = self.blocks.remove(&block);
        let fetched = answer == PrefetchAnswer::Accepted;
        let used = fetched && before == Some(Request::Overtaken);
        if fetched && before == Some(Request::Sent) {
            self.blocks.insert(block, Request::Accepted);
        }
        self.learn(answer);
        Outcome { fetched, used }
    }

    /// Learns from an answer whether there is a point in more requests.
    pub(super) fn learn(&mut self, answer: PrefetchAnswer) {
        (self.refused, self.not_needed) = match answer {
            PrefetchAnswer::Accepted => (0, 0),
            PrefetchAnswer::NotNeeded => (0, self.not_needed + 1),
            PrefetchAnswer::Refused => (self.refused + 1, 0),
        };
        if self.refused == MOST_REFUSED || self.not_needed == MOST_NOT_NEEDED {
            (self.refused, self.not_needed) = (0, 0);
            self.pause = Some(Instant::now() + PAUSE);
        }
    }

    /// Notes that a block is read; true when it was fetched for a request and had not been read since.
    pub(super) fn read(&mut self, block: BlockAt) -> bool {
        match self.blocks.get_mut(&block) {
            Some(Request::Accepted) => self.blocks.remove(&block).is_some(),
            Some(request) => {
                *request = Request::Overtaken;
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: BlockAt = (7, 3);

    #[test]
    fn after_many_requests_in_vain_there_is_a_pause() {
        for (answer, most) in [
            (PrefetchAnswer::Refused, MOST_REFUSED),
            (PrefetchAnswer::NotNeeded, MOST_NOT_NEEDED),
        ] {
            let mut requests = Requests::default();
            for _ in 1..most {
                requests.learn(answer);
            }
            requests.learn(PrefetchAnswer::Accepted);
            for _ in 0..most {
                assert!(requests.may_ask());
                requests.learn(answer);
            }
            assert!(!requests.may_ask());
        }
    }

    #[test]
    fn a_block_counts_as_used_once_whether_its_reader_comes_before_the_answer_or_after() {
        let fetched = |used| Outcome {
            fetched: true,
            used,
        };
        let mut requests = Requests::default();
        assert!(requests.add(BLOCK));
        assert_eq!(
            requests.answered(BLOCK, PrefetchAnswer::Accepted),
            fetched(false)
        );
        assert!(!requests.add(BLOCK), "it is here");
        assert!(requests.read(BLOCK));
        assert!(!requests.read(BLOCK));

        assert!(requests.add(BLOCK));
        assert!(!requests.read(BLOCK));
        assert_eq!(
            requests.answered(BLOCK, PrefetchAnswer::Accepted),
            fetched(true)
        );
        assert!(!requests.read(BLOCK));
    }

    #[test]
    fn a_request_that_fetched_nothing_is_never_used() {
        for answer in [PrefetchAnswer::NotNeeded, PrefetchAnswer::Refused] {
            let nothing = Outcome {
                fetched: false,
                used: false,
            };
            let mut requests = Requests::default();
            assert!(requests.add(BLOCK));
            assert_eq!(requests.answered(BLOCK, answer), nothing);
            assert!(!requests.read(BLOCK));
            assert!(requests.add(BLOCK));
            assert!(!requests.read(BLOCK));
            assert_eq!(requests.answered(BLOCK, answer), nothing);
            assert!(!requests.read(BLOCK));
        }
    }
}
