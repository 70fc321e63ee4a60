//! Who may connect to the block stream, and how a connection is opened.
//!
//! A worker with certificates has keys for those who read blocks, which it hands out over its control service, or speaks TLS
//! on the stream, too. One without admits processes of its own user, or anybody, as its [`Access`] says.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tonic::Status;
use weir_core::WorkerId;
use weir_proto::v1::{OpenStreamReply, StreamMode as Mode};
use weir_trust::{Access, Caller, Role, Simulated, Stream};
use weir_wire::{
    FrameError, Link, OPENING_DEADLINE, OPENING_VERSION, OpeningError, Remote, turn_away,
};

use super::keys::{KeyLimits, Keys};

/// Those who read blocks.
pub(crate) const READERS: [Role; 3] = [Role::Mount, Role::Worker, Role::Admin];
/// The first byte of a TLS handshake. A frame of the stream begins with the low byte of its length; that of a hello is
/// another.
const TLS_HANDSHAKE: u8 = 22;

/// What protects the block stream between processes that have certificates.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum StreamMode {
    /// A challenge at the beginning of each connection.
    #[default]
    Authenticated,
    /// TLS.
    Tls,
}

/// A connection whose other end is known.
pub(super) struct Admitted<S> {
    pub(super) link: Link<S>,
    /// The version of the stream; 0 until a hello says another.
    pub(super) version: u32,
    pub(super) caller: Caller,
}

/// Decides who may connect.
pub struct Admission {
    access: Access,
    mode: StreamMode,
    keys: Keys,
    /// As the worker's certificate must name it.
    worker: String,
}

impl Admission {
    /// For a worker of this name. `mode` means nothing without certificates.
    pub fn new(access: Access, mode: StreamMode, worker: &WorkerId) -> Arc<Self> {
        Arc::new(Self {
            access,
            mode,
            keys: Keys::new(KeyLimits::default()),
            worker: format!("{} {worker}", Role::Worker),
        })
    }

