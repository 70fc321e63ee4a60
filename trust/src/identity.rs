//! A process's own certificate, which may be replaced while the process runs.
//!
//! The files are looked at again when a connection is made, at most once a second. A certificate that cannot be used is
//! told in the log, and the one before stays in use until the files change once more.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    NoClientAuth, ParsedCertificate, ResolvesServerCertUsingSni, WebPkiClientVerifier,
};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};

use crate::authority::{CA_CERT, CERT, KEY, named_in, read};
use crate::error::TrustError;
use crate::subject::{Peer, Role, Subject};
use crate::verifier::RoleVerifier;

/// How often files are read again that did not belong together, and between two times: whoever replaces them takes less.
const TRIES: u32 = 5;
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The files are looked at no more often.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Who this process is, with the means to show it.
pub struct Identity {
    /// None of one that is nobody's, and has no files.
    dir: Option<PathBuf>,
    state: Mutex<State>,
}

struct State {
    loaded: Arc<Loaded>,
    stamps: Stamps,
    looked: Instant,
}

/// What the files held.
struct Loaded {
    peer: Peer,
    server: Arc<ServerConfig>,
    /// For callers who need no certificate.
    shown: Arc<ServerConfig>,
    /// For servers of each role.
    clients: Vec<(Role, Arc<ClientConfig>)>,
}

/// Tells whether the files have changed: inode, size and time of each.
type Stamps = [Option<(u64, u64, i64, i64)>; 3];

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// The identity in a directory with `ca.crt`, `tls.crt` and `tls.key`.
    ///
    /// # Errors
    /// When one of them is missing, or they do not belong together.
    pub fn load(dir: &Path) -> Result<Arc<Self>, TrustError> {
        let (loaded, stamps) = settled(dir);
        Ok(Self::new(Some(dir), loaded?, stamps))
    }

    /// The same for a process that must go on without: until the directory holds an identity it is nobody's, and every
    /// connection that it is used for fails.
    ///
    /// # Errors
    /// When TLS cannot be set up at all.
    pub fn load_when_there(dir: &Path) -> Result<Arc<Self>, TrustError> {
        let (loaded, stamps) = settled(dir);
        let loaded = loaded.or_else(|error| {
            tracing::warn!("no other process is called until this is mended: {error}");
            Loaded::nobody(RootCertStore::empty())
        });
        Ok(Self::new(Some(dir), loaded?, stamps))
    }

    /// For a process that has no certificate yet: it calls servers that have one of these authorities (in PEM), and those alone
    /// that do not ask for its own.
    ///
    /// # Errors
    /// When there are no authorities, or TLS cannot be set up.
    pub fn trusting(authorities: &Path) -> Result<Arc<Self>, TrustError> {
        let pem = read(authorities)?;
        let roots = certificates(authorities, &pem).and_then(roots)?;
        Ok(Self::new(None, Loaded::nobody(roots)?, Stamps::default()))
    }

    fn new(dir: Option<&Path>, loaded: Loaded, stamps: Stamps) -> Arc<Self> {
        let state = State {
            loaded: Arc::new(loaded),
            stamps,
            looked: Instant::now(),
        };
        Arc::new(Self {
            dir: dir.map(Path::to_owned),
            state: Mutex::new(state),
        })
    }

    /// Whom the certificate in a directory names, without its key.
    ///
    /// # Errors
    /// When there is none, or it names no process.
    pub fn peek(dir: &Path) -> Result<Peer, TrustError> {
        named_in(dir)
    }

    /// Whether the certificate in a directory is of one of these authorities (in PEM), beside which it stays as it is.
    pub(crate) fn would_trust(dir: &Path, authorities: &str) -> Result<(), TrustError> {
        let (certificate, key) = (read(&dir.join(CERT))?, read(&dir.join(KEY))?);
        check(dir, authorities, &certificate, &key).map(drop)
    }

    /// Who this process is.
    pub fn subject(&self) -> Subject {
        self.loaded().peer.subject.clone()
    }

    /// All that its certificate says.
    pub fn peer(&self) -> Peer {
        self.loaded().peer.clone()
    }

    /// When its certificate ends.
    pub fn expires(&self) -> SystemTime {
        self.loaded().peer.expires
    }

    /// How to be a server for processes of the same cluster.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.loaded().server.clone()
    }

    /// How to be a server for callers who need no certificate: they learn who this is, and have to show otherwise who they are.
    pub fn shown_config(&self) -> Arc<ServerConfig> {
        self.loaded().shown.clone()
    }

    /// How to be a client of a server that has this role.
    pub fn client_config(&self, server: Role) -> Arc<ClientConfig> {
        let loaded = self.loaded();
        let mut configs = loaded.clients.iter();
        let found = configs.find(|(role, _)| *role == server);
        found.expect("there is one for each role").1.clone()
    }

    fn loaded(&self) -> Arc<Loaded> {
        let mut state = self.state.lock();
        if let Some(dir) = &self.dir
            && state.looked.elapsed() >= LOOK_INTERVAL
        {
            state.looked = Instant::now();
            let stamps = stamps(dir);
            if stamps != state.stamps {
                state.stamps = stamps;
                match Loaded::read(dir) {
                    Ok(loaded) => {
                        tracing::info!(dir = %dir.display(), "the certificate was renewed");
                        state.loaded = Arc::new(loaded);
                    }
                    // Its files may be half written: then they will change again.
                    Err(error) => tracing::warn!("the certificate before stays in use: {error}"),
                }
            }
        }
        state.loaded.clone()
    }
}

