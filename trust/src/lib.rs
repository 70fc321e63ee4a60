//! Who may talk to whom: certificates of a cluster's own authority, and connections whose callers are known.
//!
//! An [`Authority`] issues certificates that name a process: its [`Role`], its name and what it may claim ([`Subject`]).
//! A process has an [`Identity`], the directory with its certificate, which may be renewed while it runs: by hand, or by a
//! [`Renewal`], which makes keys itself and asks a [`Signer`] for their certificates. A server
//! decides by its [`Access`] whom it admits, knows each connection's [`Caller`], and may be [`Guarded`] by a table of who may
//! call what; a client's [`Dial`] sees to it that a server is who it must be.
//!
//! This crate must not know what is asked of a server, nor of datasets, blocks or origins.

#![forbid(unsafe_code)]

mod access;
mod authority;
mod caller;
mod counted;
mod dial;
mod error;
mod guard;
mod identity;
mod incoming;
mod local;
mod refusals;
mod renewal;
mod request;
mod requested;
mod serving;
mod stream;
mod subject;
#[doc(hidden)]
pub mod testing;
mod verifier;

pub use access::Access;
pub use authority::{Authority, Issued, Trusted, Validity, trusted_in};
pub use caller::Caller;
pub use counted::{Counted, Places};
pub use dial::{Connecting, Dial};
pub use error::{SignError, TrustError};
pub use guard::{Guarded, Rules};
pub use identity::Identity;
pub use incoming::{
    Connection, Incoming, Limits, incoming, incoming_shown, incoming_simulated, incoming_unix,
};
pub use refusals::Refusals;
pub use renewal::{Renewal, Renewals, SIGNER, Signer};
pub use request::Request;
pub use requested::RequestedKey;
pub use serving::serve;
pub use stream::{Simulated, Stream};
pub use subject::{Peer, Place, Role, Subject};
