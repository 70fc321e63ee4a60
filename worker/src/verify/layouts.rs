//! What origins say of objects, once they were asked.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weir_core::{BlockKey, OriginId};
use weir_origin::ObjectChecksum;

use super::verifier::{Arrived, Said};

/// Objects at most, and their parts; the first are forgotten first.
const MAX_OBJECTS: usize = 16 << 10;
const MAX_PARTS: usize = 256 << 10;
/// Blocks that wait for an origin's answer.
const MAX_WAITING: usize = 4096;
/// An origin that had no checksum of so many objects in a row is asked for one once in so long.
const FEW: u32 = 16;
const SELDOM: Duration = Duration::from_mins(1);

/// What is known of an object's checksum.
pub(super) enum Layout {
    /// The origin was asked; these blocks wait for its answer.
    Asked(Vec<Arrived>),
    /// The checksum.
    Known(Arc<ObjectChecksum>),
    /// The origin has none.
    Nothing,
}

#[derive(Default)]
pub(super) struct Layouts {
    objects: HashMap<BlockKey, Layout>,
    order: VecDeque<BlockKey>,
    parts: usize,
    waiting: usize,
    /// How many objects in a row had none, and when one was asked for last.
    without: HashMap<OriginId, (u32, Instant)>,
}

impl Layouts {
    pub(super) fn get(&self, id: &BlockKey) -> Option<&Layout> {
        self.objects.get(id)
    }

    /// Whether an origin may be asked now.
    pub(super) fn may_ask(&mut self, origin: OriginId) -> bool {
        let now = Instant::now();
        match self.without.get_mut(&origin) {
            Some((count, last)) if *count >= FEW => {
                let due = now.duration_since(*last) >= SELDOM;
                if due {
                    *last = now;
                }
                due
            }
            _ => true,
        }
    }

    /// The origin was asked for the sake of this block.
    pub(super) fn ask(&mut self, id: BlockKey, first: Arrived) {
        self.waiting += 1;
        self.put(id, Layout::Asked(vec![first]));
    }

    /// A block waits for the answer. Gives it back where too many do.
    pub(super) fn wait(&mut self, id: &BlockKey, arrived: Arrived) -> Result<(), Arrived> {
        match self.objects.get_mut(id) {
            Some(Layout::Asked(blocks)) if self.waiting < MAX_WAITING => {
                self.waiting += 1;
                blocks.push(arrived);
                Ok(())
            }
            _ => Err(arrived),
        }
    }

    /// The origin has answered, or failed; gives the blocks that have waited for it.
    pub(super) fn answered(
        &mut self,
        id: BlockKey,
        origin: OriginId,
        answer: &Said,
    ) -> Vec<Arrived> {
        let waited = match self.objects.remove(&id) {
            Some(Layout::Asked(blocks)) => blocks,
            _ => Vec::new(),
        };
        self.waiting -= waited.len();
        match answer {
            Said::NotNow => self.order.retain(|other| *other != id), // the next block asks again
            Said::Nothing => {
                let (count, _) = self.without.entry(origin).or_insert((0, Instant::now()));
                *count = count.saturating_add(1);
                self.objects.insert(id, Layout::Nothing);
            }
            Said::Checksum(checksum) => {
                self.without.remove(&origin);
                self.parts += checksum.parts().len();
                self.objects.insert(id, Layout::Known(checksum.clone()));
            }
        }
        self.make_room();
        waited
    }

    fn put(&mut self, id: BlockKey, layout: Layout) {
        self.objects.insert(id, layout);
        self.order.push_back(id);
        self.make_room();
    }

    fn make_room(&mut self) {
        let mut kept = VecDeque::new();
        while self.order.len() + kept.len() > MAX_OBJECTS || self.parts > MAX_PARTS {
            let Some(first) = self.order.pop_front() else {
                break;
            };
            match self.objects.remove(&first) {
                Some(asked @ Layout::Asked(_)) => {
                    // Its answer comes soon.
                    self.objects.insert(first, asked);
                    kept.push_back(first);
                }
                Some(Layout::Known(checksum)) => self.parts -= checksum.parts().len(),
                Some(Layout::Nothing) | None => {}
            }
        }
        kept.append(&mut self.order);
        self.order = kept;
    }
}
