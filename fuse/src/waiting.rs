//! Where a read runs that must wait for a network.
//!
//! It runs on the thread that received it, which then sleeps until the network has an answer, and writes the reply
//! itself. So one thread is woken for each read, and no other. A switch between threads costs microseconds, for a file
//! of 100 KiB as much as copying it. Only some of the threads may wait like that at once: further reads are handed to
//! the runtime, so that a slow origin never takes the last threads, which answer names and cached reads.
#![forbid(unsafe_code)]

use std::cell::OnceCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle, Runtime};

/// Threads for blocking work that a thread's own runtime may start.
const BLOCKING_THREADS: usize = 2;

thread_local! {
    /// The runtime of a thread that has waited before; `None` when it could not be made.
    static RUNTIME: OnceCell<Option<Runtime>> = const { OnceCell::new() };
}

/// Runs reads that wait.
#[derive(Debug)]
pub struct WaitingReads {
    shared: Handle,
    /// Reads that may wait on the threads they came to, at once.
    most: usize,
    here: AtomicUsize,
}

impl WaitingReads {
    /// At most `most` reads wait on their own threads, the rest on `shared`.
    pub fn new(shared: Handle, most: usize) -> Self {
        Self {
            shared,
            most,
            here: AtomicUsize::new(0),
        }
    }

    /// Where reads run that wait on no thread of their own.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.shared
    }

    /// Runs `read` to its end, here or in the background. Must not be called from inside a runtime's task.
    pub(crate) fn run(&self, read: impl Future<Output = ()> + Send + 'static) {
        let Some(_place) = self.place() else {
            self.shared.spawn(read);
            return;
        };
        RUNTIME.with(|runtime| match runtime.get_or_init(thread_runtime) {
            Some(runtime) => runtime.block_on(read),
            None => drop(self.shared.spawn(read)),
        });
    }

    /// Runs `work` to its end on this thread, which answers no reads.
    pub(crate) fn run_here<T>(&self, work: impl Future<Output = T>) -> T {
        RUNTIME.with(|runtime| {
            let runtime = (self.most > 0).then(|| runtime.get_or_init(thread_runtime));
            match runtime {
                Some(Some(runtime)) => runtime.block_on(work),
                Some(None) | None => self.shared.block_on(work),
            }
        })
    }

    /// One of the places for a read on its own thread.
    fn place(&self) -> Option<Place<'_>> {
        let taken = self.here.fetch_add(1, Ordering::Relaxed);
        let place = Place(&self.here);
        (taken < self.most).then_some(place)
    }
}

/// Is given back when dropped, also when a read panics.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn thread_runtime() -> Option<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("weir-waiting")
        .build()
        .inspect_err(|error| tracing::warn!(%error, "a thread waits without a runtime of its own"))
        .ok()
}
