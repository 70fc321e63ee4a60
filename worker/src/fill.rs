//! A fill: one block on its way from the origin, with everybody who waits for it.
//!
//! Bytes arrive in order. A reader that wants `offset..end` wakes once, as soon as `end` has arrived, not when the
//! block is complete. A fill ends once, with all bytes or with one error that every waiting reader gets.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::sync::oneshot;
use weir_origin::OriginError;

use crate::sync::{AtomicBool, Mutex, Ordering};

/// What even a small block takes: the pieces that came from the network lie in buffers of this size.
pub(crate) const LEAST_TAKEN: u64 = 128 << 10;

/// A block that is being fetched, or was fetched and is on its way to a tier.
#[derive(Debug)]
pub struct Fill {
    len: u32,
    /// Evicted while it was under way: its readers get it, the tiers do not.
    unwanted: AtomicBool,
    /// It has its turn at the origin.
    fetching: AtomicBool,
    /// Its bytes came from another worker.
    copied: AtomicBool,
    /// The origin has sent them to that one because of this fill.
    sent_for_copy: AtomicBool,
    /// Another worker is asked for it, which may fetch it.
    forwarded: AtomicBool,
    state: Mutex<State>,
}

/// A block as another worker gave it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Given {
    pub(crate) data: Bytes,
    /// It was fetched from the origin because it was asked for.
    pub(crate) was_fetched: bool,
}

#[derive(Debug, Default)]
struct State {
    chunks: Vec<Bytes>,
    /// Bytes that have arrived.
    filled: u32,
    failed: Option<OriginError>,
    /// Readers, with the end of what each of them waits for.
    waiting: Vec<(u32, oneshot::Sender<()>)>,
}

impl Fill {
    /// A fill of a block of `len` bytes, of which none has arrived.
    pub(crate) fn new(len: u32) -> Arc<Self> {
        Arc::new(Self {
            len,
            unwanted: AtomicBool::new(false),
            fetching: AtomicBool::new(false),
            copied: AtomicBool::new(false),
            sent_for_copy: AtomicBool::new(false),
            forwarded: AtomicBool::new(false),
            state: Mutex::new(State::default()),
        })
    }

    /// Bytes of the whole block.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// The tiers are not to keep the block.
    pub(crate) fn discard(&self) {
        self.unwanted.store(true, Ordering::Release);
    }

    /// Whether the tiers are not to keep the block.
    pub(crate) fn is_discarded(&self) -> bool {
        self.unwanted.load(Ordering::Acquire)
    }

    /// Whether it has had its turn at the origin.
    pub(crate) fn is_fetching(&self) -> bool {
        self.fetching.load(Ordering::Relaxed)
    }

    /// Adds the whole block as another worker has it, or has fetched it for this.
    pub(crate) fn copy(&self, given: Given) {
        self.sent_for_copy
            .store(given.was_fetched, Ordering::Release);
        self.copied.store(true, Ordering::Release);
        self.push(given.data);
    }

    /// Whether its bytes came from another worker.
    pub(crate) fn is_copied(&self) -> bool {
        self.copied.load(Ordering::Acquire)
    }

    /// Whether the origin has sent its bytes because of it, here or to a worker that was asked for them.
    pub(crate) fn was_fetched(&self) -> bool {
        !self.is_copied() || self.sent_for_copy.load(Ordering::Acquire)
    }

    /// Another worker is asked for it that may have to fetch it, or not any more. Set before that one is asked: of workers
    /// that ask each other in a circle, one then sees it, and does not wait.
    pub(crate) fn forward(&self, is_asked: bool) {
        self.forwarded.store(is_asked, Ordering::SeqCst);
    }

    /// Whether another worker is asked for it that may have to fetch it.
    pub(crate) fn is_forwarded(&self) -> bool {
        self.forwarded.load(Ordering::SeqCst)
    }

