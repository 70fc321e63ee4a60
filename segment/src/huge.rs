//! Memory of huge pages for direct I/O.
//!
//! A device takes a request in a bounded number of contiguous pieces of memory. A buffer of ordinary pages is cut into
//! as many pieces as it has pages, and each costs time in the kernel and in the device: reads of 1 MiB into huge pages
//! were three times as fast as into ordinary ones. Where the system has no huge pages to give, the memory is ordinary.

use std::sync::LazyLock;

use memmap2::{Advice, MmapMut, MmapOptions};
use parking_lot::Mutex;

/// What a mapping is aligned to, so that huge pages fit into it.
const HUGE_PAGE: usize = 2 << 20;
/// Lengths of the buffers, the shorter first, and how many there are of each: for single small files and random reads,
/// for the kernel's longest reads with what their borders need, and for small files together. More reads at once get
/// ordinary memory.
const CLASSES: [(usize, usize); 3] = [(256 << 10, 24), (1088 << 10, 12), (HUGE_PAGE, 4)];

/// Memory that is never given back to the system.
type Buffer = &'static mut [u8];

/// Free buffers of each class. The last one returned is used first, so no more memory is touched than is in use.
static FREE: LazyLock<[Mutex<Vec<Buffer>>; CLASSES.len()]> = LazyLock::new(|| {
    let length = CLASSES.iter().map(|(length, count)| length * count).sum();
    let mut rest = map(length).map_or(&mut [][..], |(memory, start)| {
        &mut Box::leak(Box::new(memory))[start..start + length]
    });
    CLASSES.map(|(length, count)| {
        let (buffers, others) = std::mem::take(&mut rest).split_at_mut(length * count);
        rest = others;
        Mutex::new(buffers.chunks_exact_mut(length).collect())
    })
});

/// Zeroed memory of huge pages, and where in it `length` bytes begin that fill them; `None` when there is none.
pub(super) fn map(length: usize) -> Option<(MmapMut, usize)> {
    let memory = MmapOptions::new().len(length + HUGE_PAGE).map_anon().ok()?;
    // The kernel may not know huge pages, and then gives ordinary ones.
    let _ = memory.advise(Advice::HugePage);
    let start = memory.as_ptr().align_offset(HUGE_PAGE);
    Some((memory, start))
}

/// A free buffer of the shortest sufficient class or the next, with whatever it held before.
pub(super) fn take(length: usize) -> Option<Buffer> {
    let shortest = CLASSES.iter().position(|(longest, _)| length <= *longest)?;
    let mut classes = FREE[shortest..].iter().take(2);
    classes.find_map(|class| class.lock().pop())
}

/// Takes back what [`take`] gave.
pub(super) fn give_back(buffer: Buffer) {
    if let Some(class) = CLASSES
        .iter()
        .position(|(length, _)| buffer.len() == *length)
    {
        FREE[class].lock().push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_long_enough_starts_on_a_page_and_comes_back() {
        assert!(take(HUGE_PAGE + 1).is_none());
        for length in [1, 256 << 10, (256 << 10) + 1, HUGE_PAGE] {
            let buffer = take(length).unwrap();
            assert!(buffer.len() >= length);
            assert_eq!(buffer.as_ptr().addr() % 4096, 0);
            give_back(buffer);
        }
    }
}
