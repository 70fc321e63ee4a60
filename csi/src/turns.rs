//! One call at a time for each name: kubelet calls for the same volume again before the first call has ended.
//!
//! Invariant: a name is in the table only while somebody has its turn or waits for it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Turns by name.
#[derive(Debug)]
pub(crate) struct Turns<K: Eq + Hash> {
    waiting: Arc<Mutex<HashMap<K, Arc<Semaphore>>>>,
}

impl<K: Eq + Hash> Default for Turns<K> {
    fn default() -> Self {
        Self {
            waiting: Arc::default(),
        }
    }
}

/// The turn of a name, until it is dropped. The permit goes first: the place counts who still refers to the turn.
#[derive(Debug)]
pub(crate) struct Turn<K: Eq + Hash> {
    _permit: OwnedSemaphorePermit,
    _place: Place<K>,
}

/// A place in the table.
#[derive(Debug)]
struct Place<K: Eq + Hash> {
    waiting: Arc<Mutex<HashMap<K, Arc<Semaphore>>>>,
    name: K,
    turn: Option<Arc<Semaphore>>,
}

impl<K: Eq + Hash + Clone> Turns<K> {
    /// Waits for the turn of `name`; `None` when that takes longer than `most`.
    pub(crate) async fn take(&self, name: &K, most: Duration) -> Option<Turn<K>> {
        let turn = {
            let mut waiting = self.waiting.lock();
            waiting
                .entry(name.clone())
                .or_insert_with(|| Arc::new(Semaphore::new(1)))
                .clone()
        };
        // From here on it is taken out again, also if this call is dropped while it waits.
        let place = Place {
            waiting: self.waiting.clone(),
            name: name.clone(),
            turn: Some(turn.clone()),
        };
        let permit = tokio::time::timeout(most, turn.acquire_owned()).await;
        let permit = permit.ok()?.ok()?;
        Some(Turn {
            _permit: permit,
            _place: place,
        })
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock();
        self.turn = None;
        if waiting
            .get(&self.name)
            .is_some_and(|turn| Arc::strong_count(turn) == 1)
        {
            waiting.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);
    const NOW: Duration = Duration::from_millis(10);

    #[tokio::test]
    async fn a_name_has_one_turn_and_is_forgotten_with_the_last_who_wants_it() {
        let turns = Arc::new(Turns::default());
        let first = turns.take(&"a", SOON).await.unwrap();
        let other = turns.take(&"b", SOON).await.unwrap();
        assert!(turns.take(&"a", NOW).await.is_none());
        let waiting = {
            let turns = turns.clone();
            tokio::spawn(async move { turns.take(&"a", SOON).await.is_some() })
        };
        drop((first, other));
        assert!(waiting.await.unwrap());
        assert!(turns.waiting.lock().is_empty());
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_while_it_waits_leaves_nothing_behind() {
        let turns = Arc::new(Turns::default());
        let first = turns.take(&"a", SOON).await.unwrap();
        let waiting = {
            let turns = turns.clone();
            tokio::spawn(async move { turns.take(&"a", SOON).await.is_some() })
        };
        tokio::task::yield_now().await;
        waiting.abort();
        assert!(waiting.await.is_err());
        drop(first);
        assert!(turns.take(&"a", SOON).await.is_some());
        assert!(turns.waiting.lock().is_empty());
    }
}
