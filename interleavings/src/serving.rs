//! The threads of a server of a mount: when they begin to answer the kernel, and what they do about its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shuttle::thread;

use crate::duty::Duty;
use crate::sync::{AtomicBool, Ordering};
use crate::term::{Ended, Term};

const THREADS: usize = 3;
/// Counts for nothing: no wait ends by its deadline.
const LONG: Duration = Duration::from_mins(10);

fn deadline() -> Instant {
    Instant::now() + LONG
}

/// No thread answers before all can, and none is left behind.
pub fn threads_begin_together() {
    let duty = Arc::new(Duty::default());
    let started = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (duty, started) = (duty.clone(), started.clone());
            thread::spawn(move || {
                duty.gather(&[0_u8]);
                assert!(started.load(Ordering::SeqCst), "it has not started");
                duty.gather(&[0_u8]);
            })
        })
        .collect();
    assert!(duty.wait_for(THREADS, LONG));
    started.store(true, Ordering::SeqCst);
    duty.begin();
    for thread in threads {
        thread.join().expect("it went on");
    }
}

/// Whoever was told of a server's end may end what reads wait for: the duty is over by then, so that no reader gets an
/// error. However early the end comes, it is told.
pub fn the_end_is_told_when_the_duty_is_over() {
    let (term, duty) = (Arc::new(Term::default()), Arc::new(Duty::default()));
    let ending: Vec<_> = [Ended::Replaced, Ended::Unmounted]
        .map(|why| {
            let term = term.clone();
            thread::spawn(move || term.end(why))
        })
        .into();
    term.begin(&duty);
    duty.begin();
    let ended = term.wait_until(deadline());
    assert!(duty.is_over(), "a read would fail");
    for thread in ending {
        thread.join().expect("it ended the term");
    }
    assert_eq!(
        ended,
        term.wait_until(deadline()),
        "the first reason counts"
    );
}