    /// Adds all that comes from the origin.
    pub(crate) async fn take(
        &self,
        chunks: impl Stream<Item = Result<Bytes, OriginError>>,
    ) -> Result<(), OriginError> {
        self.fetching.store(true, Ordering::Relaxed);
        let mut chunks = std::pin::pin!(chunks);
        while let Some(chunk) = chunks.next().await {
            if self.push(chunk?) && !self.is_complete() {
                // Readers that this thread has woken come first: a fast origin has the rest ready without a pause.
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// Adds the next bytes; gives whether readers were woken. What goes beyond the block's length is cut off.
    pub(crate) fn push(&self, mut data: Bytes) -> bool {
        let mut state = self.state.lock();
        data.truncate((self.len - state.filled) as usize);
        state.filled += data.len() as u32;
        state.chunks.push(data);
        let filled = state.filled;
        let ready: Vec<_> = state
            .waiting
            .extract_if(.., |(end, _)| *end <= filled)
            .collect();
        drop(state);
        let woken = !ready.is_empty();
        wake(ready);
        woken
    }

    /// Ends the fill with an error.
    pub(crate) fn fail(&self, error: OriginError) {
        let mut state = self.state.lock();
        state.failed = Some(error);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        wake(waiting);
    }

    /// Whether it has ended with an error.
    pub(crate) fn has_failed(&self) -> bool {
        self.state.lock().failed.is_some()
    }

    /// The whole block in the pieces that it came in, once it is complete.
    pub(crate) fn complete(&self) -> Option<Vec<Bytes>> {
        let state = self.state.lock();
        (state.filled == self.len).then(|| state.chunks.clone())
    }

    /// Whether all bytes have arrived.
    pub(crate) fn is_complete(&self) -> bool {
        self.state.lock().filled == self.len
    }

    /// The bytes of `range`, if they have all arrived.
    pub fn try_read(&self, range: &Range<u32>) -> Option<Vec<Bytes>> {
        self.state.lock().read(range)
    }

    /// Waits for the bytes of `range`. The wait ends with the fill, which has the origin's time budget.
    pub async fn read(&self, range: Range<u32>) -> Result<Vec<Bytes>, OriginError> {
        let woken = {
            let mut state = self.state.lock();
            if let Some(result) = state.outcome(&range) {
                return result;
            }
            let (wake, woken) = oneshot::channel();
            state.waiting.push((range.end, wake));
            woken
        };
        // A sender is used or lives in `self`, so the wait cannot end without a reason.
        let _ = woken.await;
        let outcome = self.state.lock().outcome(&range);
        outcome.unwrap_or_else(|| unreachable!("a reader is woken by its bytes or by an error"))
    }

    /// Waits until the last byte has arrived.
    pub async fn finished(&self) -> Result<(), OriginError> {
        self.read(self.len..self.len).await.map(drop)
    }
}

impl State {
    fn outcome(&self, range: &Range<u32>) -> Option<Result<Vec<Bytes>, OriginError>> {
        self.read(range)
            .map(Ok)
            .or_else(|| self.failed.clone().map(Err))
    }

    fn read(&self, range: &Range<u32>) -> Option<Vec<Bytes>> {
        if self.filled < range.end {
            return None;
        }
        let mut pieces = Vec::new();
        let mut at = 0;
        for chunk in &self.chunks {
            let end = at + chunk.len() as u32;
            let from = range.start.max(at);
            let to = range.end.min(end);
            if from < to {
                pieces.push(chunk.slice((from - at) as usize..(to - at) as usize));
            }
            at = end;
        }
        Some(pieces)
    }
}

fn wake(readers: Vec<(u32, oneshot::Sender<()>)>) {
    for (_, reader) in readers {
        let _ = reader.send(()); // one that no longer waits
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_reader_gets_its_range_before_the_block_is_complete() {
        let fill = Fill::new(10);
        let waiting = tokio::spawn({
            let fill = fill.clone();
            async move { fill.read(2..6).await }
        });
        fill.push(Bytes::from_static(b"abcd"));
        fill.push(Bytes::from_static(b"efg"));
        let pieces = waiting.await.unwrap().unwrap();
        assert_eq!(pieces.concat(), b"cdef");
        assert!(fill.complete().is_none());
        fill.push(Bytes::from_static(b"hijklm"));
        assert_eq!(fill.complete().unwrap().concat(), b"abcdefghij");
        assert_eq!(fill.try_read(&(8..10)).unwrap().concat(), b"ij");
        fill.finished().await.unwrap();
    }

    /// On the one thread of this test, a reader runs only when the fill lets it.
    #[tokio::test]
    async fn a_reader_does_not_wait_for_the_rest_that_is_ready_too() {
        let fill = Fill::new(12);
        let reading = tokio::spawn({
            let fill = fill.clone();
            async move {
                let pieces = fill.read(0..4).await.unwrap();
                (pieces.concat(), fill.is_complete())
            }
        });
        tokio::task::yield_now().await; // it waits now
        let chunks = ["abcd", "efgh", "ijkl"].map(|chunk| Ok(Bytes::from_static(chunk.as_bytes())));
        fill.take(futures::stream::iter(chunks)).await.unwrap();
        assert_eq!(reading.await.unwrap(), (b"abcd".to_vec(), false));
        assert_eq!(fill.complete().unwrap().concat(), b"abcdefghijkl");
    }

    #[tokio::test]
    async fn a_failure_reaches_every_waiting_reader_but_not_the_bytes_that_came() {
        let fill = Fill::new(10);
        fill.push(Bytes::from_static(b"abcd"));
        let error = OriginError::NotFound {
            origin: "s3://b".into(),
            key: "k".into(),
        };
        fill.fail(error);
        assert!(fill.read(2..6).await.is_err());
        assert!(fill.finished().await.is_err());
        assert_eq!(fill.read(0..4).await.unwrap().concat(), b"abcd");
    }

    /// Bytes that arrive while a reader is about to wait must wake it.
    #[tokio::test]
    async fn no_wake_up_is_lost() {
        const ROUNDS: usize = 100_000;
        let fills: Arc<Vec<_>> = Arc::new((0..ROUNDS).map(|_| Fill::new(1)).collect());
        let started = Arc::new(AtomicUsize::new(0));
        let pusher = std::thread::spawn({
            let (fills, started) = (fills.clone(), started.clone());
            move || {
                for (round, fill) in fills.iter().enumerate() {
                    while started.load(Ordering::Acquire) <= round {
                        std::hint::spin_loop();
                    }
                    fill.push(Bytes::from_static(b"x"));
                }
            }
        });
        for (round, fill) in fills.iter().enumerate() {
            started.store(round + 1, Ordering::Release);
            let woken = tokio::time::timeout(Duration::from_secs(10), fill.read(0..1)).await;
            let Ok(read) = woken else {
                started.store(ROUNDS, Ordering::Release); // lets the other thread end
                panic!("the reader of round {round} sleeps on");
            };
            assert_eq!(read.unwrap().concat(), b"x");
        }
        pusher.join().unwrap();
    }
}
