//! The block stream: how a worker hands blocks to clients, over TCP and over a Unix socket.
//!
//! The frames are described in `proto/weir/v1/worker.proto`. One request is under way on a connection at a time, so a
//! slow reader holds up nobody else. On the Unix socket a block on SSD is answered with a descriptor of its
//! segment file: the client then reads the disk itself and checks the checksums that came along.

mod frame;
mod server;

pub use frame::{FrameError, MAX_HEADER, read_message, send_descriptor, write_message};
pub use server::{serve_local, serve_tcp};
