//! A parser that never comes back cannot be unwound: its input is kept and the process ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(500);

/// Looks after one target until it is dropped.
pub(crate) struct Watch {
    running: Arc<Mutex<Option<(Instant, Vec<u8>)>>>,
    done: Arc<AtomicBool>,
}

impl Watch {
    pub(crate) fn start(name: &'static str, deadline: Duration) -> Self {
        let watch = Self {
            running: Arc::default(),
            done: Arc::default(),
        };
        let (running, done) = (watch.running.clone(), watch.done.clone());
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(INTERVAL);
                let running = running.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((begun, input)) = &*running
                    && begun.elapsed() > deadline
                {
                    let path = crate::keep(name, input);
                    eprintln!(
                        "{name}: an input takes more than {deadline:?}; try it again with WEIR_FUZZ_INPUT={}",
                        path.display()
                    );
                    std::process::abort();
                }
            }
        });
        watch
    }

    pub(crate) fn begin(&self, input: &[u8]) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        *running = Some((Instant::now(), input.to_vec()));
    }

    pub(crate) fn end(&self) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}
