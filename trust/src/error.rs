//! What can be wrong with certificates and callers.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a certificate, a caller or a server cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file could not be read or written.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: {reason}; make it again with `weir certs issue`")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is an authority already.
    #[error(
        "{0} holds an authority already; choose another directory, or replace its key with `weir certs rotate`"
    )]
    Exists(PathBuf),
    /// A name that no certificate can have.
    #[error("{0}")]
    Name(String),
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Issue(#[from] rcgen::Error),
    /// A request for a certificate that is none, or asks for what it may not.
    #[error("the certificate request {0}")]
    Request(String),
    /// Nobody has signed a certificate for this process.
    #[error("there is no certificate in {dir}: {reason}")]
    Unsigned {
        /// Where it would be.
        dir: PathBuf,
        /// What whoever was asked said last.
        reason: SignError,
    },
    /// TLS could not be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A server that others can reach must know its callers.
    #[error(
        "{0} can be reached from other machines, and nobody who calls is known there; give --certs DIR (see `weir certs init`), listen on 127.0.0.1, or say --insecure"
    )]
    Open(SocketAddr),
    /// An address that cannot be called.
    #[error("address {0:?} is not valid: write HOST:PORT")]
    Address(String),
}

/// Why a certificate was not signed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SignError {
    /// This process may not have it, and asking again would not help.
    #[error("{0}")]
    Refused(String),
    /// Whoever signs does not answer, or cannot just now.
    #[error("{0}")]
    Away(String),
}

/// The error of a connection with somebody who may not be at its other end.
pub(crate) fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}
