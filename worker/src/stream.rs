//! The serving side of the block stream: requests of clients, over TCP and over a Unix socket.
//!
//! Requests on a connection are answered in their order; those that came together are worked on together, so that many
//! small blocks cost few reads and few wake-ups. A reader who is not to wait for another one's blocks has a connection of
//! his own. On the Unix socket a block on SSD is answered with a descriptor of its segment file: the client then reads the
//! disk itself and checks the checksums that came along.

//!
//! Who may connect is found out before anything else is read (`admission.rs`): by certificates and a challenge or TLS, or by
//! the user of the process at the other end.

mod admission;
mod connections;
mod keys;
mod refusals;
mod server;
mod turns;

pub(crate) use admission::READERS;
pub use admission::{Admission, StreamMode};
pub use server::{serve_local, serve_simulated, serve_tcp};
pub(crate) use turns::Turns;