    /// For those who look after the cluster: what protects the stream.
    pub fn describe(&self) -> &'static str {
        match (&self.access, self.mode) {
            (Access::Certificates(_), StreamMode::Authenticated) => "authenticated",
            (Access::Certificates(_), StreamMode::Tls) => "tls",
            (access, _) => access.describe(),
        }
    }

    /// How a caller of the control service opens connections.
    ///
    /// # Errors
    /// When it may not read blocks.
    pub(crate) fn open_stream(&self, caller: &Caller) -> Result<OpenStreamReply, Status> {
        if !caller.is_one_of(&READERS) {
            return Err(Status::permission_denied(format!(
                "{caller} may not read blocks: mounts, workers and admins may"
            )));
        }
        let of_mode = |mode: Mode| OpenStreamReply {
            mode: mode.into(),
            ..OpenStreamReply::default()
        };
        if !matches!(self.access, Access::Certificates(_)) {
            return Ok(of_mode(Mode::Plain));
        }
        if self.mode == StreamMode::Tls {
            return Ok(of_mode(Mode::Tls));
        }
        let Caller::Peer {
            peer,
            from: Some(from),
        } = caller
        else {
            return Err(Status::permission_denied(
                "keys for the stream are for those who show a certificate",
            ));
        };
        let issued = self.keys.issue(peer, *from);
        let issued = issued.map_err(|error| Status::internal(error.to_string()))?;
        Ok(OpenStreamReply {
            key_id: issued.id.to_vec(),
            key: issued.secret.to_vec(),
            valid_seconds: issued.valid.as_secs() as u32,
            ..of_mode(Mode::Authenticated)
        })
    }

    /// Finds out who has connected over TCP. `epoch` is that of the worker's map. Ends within a bounded time.
    pub(super) async fn admit(
        &self,
        stream: TcpStream,
        epoch: u64,
    ) -> Result<Admitted<Remote>, OpeningError> {
        let from = stream.peer_addr().map_err(FrameError::from)?.ip();
        match (&self.access, self.mode) {
            (Access::Certificates(_), StreamMode::Authenticated) => {
                self.challenge(stream, from, epoch).await
            }
            (Access::Certificates(_), StreamMode::Tls) => self.admit_tls(stream).await,
            (Access::SameUser, _) => admit_same_user(stream).await,
            (Access::Anybody, _) => Ok(Admitted {
                link: Link::of_server(Remote::Plain(stream)),
                version: 0,
                caller: Caller::Anybody { from: Some(from) },
            }),
        }
    }

    async fn challenge(
        &self,
        stream: TcpStream,
        from: IpAddr,
        epoch: u64,
    ) -> Result<Admitted<Remote>, OpeningError> {
        let mut link = Link::of_server(Remote::Plain(stream));
        let find = |id: &[u8]| self.keys.find(id, from);
        let caller = weir_wire::admit(&mut link, &self.worker, epoch, find).await?;
        Ok(Admitted {
            link,
            version: OPENING_VERSION,
            caller,
        })
    }

    async fn admit_tls(&self, stream: TcpStream) -> Result<Admitted<Remote>, OpeningError> {
        let mut first = [0];
        let here = timeout(OPENING_DEADLINE, stream.peek(&mut first)).await;
        let here = here
            .map_err(|_| OpeningError::Late)?
            .map_err(FrameError::from)?;
        if here == 0 {
            return Err(OpeningError::Closed);
        }
        if first[0] != TLS_HANDSHAKE {
            let mut link = Link::of_server(Remote::Plain(stream));
            let why = "this worker's stream is TLS, for those who have a certificate of its cluster: give --certs DIR, and upgrade what is older than the worker";
            return Err(turn_away(&mut link, why.to_owned()).await);
        }
        let known = timeout(OPENING_DEADLINE, self.access.admit(stream)).await;
        let (stream, caller) = known
            .map_err(|_| OpeningError::Late)?
            .map_err(FrameError::from)?;
        let remote = match stream {
            Stream::Tls(tls) => Remote::from(*tls),
            // It never is with certificates.
            Stream::Plain(_) | Stream::Unix(_) | Stream::Simulated(_) => {
                return Err(OpeningError::Closed);
            }
        };
        let mut link = Link::of_server(remote);
        if !caller.is_one_of(&READERS) {
            let why = format!("{caller} may not read blocks: mounts, workers and admins may");
            return Err(turn_away(&mut link, why).await);
        }
        Ok(Admitted {
            link,
            version: 0,
            caller,
        })
    }
}

async fn admit_same_user(stream: TcpStream) -> Result<Admitted<Remote>, OpeningError> {
    let known = timeout(OPENING_DEADLINE, Access::same_user(&stream)).await;
    let mut link = Link::of_server(Remote::Plain(stream));
    match known.map_err(|_| OpeningError::Late)? {
        Ok(caller) => Ok(Admitted {
            link,
            version: 0,
            caller,
        }),
        Err(error) => {
            let why = format!(
                "this worker admits processes of its own user alone ({error}); to let others in, give it and them --certs DIR"
            );
            Err(turn_away(&mut link, why).await)
        }
    }
}

/// Admits everybody who connects in a network that is simulated.
pub(super) fn admit_simulated(stream: Box<dyn Simulated>, from: IpAddr) -> Admitted<Remote> {
    Admitted {
        link: Link::of_server(Remote::from(stream)),
        version: 0,
        caller: Caller::Anybody { from: Some(from) },
    }
}

/// Finds out who has connected to the Unix socket, over which descriptors of segment files go, with many datasets' blocks:
/// processes of the worker's user and root. Others get nothing.
pub(super) fn admit_local(stream: UnixStream) -> Result<Admitted<UnixStream>, OpeningError> {
    let uid = stream.peer_cred().map_err(FrameError::from)?.uid();
    let caller = Access::local(uid).map_err(|error| {
        OpeningError::Refused(format!("the worker's socket is for its own user: {error}"))
    })?;
    Ok(Admitted {
        link: Link::of_server(stream),
        version: 0,
        caller,
    })
}
