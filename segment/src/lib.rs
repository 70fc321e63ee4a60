//! The SSD tier: immutable blocks, packed into large segment files.
//!
//! A segment file is a row of *records*, each a header directly followed by a block's data, and ends with a
//! table of its records once it is *sealed*. Blocks are only ever appended, many in one aligned write, so a small
//! file costs neither an inode nor a write of its own; space comes back by deleting whole files.
//!
//! Invariants:
//! - Every read is checked against checksums that were in memory when the block was written or recovered, so
//!   no damage to a file, nor another file in its place, turns into wrong bytes: the block is dropped instead.
//! - A written byte is never overwritten while a reader may hold it: a deleted file stays readable through
//!   every descriptor that was handed out.
//! - A block whose `put` returned survives the death of the process. It need not survive the loss of power:
//!   the origin has it still, and a torn record is told by its checksums.
//! - The sizes of the segment files never add up to more than the capacity.
//!
//! | file | concept |
//! |---|---|
//! | `record` | a block in a file: header, checksums |
//! | `data` | a block's bytes on their way in, in the pieces that they came in |
//! | `footer` | the table at the end of a sealed segment |
//! | `journal` | the same table while the segment is being written |
//! | `index` | where each block is, in memory |
//! | `location` | a place that can be read and verified, here or in a client's process |
//! | `pages` | checksums for reads of a few KiB |
//! | `together` | many small blocks with few reads |
//! | `background` | reads for callers that must not block |
//! | `reading` | reads, and dropping what is damaged |
//! | `appender` | the one writer's state, and batches |
//! | `append` | what it does: writing, rolling to a new file, sealing |
//! | `reclaim` | making room: deletion, compaction, eviction of what is idle |
//! | `recover` | what a directory still holds when it is opened |
//! | `removed` | which records of a segment are not to come back |
//! | `disk`, `lock`, `aligned`, `huge` | what is asked of the system |
//!
//! This crate knows blocks by their keys alone. It must not know where they come from or who asks for them.

#![forbid(unsafe_code)]

mod aligned;
mod append;
mod appender;
mod background;
mod config;
mod data;
pub mod disk;
mod error;
mod file;
mod footer;
mod huge;
mod index;
mod journal;
mod location;
mod lock;
mod pages;
mod reading;
mod reclaim;
mod record;
mod recover;
mod removed;
mod stats;
mod store;
mod together;

#[cfg(test)]
mod faulty;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use aligned::BufferPool;
pub use background::Background;
pub use config::{DEFAULT_IDLE_AFTER, DEFAULT_SEGMENT_SIZE, SegmentConfig};
pub use data::{BlockData, Pieces};
pub use error::SegmentError;
pub use location::{BlockLocation, ReadFault};
pub use record::{CHUNK_SIZE, Checksums, MAX_BLOCK_LEN, chunk_sum, chunk_sum_of, page_sums};
pub use stats::SegmentStats;
pub use store::{Admission, Clock, SegmentStore};
pub use together::read_together;
