//! The block stream: how blocks get from a worker to a client, over TCP and over a Unix socket.
//!
//! The frames are described in `proto/weir/v1/worker.proto`. A [`Link`] sends and receives them, with bytes or a descriptor
//! beside each; [`checksums()`] says what the bytes must add up to. A worker that lets a client wait says so, so the
//! client's deadlines are on silence ([`Activity`]).
//!
//! Both sides use this crate: the worker serves the stream, the client asks. It must not know which blocks there are, who
//! holds them, or where they come from.

#![forbid(unsafe_code)]

mod activity;
mod checksums;
mod link;
mod socket;

pub use activity::Activity;
pub use checksums::{checksums, have_checksums};
pub use link::{Frame, FrameError, Incoming, Link, Outgoing};
pub use socket::{Socket, keep_alive};

/// The form of a block's location that is written and understood here. Another one has another number: client and
/// worker may be of different versions.
pub const LOCATION_FORMAT: u32 = 2;

/// The newest version of the stream that is spoken here; see `proto/weir/v1/worker.proto`.
pub const STREAM_VERSION: u32 = 1;
