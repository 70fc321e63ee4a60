//! Who may talk to whom: certificates of a cluster's own authority, and connections whose callers are known.
//!
//! An [`Authority`] issues certificates that name a process: its [`Role`], its name and what it may claim ([`Subject`]).
//! A process has an [`Identity`], the directory with its certificate, which may be renewed while it runs. A server
//! decides by its [`Access`] whom it admits, and knows each connection's [`Caller`]; a client's [`Dial`] sees to it that
//! a server is who it must be.
//!
//! This crate must not know what is asked of a server, nor of datasets, blocks or origins.

#![forbid(unsafe_code)]

mod access;
mod authority;
mod caller;
mod dial;
mod error;
mod identity;
mod incoming;
mod local;
mod stream;
mod subject;
mod verifier;

pub use access::Access;
pub use authority::{Authority, Validity};
pub use caller::Caller;
pub use dial::Dial;
pub use error::TrustError;
pub use identity::Identity;
pub use incoming::{Connection, Limits, incoming, incoming_unix};
pub use stream::Stream;
pub use subject::{Peer, Role, Subject};
