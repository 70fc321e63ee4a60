//! Who reads a cluster: whoever the environment of this process says, or the keytab of the credentials that its source
//! names.
//!
//! Kerberos wants a keytab as a file. It gets an unnamed one in memory (a memfd) by its path below `/proc/self/fd`: nothing
//! is on a disk that outlives the process or could be copied with its state, mounts and masters need no directory for it, and
//! no other user can open it. Tickets are in memory, too. A new keytab makes a new client; one that is replaced lives
//! until its last call is done.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use hdfs_native::{Client, ClientBuilder};
use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::failure::{self, Failed};
use crate::credential::{Credential, CredentialKind, Named};
use crate::error::OriginError;
use crate::transport::calls::Refused;
use crate::transport::renewed::{Issuer, Renewed, RequestKeys};

/// Longest wait for the local files that tell who this process is.
const BUILD_DEADLINE: Duration = Duration::from_secs(20);

/// Makes a client that knows the cluster and not yet who reads it.
pub(super) type Builder = dyn Fn() -> ClientBuilder + Send + Sync;

/// Who reads a cluster.
pub(super) enum Login {
    /// Whoever the process is.
    Own(Arc<Session>),
    /// Credentials that the source names.
    Named(Renewed<Finder>, Named),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(…)")
    }
}

impl Login {
    /// Sends nothing to the cluster.
    pub(super) async fn new(
        builder: Arc<Builder>,
        target: Arc<str>,
        named: Option<Named>,
    ) -> Result<Self, OriginError> {
        let Some(named) = named else {
            let session = Session::build(builder(), None, target).await?;
            return Ok(Self::Own(Arc::new(session)));
        };
        let finder = Finder {
            named: named.clone(),
            builder,
            last: Mutex::default(),
        };
        Ok(Self::Named(Renewed::find(finder)?, named))
    }

    /// The sessions of one call, which is made again by another if one is refused.
    pub(super) fn of_call(&self) -> OfCall<'_> {
        match self {
            Self::Own(session) => OfCall::Own(session),
            Self::Named(keys, named) => OfCall::Named(RequestKeys::of(Some(keys)), named),
        }
    }
}

/// The sessions of one call.
pub(super) enum OfCall<'a> {
    Own(&'a Arc<Session>),
    Named(RequestKeys<'a, Finder>, &'a Named),
}

impl OfCall<'_> {
    pub(super) async fn session(&mut self) -> Result<Arc<Session>, OriginError> {
        match self {
            Self::Own(session) => Ok(session.clone()),
            Self::Named(keys, named) => {
                let session = keys.get().await?;
                session.ok_or_else(|| named.refused("there are none", "try again"))
            }
        }
    }

    /// Whether there is another one after this failure.
    pub(super) async fn renew(&mut self, error: &OriginError) -> Result<bool, OriginError> {
        match (self, error) {
            (
                Self::Named(keys, _),
                OriginError::AccessDenied { .. } | OriginError::CredentialsExpired { .. },
            ) => keys.renew().await,
            _ => Ok(false),
        }
    }

    /// What a failure means for who has set the credentials.
    pub(super) fn explain(&self, error: OriginError) -> OriginError {
        match self {
            Self::Own(_) => error,
            Self::Named(_, named) => named.explain(error),
        }
    }
}

/// A client, and who it is.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) client: Client,
    by: Option<Arc<By>>,
}

/// The credentials of a session, and the file that Kerberos has of them.
struct By {
    credential: Arc<Credential>,
    _keytab: File,
}

impl PartialEq for Session {
    fn eq(&self, other: &Self) -> bool {
        match (&self.by, &other.by) {
            (Some(by), Some(other)) => by.credential == other.credential,
            (by, other) => by.is_none() && other.is_none(),
        }
    }
}

impl Session {
    async fn build(
        builder: ClientBuilder,
        by: Option<By>,
        target: Arc<str>,
    ) -> Result<Self, OriginError> {
        // It may look for Kerberos tickets, on the disk and on the network.
        let building = spawn_blocking(move || builder.build());
        match timeout(BUILD_DEADLINE, building).await {
            Ok(Ok(Ok(client))) => Ok(Self {
                client,
                by: by.map(Arc::new),
            }),
            Ok(Ok(Err(error))) => Err(failure::explain(Failed::Client(error), target, None)),
            Ok(Err(_)) => Err(OriginError::interrupted(&target)),
            Err(_) => Err(OriginError::Timeout {
                target,
                after: BUILD_DEADLINE,
            }),
        }
    }
}

/// Asks for the keytab.
pub(super) struct Finder {
    named: Named,
    builder: Arc<Builder>,
    /// The session that is in use.
    last: Mutex<Option<Session>>,
}

impl Finder {
    async fn session(&self) -> Result<Session, OriginError> {
        let credential = self.named.get().await?;
        let last = self.last.lock().clone();
        let is_same = |session: &Session| {
            let by = session.by.as_ref();
            by.is_some_and(|by| by.credential == credential)
        };
        if let Some(session) = last.filter(is_same) {
            return Ok(session);
        }
        let CredentialKind::Keytab { principal, keytab } = &credential.kind else {
            return Err(self.named.refused("they are no keytab", "name others"));
        };
        let file = in_memory(keytab.expose()).map_err(|error| OriginError::Unavailable {
            target: self.named.target.clone(),
            detail: format!("there is no memory for a keytab: {error}"),
        })?;
        let builder = (self.builder)()
            .with_kerberos_principal(principal)
            .with_kerberos_keytab(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let by = By {
            credential: credential.clone(),
            _keytab: file,
        };
        let session = Session::build(builder, Some(by), self.named.target.clone()).await?;
        *self.last.lock() = Some(session.clone());
        Ok(session)
    }
}

/// A file that has no name, holds this and does not change.
fn in_memory(content: &[u8]) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("keytab", flags)?);
    file.write_all(content)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(file)
}

impl Issuer for Finder {
    type Key = Session;
    type Source = ();

    fn find(&self) -> Result<(), OriginError> {
        Ok(())
    }

    fn fixed((): &()) -> Option<&Arc<Session>> {
        None
    }

    async fn load(&self, (): &()) -> Result<(Session, Option<Duration>), Refused> {
        let session = self.session().await.map_err(Refused::Error)?;
        Ok((session, None))
    }

    fn changes((): &()) -> bool {
        true
    }

    fn target(&self) -> &Arc<str> {
        &self.named.target
    }

    fn remedy(&self) -> &'static str {
        "check that the master answers, and `weir credentials list`"
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_file_in_memory_is_read_by_its_path_and_never_changed() {
        let mut file = in_memory(b"\x05\x02key").unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        for _ in 0..2 {
            let mut content = Vec::new();
            File::open(&path)
                .unwrap()
                .read_to_end(&mut content)
                .unwrap();
            assert_eq!(content, b"\x05\x02key");
        }
        assert!(file.write_all(b"x").is_err());
        let written = File::options().write(true).open(&path);
        assert!(written.is_err() || written.unwrap().write_all(b"x").is_err());
    }
}
