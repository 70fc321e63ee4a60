//! The block stream: how a worker hands blocks to clients, over TCP and over a Unix socket.
//!
//! The frames are described in `proto/weir/v1/worker.proto`. Requests on a connection are answered in their order;
//! those that came together are worked on together, so that many small blocks cost few reads and few wake-ups. A
//! reader who is not to wait for another one's blocks has a connection of his own. On the Unix socket a block on SSD
//! is answered with a descriptor of its segment file: the client then reads the disk itself and checks the checksums
//! that came along.
//!
//! A worker that lets a client wait says so, so the client's deadlines are on silence ([`Activity`]).

mod activity;
mod checksums;
mod connections;
mod link;
mod server;
mod socket;

pub use activity::Activity;
pub use checksums::{checksums, have_checksums};
pub use link::{Frame, FrameError, Incoming, Link, Outgoing};
pub use server::{LOCATION_FORMAT, STREAM_VERSION, serve_local, serve_tcp};
pub use socket::{Socket, keep_alive};
