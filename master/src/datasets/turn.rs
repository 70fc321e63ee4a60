//! Who lists when: one listing of a dataset at a time, and of all long ones a few.
//!
//! A listing goes on when its caller has gone, but not while it waits: for its turn, or for a source that does not answer.
//! What was not listed is then as it was.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use weir_core::DatasetName;
use weir_origin::{Listed, Origin, OriginError};

use super::Datasets;
use crate::error::MasterError;

/// Objects from which on a listing is a long one, whose memory counts: about 1 MiB of them.
const LONG: u64 = 10_000;
/// Long listings at once: each has up to 150 MiB, and a page under way.
pub(super) const MAX_LONG: usize = 4;
/// Longest wait until others have ended.
const LONG_DEADLINE: Duration = Duration::from_hours(1);
/// What is told of a listing that waits for others.
const QUEUED: &str = "other long listings, which come first";

/// The listing of a dataset that is under way, and those that wait for it.
#[derive(Debug, Default)]
pub(super) struct Turn {
    lock: Arc<tokio::sync::Mutex<()>>,
    now: Mutex<Now>,
}

/// What a listing does.
#[derive(Debug, Default)]
enum Now {
    #[default]
    Nothing,
    Lists(Arc<dyn Origin>),
    Queues,
}

impl Turn {
    /// What its listing waits for.
    fn waits_for(&self) -> Option<String> {
        match &*self.now.lock() {
            Now::Nothing => None,
            Now::Lists(origin) => Some(origin.contact()?.trouble()?.to_string()),
            Now::Queues => Some(QUEUED.to_owned()),
        }
    }
}

/// The right to list a dataset, or to delete it.
pub(crate) struct Listing<'a> {
    datasets: &'a Datasets,
    name: DatasetName,
    /// Cancelled when nobody waits for the outcome any more.
    gone: CancellationToken,
    turn: Option<Arc<Turn>>,
    held: Option<OwnedMutexGuard<()>>,
}

impl Datasets {
    /// Waits for the right to list a dataset, or to delete it, as long as the caller does: `gone` is cancelled when it has
    /// gone.
    pub(crate) async fn listing(
        &self,
        name: &DatasetName,
        gone: CancellationToken,
    ) -> Result<Listing<'_>, MasterError> {
        let turn = self
            .listings
            .lock()
            .entry(name.clone())
            .or_default()
            .clone();
        let lock = turn.lock.clone();
        // Made before the wait, so that the table is tidied also if that is given up.
        let mut listing = Listing {
            datasets: self,
            name: name.clone(),
            gone,
            turn: Some(turn),
            held: None,
        };
        listing.held = Some(listing.unless_gone(lock.lock_owned()).await?);
        Ok(listing)
    }

    /// Whether a dataset is being listed, and what the listing waits for.
    pub(crate) fn under_way(&self, name: &DatasetName) -> (bool, Option<String>) {
        // Under the lock: with a reference outside of the table a listing that ends now would be left in it.
        let listings = self.listings.lock();
        let turn = listings.get(name);
        (turn.is_some(), turn.and_then(|turn| turn.waits_for()))
    }
}

impl Listing<'_> {
    /// The dataset's name.
    pub(crate) fn name(&self) -> &DatasetName {
        &self.name
    }

    /// Waits, unless the caller goes.
    async fn unless_gone<T>(&self, wait: impl Future<Output = T>) -> Result<T, MasterError> {
        tokio::select! {
            biased;
            done = wait => Ok(done),
            () = self.gone.cancelled() => Err(MasterError::Abandoned(self.name.clone())),
        }
    }

    /// Has people told of this origin, as long as what this gives is there.
    pub(super) fn lists(&self, origin: Arc<dyn Origin>) -> Shown {
        self.show(Now::Lists(origin))
    }

    fn show(&self, now: Now) -> Shown {
        let turn = self.turn.clone().unwrap_or_default();
        let before = std::mem::replace(&mut *turn.now.lock(), now);
        Shown { turn, before }
    }

    /// The next page of an origin. Ends while that does not answer, if nobody waits for the listing.
    pub(super) async fn page(
        &self,
        origin: &dyn Origin,
        pages: &mut (impl Stream<Item = Result<Vec<Listed>, OriginError>> + Unpin),
    ) -> Result<Option<Vec<Listed>>, MasterError> {
        let in_trouble = async || match origin.contact() {
            Some(contact) => contact.in_trouble().await,
            None => std::future::pending().await,
        };
        let abandoned = async {
            self.gone.cancelled().await;
            in_trouble().await;
        };
        let tell = async {
            in_trouble().await;
            if let Some(untold) = self.datasets.listed.line() {
                let waits_for = self.turn.as_ref().and_then(|turn| turn.waits_for());
                let waits_for = waits_for.unwrap_or_default();
                tracing::warn!(dataset = %self.name, untold, "a listing waits: {waits_for}");
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            page = pages.next() => Ok(page.transpose()?),
            () = abandoned => Err(MasterError::Abandoned(self.name.clone())),
            () = tell => Ok(None), // it does not end
        }
    }

    /// Waits for others if a listing of so many objects is a long one, and `place` has no place among those yet.
    pub(super) async fn take_place(
        &self,
        objects: u64,
        place: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<(), MasterError> {
        if objects < LONG || place.is_some() {
            return Ok(());
        }
        let _shown = self.show(Now::Queues);
        let places: Arc<Semaphore> = self.datasets.long_listings.clone();
        let taken = timeout(LONG_DEADLINE, places.acquire_owned());
        *place = match self.unless_gone(taken).await? {
            Ok(taken) => taken.ok(), // it is never closed
            Err(_) => {
                return Err(MasterError::Busy(format!(
                    "{MAX_LONG} long listings have been under way for {LONG_DEADLINE:?}; try again later"
                )));
            }
        };
        Ok(())
    }
}

impl Drop for Listing<'_> {
    fn drop(&mut self) {
        (self.held, self.turn) = (None, None);
        // Callers may name any dataset, so what nobody waits for is forgotten.
        let mut listings = self.datasets.listings.lock();
        if let Some(turn) = listings.get(&self.name)
            && Arc::strong_count(turn) == 1
        {
            listings.remove(&self.name);
        }
    }
}

/// Has people told what a listing does, until it is dropped.
pub(super) struct Shown {
    turn: Arc<Turn>,
    before: Now,
}

impl Drop for Shown {
    fn drop(&mut self) {
        *self.turn.now.lock() = std::mem::take(&mut self.before);
    }
}
