//! Who is at the other end of a connection.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use tonic::{Request, Status};

use crate::subject::{Peer, Role};

/// Who called. A gRPC service finds it among a request's extensions.
#[derive(Clone, Debug)]
pub enum Caller {
    /// A process of the cluster, by its certificate.
    Peer {
        /// What the certificate says.
        peer: Arc<Peer>,
        /// Where it connected from.
        from: Option<IpAddr>,
    },
    /// A process of this machine, of this process's user or root.
    Local {
        /// Its user.
        uid: u32,
    },
    /// Anybody: the server was told not to ask.
    Anybody {
        /// Where it connected from.
        from: Option<IpAddr>,
    },
}

impl Caller {
    /// Who has sent a request, by its extensions.
    ///
    /// # Errors
    /// When the server does not know its callers.
    pub fn of<T>(request: &Request<T>) -> Result<&Self, Status> {
        let caller = request.extensions().get();
        caller.ok_or_else(|| Status::permission_denied("it is not known who calls"))
    }

    /// Whether it may do what only processes of these roles may. Processes of the same user may do everything, and so may
    /// anybody if nobody is asked.
    pub fn is_one_of(&self, roles: &[Role]) -> bool {
        match self {
            Self::Peer { peer, .. } => roles.contains(&peer.subject.role),
            Self::Local { .. } | Self::Anybody { .. } => true,
        }
    }

    /// What its certificate says; none for those who need none.
    pub fn peer(&self) -> Option<&Peer> {
        match self {
            Self::Peer { peer, .. } => Some(peer),
            Self::Local { .. } | Self::Anybody { .. } => None,
        }
    }

    /// Where it connected from, if that was not this machine.
    pub fn from(&self) -> Option<IpAddr> {
        match self {
            Self::Peer { from, .. } | Self::Anybody { from } => *from,
            Self::Local { .. } => None,
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = |f: &mut fmt::Formatter<'_>, from: &Option<IpAddr>| match from {
            Some(from) => write!(f, " at {from}"),
            None => Ok(()),
        };
        match self {
            Self::Peer { peer, from: at } => {
                write!(f, "{}", peer.subject)?;
                from(f, at)
            }
            Self::Local { uid } => write!(f, "user {uid} of this machine"),
            Self::Anybody { from: at } => {
                f.write_str("somebody")?;
                from(f, at)
            }
        }
    }
}
