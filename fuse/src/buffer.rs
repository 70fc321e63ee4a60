//! Memory into which the kernel copies requests: it must be writable at any moment without a page fault.
#![allow(unsafe_code)]

use std::ptr;

use rustix::mm::{Advice, madvise};

/// Pages that a request may touch.
const PAGES: usize = 2;

/// Keeps the memory of a request out of the children of this process. A fork would otherwise share it with them until
/// somebody writes to it, which takes a page fault at each thread's next request.
///
/// `request` is the request itself, at the beginning of a buffer of at least [`PAGES`] pages that has its pages to
/// itself.
pub(crate) fn keep_from_children<T>(request: &T) -> rustix::io::Result<()> {
    // SAFETY: a question without arguments in memory.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page = usize::try_from(page).map_err(|_| rustix::io::Errno::INVAL)?;
    let start = ptr::from_ref(request).cast::<u8>().addr() & !(page - 1);
    // SAFETY: the pages are mapped, since a request lies in them; the advice changes nothing in this process, and a
    // child that is about to execute another program does not look at the buffers of its parent's threads.
    unsafe {
        madvise(
            ptr::without_provenance_mut(start),
            PAGES * page,
            Advice::LinuxDontFork,
        )
    }
}
