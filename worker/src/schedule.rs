//! How the system schedules a thread.
#![allow(unsafe_code)]

/// Makes this thread one that works in bulk: when it wakes up, it waits for its turn instead of interrupting whoever
/// runs, and so finds more to do at once. Threads and processes that it starts later are alike.
pub fn in_bulk() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads the parameters and changes nothing but how this thread is scheduled. A system that
    // refuses it leaves the thread as it is.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
}
