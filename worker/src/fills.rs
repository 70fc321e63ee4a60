//! The fills of a worker, and what becomes of a block when its fill ends.
//!
//! Whatever else runs at the same time:
//!
//! - At most one fill of a block is under way.
//! - A fill is found until its block is found elsewhere: in a tier or, if none took it, in `recent.rs`.
//! - A block that is evicted while it is fetched is in none of these afterwards. Its readers get it.
//! - Each fill ends, even if whoever polls it goes away, so nobody waits for it for ever.
//!
//! Tested under schedules of all kinds by `interleavings/`.

use std::collections::HashMap;
use std::sync::Arc;

use weir_core::BlockKey;
use weir_origin::OriginError;

use crate::fill::Fill;
use crate::recent::Recent;
use crate::sync::Mutex;

/// Has tiers, and fills whose blocks they may keep.
pub(crate) trait Keeper: Send + Sync + 'static {
    /// What was taken out of the tiers.
    type Removed;

    /// Its fills.
    fn fills(&self) -> &Fills;

    /// Whether a tier holds the block.
    fn keeps(&self, key: &BlockKey) -> bool;

    /// Takes blocks out of the tiers.
    fn remove(&self, keys: &[BlockKey]) -> Self::Removed;

    /// The set of held blocks may have changed.
    fn changed(&self);
}

/// Blocks that are on their way from the origin to the tiers, and those that no tier took.
#[derive(Debug)]
pub(crate) struct Fills {
    running: Mutex<HashMap<BlockKey, Arc<Fill>>>,
    recent: Recent,
}

impl Fills {
    /// None yet, beside a memory tier of so many bytes.
    pub(crate) fn new(memory: u64) -> Self {
        Self {
            running: Mutex::new(HashMap::new()),
            recent: Recent::new(memory),
        }
    }

    /// The block's fill, if it is under way, or its block was refused by all tiers a moment ago.
    pub(crate) fn find(&self, key: &BlockKey) -> Option<Arc<Fill>> {
        // In this order, as a block goes from the one to the other.
        self.running(key).or_else(|| self.recent.get(key))
    }

    /// The block's fill, if it is under way.
    pub(crate) fn running(&self, key: &BlockKey) -> Option<Arc<Fill>> {
        self.running.lock().get(key).cloned()
    }

    /// How many are under way.
    pub(crate) fn len(&self) -> usize {
        self.running.lock().len()
    }

    /// The tiers are not to keep what is under way of these blocks.
    fn discard(&self, keys: &[BlockKey]) {
        let running = self.running.lock();
        let discarded = keys.iter().filter_map(|key| running.get(key));
        discarded.for_each(|fill| fill.discard());
        drop(running);
        self.recent.remove(keys);
    }
}

/// Drops blocks, also those that are under way.
pub(crate) fn evict<K: Keeper>(keeper: &K, keys: &[BlockKey]) -> K::Removed {
    // Before the tiers: what is not under way any more is found there.
    keeper.fills().discard(keys);
    let removed = keeper.remove(keys);
    keeper.changed();
    removed
}

/// Starts the fill of a block of `len` bytes, or gives the one that is under way.
pub(crate) fn start<K: Keeper>(
    keeper: &Arc<K>,
    key: BlockKey,
    len: u32,
    object: &Arc<str>,
) -> Result<Started<K>, Arc<Fill>> {
    let fill = Fill::new(len);
    {
        let mut running = keeper.fills().running.lock();
        if let Some(running) = running.get(&key) {
            return Err(running.clone());
        }
        running.insert(key, fill.clone());
    }
    Ok(Started {
        keeper: keeper.clone(),
        object: object.clone(),
        key,
        fill,
        was_held: false,
    })
}

/// A fill that is under way until this is dropped, which is to happen when the tiers have taken its block or refused it.
/// A fill that is not complete then fails.
pub(crate) struct Started<K: Keeper> {
    keeper: Arc<K>,
    object: Arc<str>,
    key: BlockKey,
    fill: Arc<Fill>,
    was_held: bool,
}

impl<K: Keeper> Started<K> {
    /// What readers wait for.
    pub(crate) fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }

    /// The block.
    pub(crate) fn key(&self) -> BlockKey {
        self.key
    }

    /// Ends it with an error.
    pub(crate) fn fail(self, error: OriginError) {
        self.fill.fail(error);
    }

    /// Ends it: its bytes came from a tier, which got the block just before the fill was started.
    pub(crate) fn was_held(mut self) {
        self.was_held = true;
    }

    /// A block that no tier took stays readable for a moment; one that was evicted meanwhile is taken out of the tiers
    /// again.
    fn settle(&self) {
        let fills = self.keeper.fills();
        if !self.was_held && !self.keeper.keeps(&self.key) {
            fills.recent.put(self.key, &self.fill);
        }
        // Last, and while an eviction finds the fill: one that comes later finds the block where it is now.
        if self.fill.is_discarded() {
            fills.recent.remove(&[self.key]);
            self.keeper.remove(&[self.key]);
        }
    }
}

impl<K: Keeper> Drop for Started<K> {
    fn drop(&mut self) {
        if self.fill.is_complete() {
            self.settle();
        } else if !self.fill.has_failed() {
            self.fill.fail(OriginError::interrupted(&self.object));
        }
        self.keeper.fills().running.lock().remove(&self.key);
        self.keeper.changed();
    }
}
