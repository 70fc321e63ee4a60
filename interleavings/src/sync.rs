//! The types of `sync.rs` in the crates under test, as shuttle has them.

use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::time::Instant;

pub(crate) use shuttle::sync::atomic::{AtomicBool, Ordering};

/// As `parking_lot`'s.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

/// `None` only while a [`Condvar`] waits.
pub(crate) struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);

/// As `parking_lot`'s. No wait ends by its deadline: a wake-up that is lost is found out.
#[derive(Debug, Default)]
pub(crate) struct Condvar(shuttle::sync::Condvar);

/// What a wait with a deadline gives.
pub(crate) struct Woken;

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let locked = self.0.lock();
        MutexGuard(Some(locked.unwrap_or_else(PoisonError::into_inner)))
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("nobody waits")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("nobody waits")
    }
}

impl Condvar {
    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }

    pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _: Instant) -> Woken {
        let locked = guard.0.take().expect("nobody waits");
        let locked = self.0.wait(locked);
        guard.0 = Some(locked.unwrap_or_else(PoisonError::into_inner));
        Woken
    }
}

impl Woken {
    #[allow(clippy::unused_self)]
    pub(crate) fn timed_out(&self) -> bool {
        false
    }
}
