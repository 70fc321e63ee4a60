//! A fill's place among those that are under way.
//!
//! The budget of all fills bounds the memory that they take. A fill to which nothing comes for a while gives its place to
//! others and takes one again before it goes on: an origin that is down, or silent, holds up nobody but its own readers,
//! however long those are to wait. The fills of one origin take at most the whole budget together, silent ones
//! included, so that they are no more, and hold no more connections, than if it answered. A block that another worker gives
//! takes of the budget alone: how many questions are under way is bounded where they are asked (`copies.rs`).

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How long nothing comes before a fill gives its place to others: longer than a slow answer, shorter than readers of other
/// origins would take for an outage.
const SILENCE: Duration = Duration::from_secs(1);

/// The place of one fill.
pub(super) struct Place {
    budget: Arc<Semaphore>,
    units: u32,
    held: Option<OwnedSemaphorePermit>,
    /// Its part of what the fills of its origin may take, if it comes from there.
    _share: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Waits for a place of so many units of the budget, and of an origin's share of it if the block comes from one. `None`
    /// when the worker ends.
    pub(super) async fn take(
        share: Option<Arc<Semaphore>>,
        budget: Arc<Semaphore>,
        units: u32,
    ) -> Option<Self> {
        let share = match share {
            Some(share) => Some(share.acquire_many_owned(units).await.ok()?),
            None => None,
        };
        let held = budget.clone().acquire_many_owned(units).await.ok()?;
        Some(Self {
            budget,
            units,
            held: Some(held),
            _share: share,
        })
    }

    /// The next of what the fill gets. The place is held when it is there.
    pub(super) async fn next<T>(
        &mut self,
        chunks: &mut (impl Stream<Item = T> + Unpin),
    ) -> Option<T> {
        if let Ok(next) = timeout(SILENCE, chunks.next()).await {
            return next;
        }
        self.held = None;
        let next = chunks.next().await?;
        let budget = self.budget.clone();
        self.held = budget.acquire_many_owned(self.units).await.ok();
        self.held.is_some().then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_fill_gives_its_place_to_another_origins_and_takes_one_before_it_goes_on() {
        let budget = Arc::new(Semaphore::new(10));
        let share = || Some(Arc::new(Semaphore::new(10)));
        let mut silent = Place::take(share(), budget.clone(), 10).await.unwrap();
        let late = stream::once(tokio::time::sleep(Duration::from_mins(1)));
        let mut late = Box::pin(late);
        let going_on = tokio::spawn(async move {
            assert_eq!(silent.next(&mut late).await, Some(()));
            silent
        });
        let other = Place::take(share(), budget.clone(), 10);
        let other = timeout(2 * SILENCE, other).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_mins(2)).await;
        assert!(!going_on.is_finished(), "it has its bytes, and no place");
        drop(other);
        let silent = going_on.await.unwrap();
        assert_eq!(budget.available_permits(), 0);
        drop(silent);
        assert_eq!(budget.available_permits(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn the_fills_of_a_silent_origin_are_no_more_than_those_of_one_that_answers() {
        let budget = Arc::new(Semaphore::new(10));
        let share = Some(Arc::new(Semaphore::new(10)));
        let mut silent = Place::take(share.clone(), budget.clone(), 10)
            .await
            .unwrap();
        let waiting = tokio::spawn(async move { silent.next(&mut stream::pending::<()>()).await });
        let next = Place::take(share, budget.clone(), 10);
        assert!(timeout(Duration::from_mins(5), next).await.is_err());
        assert_eq!(budget.available_permits(), 10, "others have all of it");
        waiting.abort();
    }
}
