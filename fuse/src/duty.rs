//! The time in which a server answers the kernel: when its threads begin to read requests, and from when on a request
//! that fails is left to the next server.
//!
//! A server may be killed at any moment. The kernel then gives the requests that it has read and not answered to the
//! next server. There is one exception: the kernel fails a request with EIO if it cannot copy it into the memory of a
//! dying process, and it cannot if that memory was never touched before. So each thread first reads a message without
//! a meaning, which touches its buffer, and waits until all threads have done so. Only then they are given the
//! connection to the kernel. A fork would undo that: a process that this one starts would share the buffers for a
//! moment, and the next write to them would take a page fault again. So they are kept out of forks (`buffer.rs`).

use std::time::{Duration, Instant};

use crate::buffer;
use crate::sync::{AtomicBool, Condvar, Mutex, Ordering};

/// Longest time that a thread waits for the others.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The time in which a server answers the kernel. Shared by its file system and whoever hands the mount over to it.
#[derive(Debug, Default)]
pub struct Duty {
    /// Threads that have come.
    gathered: Mutex<usize>,
    changed: Condvar,
    started: AtomicBool,
    over: AtomicBool,
}

impl Duty {
    /// One of the session's threads has come, and waits for the others. `request` lies at the beginning of the thread's
    /// buffer. Costs nothing later.
    pub(crate) fn gather<T>(&self, request: &T) {
        if self.started.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = buffer::keep_from_children(request) {
            tracing::warn!(
                "a read may fail if this server is killed while it starts a process: {error}"
            );
        }
        let until = Instant::now() + LONGEST_WAIT;
        let mut gathered = self.gathered.lock();
        *gathered += 1;
        self.changed.notify_all();
        while !self.started.load(Ordering::Acquire) {
            if self.changed.wait_until(&mut gathered, until).timed_out() {
                return;
            }
        }
    }

    /// Waits until so many threads have come; `false` when that takes longer than `most`.
    pub fn wait_for(&self, threads: usize, most: Duration) -> bool {
        let until = Instant::now() + most;
        let mut gathered = self.gathered.lock();
        while *gathered < threads {
            if self.changed.wait_until(&mut gathered, until).timed_out() {
                return *gathered >= threads;
            }
        }
        true
    }

    /// Lets all threads go on.
    pub fn begin(&self) {
        let _gathered = self.gathered.lock();
        self.started.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Another server takes over soon.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Whether a request that fails is better left to the next server.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Its middle shares no page with anything else.
    static BUFFER: [u8; 4 << 20] = [0; 4 << 20];

    #[test]
    fn threads_go_on_together_and_never_wait_again() {
        let duty = Arc::new(Duty::default());
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let duty = duty.clone();
                std::thread::spawn(move || duty.gather(&BUFFER[BUFFER.len() / 2]))
            })
            .collect();
        assert!(duty.wait_for(3, LONGEST_WAIT));
        assert!(!duty.wait_for(4, Duration::from_millis(1)));
        assert!(threads.iter().all(|thread| !thread.is_finished()));
        duty.begin();
        for thread in threads {
            thread.join().unwrap();
        }
        duty.gather(&BUFFER[BUFFER.len() / 2]);
        assert!(!duty.is_over());
        duty.end();
        assert!(duty.is_over());
    }
}
