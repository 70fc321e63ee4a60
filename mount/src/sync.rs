//! What the state that threads share is made of. The tests of `interleavings/` compile the same files with other types of
//! these names, which switch between threads at each use.

pub(crate) use parking_lot::{Condvar, Mutex};
