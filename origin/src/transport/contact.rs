//! What is known of a service beside its answers: whether it is there at all, and what it fails with at the moment.
//!
//! An address that is wrong stays so, and somebody waits at the command line: so a service that has never answered is not
//! waited for as long as one that is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use crate::error::OriginError;

/// What is known of the service of one origin.
#[derive(Debug)]
pub struct Contact {
    /// A request has succeeded: the address is right.
    answered: AtomicBool,
    /// Somebody has had answers before.
    known: AtomicBool,
    /// It has answered, if only with an error of its own.
    there: AtomicBool,
    /// Why a question is asked again.
    trouble: watch::Sender<Option<Arc<str>>>,
}

impl Default for Contact {
    fn default() -> Self {
        Self {
            answered: AtomicBool::new(false),
            known: AtomicBool::new(false),
            there: AtomicBool::new(false),
            trouble: watch::Sender::new(None),
        }
    }
}

impl Contact {
    /// Has the service be waited for as one that has answered before: its objects have been listed.
    pub fn assume_known(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    /// What the service fails with, while a listing waits for it.
    pub fn trouble(&self) -> Option<Arc<str>> {
        self.trouble.borrow().clone()
    }

    /// Waits until a listing waits for the service.
    pub async fn in_trouble(&self) {
        let mut trouble = self.trouble.subscribe();
        let is_closed = trouble.wait_for(Option::is_some).await.is_err();
        if is_closed {
            std::future::pending::<()>().await; // `self` is the sender
        }
    }

    /// A request has succeeded.
    pub(crate) fn set_answered(&self) {
        if !self.has_answered() {
            self.answered.store(true, Ordering::Relaxed);
        }
    }

    /// It has answered with an error of its own.
    pub(crate) fn set_there(&self) {
        self.there.store(true, Ordering::Relaxed);
    }

    /// Whether a request has ever succeeded.
    pub(crate) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Whether a request has ever succeeded, of this process or of another.
    pub(crate) fn is_known(&self) -> bool {
        self.has_answered() || self.known.load(Ordering::Relaxed)
    }

    /// Whether it has answered at all.
    pub(crate) fn is_there(&self) -> bool {
        self.there.load(Ordering::Relaxed)
    }

    /// A question is asked again after this error.
    pub(crate) fn fails_with(&self, error: &OriginError) {
        let text = error.to_string();
        self.trouble.send_if_modified(|trouble| {
            let is_news = trouble.as_deref() != Some(text.as_str());
            if is_news {
                *trouble = Some(text.into());
            }
            is_news
        });
    }

    /// Nothing is asked again any more.
    pub(crate) fn recovers(&self) {
        self.trouble
            .send_if_modified(|trouble| trouble.take().is_some());
    }
}
