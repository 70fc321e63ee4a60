//! Reads of the disk for callers that must not block.

use tokio::sync::Semaphore;

/// Reads at once: as many keep a device busy, and more would find no [huge](super::huge) buffers.
const AT_ONCE: usize = 8;

static PLACES: Semaphore = Semaphore::const_new(AT_ONCE);

/// Runs a read of the disk on a thread that may block, after others if there are many. `None` when it panicked or
/// the runtime is shutting down.
pub async fn in_background<T: Send + 'static>(
    read: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    // The semaphore is never closed.
    let place = PLACES.acquire().await.ok()?;
    let read = move || {
        let _place = place;
        read()
    };
    tokio::task::spawn_blocking(read).await.ok()
}
