//! The end of a server's term: who ends it says why, and whoever hears of it may fail requests.
//!
//! Invariant: the end is told to nobody before the server's [`Duty`] is over, so that a request which fails because of it
//! is left to the next server.

use std::sync::Arc;
use std::time::Instant;

use crate::duty::Duty;
use crate::sync::{Condvar, Mutex};

/// Why a server ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The mount is gone. Nothing is left to do but to exit.
    Unmounted,
    /// Another server takes over as soon as this process exits. Until then requests are answered as far as that is
    /// possible; the others are the next server's.
    Replaced,
    /// This server cannot go on; it should exit and will be replaced.
    Failed(String),
}

/// Whether the server goes on.
#[derive(Debug, Default)]
pub(crate) struct Term {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ended: Option<Ended>,
    duty: Option<Arc<Duty>>,
}

impl Term {
    /// The file system is about to answer the kernel.
    pub(crate) fn begin(&self, duty: &Arc<Duty>) {
        let mut state = self.state.lock();
        if state.ended.is_some() {
            duty.end();
        }
        state.duty = Some(duty.clone());
    }

    /// Ends it; the first reason counts.
    pub(crate) fn end(&self, why: Ended) {
        let mut state = self.state.lock();
        if let Some(duty) = &state.duty {
            duty.end();
        }
        state.ended.get_or_insert(why);
        self.changed.notify_all();
    }

    /// Waits for the end, at most until `deadline`.
    pub(crate) fn wait_until(&self, deadline: Instant) -> Option<Ended> {
        let mut state = self.state.lock();
        while state.ended.is_none() {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.ended.clone()
    }
}
