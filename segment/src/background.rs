//! Reads of the disk for callers that must not block.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Reads at once, for each core and at most: as many keep a device busy, and leave threads for other devices, of which
/// the runtime has some hundreds.
const PER_CORE: usize = 4;
const MOST: usize = 32;

static AT_ONCE: LazyLock<usize> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (PER_CORE * cores).min(MOST)
});

type Read = Box<dyn FnOnce() + Send>;

/// Threads for the reads of one device, and what waits for them. A device that hangs does not take those of others.
#[derive(Default)]
pub struct Background {
    queue: Arc<Mutex<Queue>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Read>,
    threads: usize,
    taken: u64,
}

/// One of the threads.
struct Reading {
    queue: Arc<Mutex<Queue>>,
    is_counted: bool,
}

impl Background {
    /// Reads that are under way or wait, and how many were ever taken up: while there are some, and no other is taken up, none
    /// ends.
    pub fn progress(&self) -> (usize, u64) {
        let queue = self.queue.lock();
        (queue.threads + queue.waiting.len(), queue.taken)
    }

    /// Runs a read on a thread that may block, after others if there are many. `None` when it panicked or the runtime
    /// is shutting down.
    pub async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (tell, told) = oneshot::channel();
        let read = Box::new(move || {
            if !tell.is_closed() {
                // Whoever asked may go away while the disk is read.
                let _ = tell.send(read());
            }
        });
        let is_needed = {
            let mut queue = self.queue.lock();
            queue.waiting.push_back(read);
            let is_needed = queue.threads < *AT_ONCE;
            queue.threads += usize::from(is_needed);
            is_needed
        };
        if is_needed {
            let thread = Reading {
                queue: self.queue.clone(),
                is_counted: true,
            };
            tokio::task::spawn_blocking(move || thread.run());
        }
        told.await.ok()
    }
}

impl Reading {
    fn run(mut self) {
        while let Some(read) = self.next() {
            // The panic was reported where it happened, and whoever waits learns that nothing comes.
            let _ = catch_unwind(AssertUnwindSafe(read));
        }
    }

    /// The next read. With none left the thread ends, which is seen at once by whoever brings another.
    fn next(&mut self) -> Option<Read> {
        let mut queue = self.queue.lock();
        let next = queue.waiting.pop_front();
        if next.is_some() {
            queue.taken += 1;
        } else {
            queue.threads -= 1;
            self.is_counted = false;
        }
        next
    }
}

impl Drop for Reading {
    /// For a thread that the runtime did not start, because it is shutting down.
    fn drop(&mut self) {
        if self.is_counted {
            let mut queue = self.queue.lock();
            queue.threads -= 1;
            if queue.threads == 0 {
                queue.waiting.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn many_reads_end_with_few_of_them_at_once() {
        let background = Background::default();
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let reads = (0..10 * *AT_ONCE).map(|number| {
            let (now, most) = (now.clone(), most.clone());
            background.run(move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(1));
                now.fetch_sub(1, Ordering::SeqCst);
                number
            })
        });
        let ended = join_all(reads).await;
        assert!(ended.into_iter().flatten().eq(0..10 * *AT_ONCE));
        assert!((1..=*AT_ONCE).contains(&most.load(Ordering::SeqCst)));
    }

    #[tokio::test]
    async fn reads_that_nobody_polls_or_that_panic_hold_up_no_other() {
        let background = Background::default();
        let mut idle: Vec<_> = (0..3 * *AT_ONCE)
            .map(|_| Box::pin(background.run(|| ())))
            .collect();
        for read in &mut idle {
            let _ = futures::poll!(read);
        }
        let panicked = join_all((0..*AT_ONCE).map(|_| background.run(|| panic!("on purpose"))));
        assert!(
            panicked
                .await
                .into_iter()
                .all(|read: Option<()>| read.is_none())
        );
        assert_eq!(background.run(|| 7).await, Some(7));
    }

    #[test]
    fn reads_of_a_runtime_that_is_gone_end() {
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap()
        };
        let background = Background::default();
        let gone = runtime();
        let handle = gone.handle().clone();
        gone.shutdown_background();
        let refused = runtime().block_on(async {
            let _inside = handle.enter();
            background.run(|| 1).await
        });
        assert_eq!(refused, None);
        assert_eq!(runtime().block_on(background.run(|| 2)), Some(2));
    }
}
