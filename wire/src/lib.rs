//! The block stream: how blocks get from a worker to a client, over TCP and over a Unix socket.
//!
//! The frames are described in `proto/weir/v1/worker.proto`. A [`Link`] sends and receives them, with bytes or a descriptor
//! beside each; [`checksums()`] says what the bytes must add up to. A worker that lets a client wait says so, so the
//! client's deadlines are on silence ([`Activity`]).
//!
//! Between processes that have certificates a connection is TLS ([`Remote`]), or plain TCP that begins with a challenge
//! ([`open`] and [`admit`]), whose key both have from elsewhere.
//!
//! Both sides use this crate: the worker serves the stream; clients ask, and so do workers that take blocks over
//! ([`Connections`], to workers on this machine or [`FarWorkers`]). It must not know which blocks there are, who holds them,
//! or where they come from.

#![forbid(unsafe_code)]

mod activity;
mod checksums;
mod connection;
mod copy_tree;
mod far;
mod link;
mod opening;
mod pacer;
mod simulated;
mod socket;
mod tls;
mod version;

pub use activity::Activity;
pub use checksums::{checksums, have_checksums};
pub use connection::{
    Answer, Connect, ConnectionError, Connections, NearWorkers, Opened, request_of,
};
pub use copy_tree::{MAX_COPIES, way_down};
pub use far::FarWorkers;
pub use link::{Frame, FrameError, Incoming, Link, Outgoing};
pub use opening::{
    Ends, KEY_ID_LENGTH, KEY_LENGTH, Known, OPENING_DEADLINE, OPENING_VERSION, OpeningError,
    StreamKey, admit, new_key, open, turn_away,
};
pub use pacer::Pacer;
pub use simulated::SimulatedSocket;
pub use socket::{Socket, keep_alive};
pub use tls::{Remote, TlsSocket};
pub use version::STREAM_VERSION;

/// The form of a block's location that is written and understood here. Another one has another number: client and
/// worker may be of different versions.
pub const LOCATION_FORMAT: u32 = 2;