impl Loaded {
    /// Of a process that has no certificate: none takes it that asks for one.
    fn nobody(roots: RootCertStore) -> Result<Self, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
        let (server, roots) = (Arc::new(server), Arc::new(roots));
        let client = |role| {
            let verifier = Arc::new(RoleVerifier::new(roots.clone(), &provider, role));
            let config = ClientConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .dangerous() // the verifier checks more than the usual one, not less
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth();
            Ok((role, Arc::new(config)))
        };
        let clients: Result<_, TrustError> = Role::ALL.into_iter().map(client).collect();
        let name = "nobody".parse();
        let name = name.map_err(|_| TrustError::Name("nobody is no name".to_owned()))?;
        Ok(Self {
            peer: Peer {
                subject: Subject::new(Role::Mount, name),
                addresses: Vec::new(),
                begins: SystemTime::UNIX_EPOCH,
                expires: SystemTime::UNIX_EPOCH,
            },
            shown: server.clone(),
            server,
            clients: clients?,
        })
    }

    fn read(dir: &Path) -> Result<Self, TrustError> {
        let [authorities, certificate, key] =
            [CA_CERT, CERT, KEY].map(|file| read(&dir.join(file)));
        Self::of(dir, &authorities?, &certificate?, &key?)
    }

    /// Of what the files in a directory hold, or are to hold.
    fn of(dir: &Path, authorities: &str, certificate: &str, key: &str) -> Result<Self, TrustError> {
        let unusable = |file: &str, reason: String| TrustError::Unusable {
            path: dir.join(file),
            reason,
        };
        let roots = Arc::new(roots(certificates(&dir.join(CA_CERT), authorities)?)?);
        let chain = certificates(&dir.join(CERT), certificate)?;
        let peer = Peer::of(&chain[0]).map_err(|reason| unusable(CERT, reason))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        check_issuer(&chain, &roots, &provider).map_err(|reason| unusable(CERT, reason))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| unusable(KEY, error.to_string()))?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let clients = clients
            .build()
            .map_err(|error| unusable(CA_CERT, error.to_string()))?;
        // Cluster and commands are of one version or near: nothing older is needed.
        let server = |clients: Arc<dyn ClientCertVerifier>| {
            ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_client_cert_verifier(clients)
                .with_single_cert(chain.clone(), key.clone_key())
                .map(Arc::new)
                .map_err(|error| unusable(KEY, error.to_string()))
        };
        let (shown, server) = (server(Arc::new(NoClientAuth))?, server(clients)?);
        let client = |role| {
            let verifier = RoleVerifier::new(roots.clone(), &provider, role);
            client_config(&provider, verifier, chain.clone(), key.clone_key())
                .map(|config| (role, Arc::new(config)))
        };
        let clients = Role::ALL.into_iter().map(client).collect::<Result<_, _>>();
        Ok(Self {
            peer,
            server,
            shown,
            clients: clients?,
        })
    }
}

/// What the files in a directory hold, read again a few times while somebody replaces them.
fn settled(dir: &Path) -> (Result<Loaded, TrustError>, Stamps) {
    let mut before = stamps(dir);
    for _ in 1..TRIES {
        match Loaded::read(dir) {
            Ok(loaded) => return (Ok(loaded), before),
            Err(error) => {
                std::thread::sleep(LOOK_AGAIN);
                let now = stamps(dir);
                if now == before {
                    return (Err(error), before);
                }
                before = now;
            }
        }
    }
    (Loaded::read(dir), before)
}

/// Whether this certificate and this key would be an identity, with these authorities. The error names the files that they are
/// to be in.
pub(crate) fn check(
    dir: &Path,
    authorities: &str,
    certificate: &str,
    key: &str,
) -> Result<Peer, TrustError> {
    Loaded::of(dir, authorities, certificate, key).map(|loaded| loaded.peer)
}

/// The certificates that a file holds.
fn certificates(path: &Path, pem: &str) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let unusable = |reason: String| TrustError::Unusable {
        path: path.to_owned(),
        reason,
    };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|error| unusable(error.to_string()))?;
    if all.is_empty() {
        return Err(unusable("it holds no certificate".to_owned()));
    }
    Ok(all)
}

fn roots(authorities: Vec<CertificateDer<'static>>) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority)?;
    }
    Ok(roots)
}

/// Whether a certificate is one that the others in this cluster will take. One that has ended was; who uses it is told so
/// by others.
fn check_issuer(
    chain: &[CertificateDer<'static>],
    roots: &RootCertStore,
    provider: &CryptoProvider,
) -> Result<(), String> {
    let own = ParsedCertificate::try_from(&chain[0]).map_err(|error| error.to_string())?;
    let algorithms = provider.signature_verification_algorithms.all;
    let now = UnixTime::now();
    match verify_server_cert_signed_by_trust_anchor(&own, roots, &chain[1..], now, algorithms) {
        Ok(())
        | Err(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => Ok(()),
        Err(error) => Err(format!("no authority in {CA_CERT} has issued it ({error})")),
    }
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    verifier: RoleVerifier,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous() // the verifier checks more than the usual one, not less
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key)
}

fn stamps(dir: &Path) -> Stamps {
    [CA_CERT, CERT, KEY].map(|file| {
        let file = std::fs::metadata(dir.join(file)).ok()?;
        Some((file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
    })
}
