//! Who gets in, who does not, and what becomes of certificates while they are in use.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::io;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_util::sync::{CancellationToken, DropGuard};
use weir_trust::{
    Access, Authority, Caller, Dial, Identity, Incoming, Limits, Role, Stream, Subject, TrustError,
    Validity, incoming, incoming_unix, trusted_in,
};

/// Longest wait for what should come soon.
const SOON: Duration = Duration::from_secs(20);
/// The user "nobody".
const NOBODY: u32 = 65534;

/// An authority and what it has issued.
struct World {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl World {
    fn new() -> Self {
        Self::valid_for(Validity::default())
    }

    fn valid_for(validity: Validity) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(&dir.path().join("ca"), validity).unwrap();
        Self { dir, authority }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Issues a certificate of this role, named as its directory.
    fn issue(&self, role: Role, name: &str) -> PathBuf {
        let dir = self.path(name);
        let subject = Subject::new(role, name.parse().unwrap());
        self.authority.issue(&subject, &[], &dir).unwrap();
        dir
    }

    fn identity(&self, role: Role, name: &str) -> Arc<Identity> {
        Identity::load(&self.issue(role, name)).unwrap()
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Has a client call a server. What each of them made of it.
async fn meet(access: Access, dial: Dial, role: Role) -> (io::Result<Caller>, io::Result<Stream>) {
    let (listener, address) = listen().await;
    let server = async {
        let (stream, _) = listener.accept().await?;
        let (mut stream, caller) = access.admit(stream).await?;
        stream.write_all(b"hello").await?;
        Ok(caller)
    };
    let client = async {
        let mut stream = dial.connect(&address.to_string(), role).await?;
        // With TLS 1.3 a client hears that it was refused when it reads.
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).await?;
        Ok(stream)
    };
    tokio::join!(server, client)
}

fn with(identity: Arc<Identity>) -> Dial {
    Dial::new(Some(identity))
}

#[tokio::test]
async fn both_ends_know_each_other_by_certificates_of_one_authority() {
    let world = World::new();
    let master = Access::Certificates(world.identity(Role::Master, "m"));
    let mount = world.identity(Role::Mount, "gpu-7");
    let (caller, stream) = meet(master, with(mount), Role::Master).await;
    let caller = caller.unwrap();
    assert_eq!(caller.to_string(), "mount gpu-7 at 127.0.0.1");
    assert!(caller.is_one_of(&[Role::Mount]) && !caller.is_one_of(&[Role::Admin]));
    assert!(matches!(stream.unwrap(), Stream::Tls(_)));
}

#[tokio::test]
async fn who_has_a_certificate_of_another_authority_or_none_is_refused() {
    let (world, other) = (World::new(), World::new());
    let master = world.identity(Role::Master, "m");
    let access = || Access::Certificates(master.clone());
    let stranger = other.identity(Role::Admin, "admin");
    let (caller, stream) = meet(access(), with(stranger), Role::Master).await;
    assert!(caller.is_err() && stream.is_err(), "{caller:?} {stream:?}");
    let (caller, stream) = meet(access(), Dial::default(), Role::Master).await;
    assert!(caller.is_err() && stream.is_err(), "{caller:?} {stream:?}");
    // Nor does one of the cluster take a server of another.
    let theirs = Access::Certificates(other.identity(Role::Master, "m"));
    let own = world.identity(Role::Worker, "w");
    let (caller, stream) = meet(theirs, with(own), Role::Master).await;
    assert!(caller.is_err() && stream.is_err(), "{caller:?} {stream:?}");
}

#[tokio::test]
async fn a_client_with_a_certificate_takes_no_server_without_one() {
    let world = World::new();
    let own = world.identity(Role::Worker, "w");
    let (_, stream) = meet(Access::SameUser, with(own), Role::Master).await;
    assert!(stream.is_err());
}

#[tokio::test]
async fn a_worker_cannot_pass_for_the_master() {
    let world = World::new();
    let worker = Access::Certificates(world.identity(Role::Worker, "w"));
    let mount = world.identity(Role::Mount, "gpu-7");
    let (_, stream) = meet(worker, with(mount), Role::Master).await;
    let why = stream.unwrap_err().to_string();
    assert!(why.contains("worker w, not of a master"), "{why}");
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_refused() {
    let world = World::new();
    let master = world.identity(Role::Master, "m");
    let validity = Validity {
        issued: Duration::ZERO,
        ..Validity::default()
    };
    let authority = Authority::open(&world.path("ca"), validity).unwrap();
    let subject = Subject::new(Role::Admin, "late".parse().unwrap());
    authority.issue(&subject, &[], &world.path("late")).unwrap();
    let late = Identity::load(&world.path("late")).unwrap();
    // It is valid to the end of that second.
    let end = late.expires() + Duration::from_secs(1);
    wait_until("it has ended", || SystemTime::now() > end).await;
    let (caller, stream) = meet(Access::Certificates(master), with(late), Role::Master).await;
    let why = caller.unwrap_err().to_string();
    assert!(stream.is_err() && why.contains("xpired"), "{why}");
}

#[tokio::test]
async fn a_connection_ends_with_the_certificate_of_its_caller() {
    let world = World::valid_for(Validity {
        issued: Duration::from_secs(3),
        ..Validity::default()
    });
    let (server, client) = (
        world.identity(Role::Master, "m"),
        world.identity(Role::Worker, "w"),
    );
    let ends = client.expires();
    let served = Served::start(Access::Certificates(server), Limits::default()).await;
    let address = served.address.to_string();
    let (mut incoming, dial) = (served.incoming, with(client));
    let (connection, stream) = tokio::join!(incoming.next(), dial.connect(&address, Role::Master));
    let (mut connection, _stream) = (connection.unwrap().unwrap(), stream.unwrap());
    let read = timeout(SOON, connection.read_u8()).await.unwrap();
    assert!(read.unwrap_err().to_string().contains("has ended"));
    let whole_seconds = Duration::from_secs(1);
    assert!(SystemTime::now() + whole_seconds >= ends);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_says_nothing_is_given_up_on_after_ten_seconds() {
    let world = World::new();
    let access = Access::Certificates(world.identity(Role::Master, "m"));
    let (listener, address) = listen().await;
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    let _silent = client.unwrap();
    let began = tokio::time::Instant::now();
    let error = access.admit(server.unwrap().0).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    assert_eq!(began.elapsed().as_secs(), 10);
}

/// A server's listener.
struct Served {
    address: SocketAddr,
    incoming: Incoming,
    _stop: DropGuard,
}

impl Served {
    async fn start(access: Access, limits: Limits) -> Self {
        let (listener, address) = listen().await;
        let stop = CancellationToken::new();
        Self {
            address,
            incoming: incoming(listener, access, limits, stop.clone()),
            _stop: stop.drop_guard(),
        }
    }
}

/// Whether the other end closes a connection.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = timeout(SOON, stream.read_u8()).await;
    read.expect("it says nothing and does not close").is_err()
}

#[tokio::test]
async fn who_has_too_many_connections_gets_no_more_until_one_ends() {
    let limits = Limits {
        per_caller: 2,
        ..Limits::default()
    };
    let mut served = Served::start(Access::SameUser, limits).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let client = TcpStream::connect(served.address).await.unwrap();
        open.push((client, served.incoming.next().await.unwrap().unwrap()));
    }
    let mut third = TcpStream::connect(served.address).await.unwrap();
    assert!(is_closed(&mut third).await);
    open.pop();
    let _client = TcpStream::connect(served.address).await.unwrap();
    served.incoming.next().await.unwrap().unwrap();
}

#[tokio::test]
async fn handshakes_of_one_address_do_not_keep_others_from_theirs() {
    let world = World::new();
    let limits = Limits {
        handshakes_per_address: 2,
        ..Limits::default()
    };
    let access = Access::Certificates(world.identity(Role::Master, "m"));
    let mut served = Served::start(access, limits).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(served.address).await.unwrap());
    }
    assert!(is_closed(&mut silent[2]).await);
    // Another address of this machine.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let stream = socket.connect(served.address).await.unwrap();
    let config = world
        .identity(Role::Worker, "w")
        .client_config(Role::Master);
    let connector = tokio_rustls::TlsConnector::from(config);
    let name = "localhost".try_into().unwrap();
    let (connection, stream) =
        tokio::join!(served.incoming.next(), connector.connect(name, stream));
    stream.unwrap();
    connection.unwrap().unwrap();
}

/// Runs `script` as the user nobody. `None` where this is not root, who alone can.
fn as_nobody(script: &str) -> Option<std::process::Child> {
    if !rustix::process::geteuid().is_root() {
        // Nobody may read it.
        let _ = writeln!(
            std::io::stderr(),
            "not root: nothing is tried as another user"
        );
        return None;
    }
    let mut command = Command::new("bash");
    command.args(["-c", script]).uid(NOBODY).gid(NOBODY);
    Some(command.current_dir("/").spawn().unwrap())
}

#[tokio::test]
async fn another_user_of_this_machine_is_refused() {
    let mut served = Served::start(Access::SameUser, Limits::default()).await;
    let port = served.address.port();
    // `read` ends with 1 at the end of the stream, and with more than 128 when nothing comes for so long.
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; read -t 15 -u 3 x; exit $?");
    let Some(mut child) = as_nobody(&script) else {
        return;
    };
    let status = tokio::task::spawn_blocking(move || child.wait().unwrap());
    assert_eq!(status.await.unwrap().code(), Some(1));
    // The first who is admitted is this process itself.
    let _client = TcpStream::connect(served.address).await.unwrap();
    let connection = served.incoming.next().await.unwrap().unwrap();
    let caller = tonic::transport::server::Connected::connect_info(&connection);
    assert!(matches!(caller, Caller::Local { uid: 0 }), "{caller}");
}

#[tokio::test]
async fn a_unix_socket_admits_its_own_user() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let stop = CancellationToken::new();
    let mut incoming = incoming_unix(listener, Limits::default(), stop.clone());
    let _guard = stop.drop_guard();
    let _client = UnixStream::connect(dir.path().join("s")).await.unwrap();
    let connection = incoming.next().await.unwrap().unwrap();
    let caller = tonic::transport::server::Connected::connect_info(&connection);
    assert!(matches!(caller, Caller::Local { .. }), "{caller}");
}

/// Looks again until `done`.
async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_used_and_half_of_one_is_not() {
    let world = World::new();
    let dir = world.issue(Role::Worker, "w");
    let identity = Identity::load(&dir).unwrap();
    let before = identity.expires();
    let validity = Validity {
        issued: Duration::from_hours(24 * 700),
        ..Validity::default()
    };
    let authority = Authority::open(&world.path("ca"), validity).unwrap();
    let new = world.path("new");
    let subject = identity.subject();
    authority.issue(&subject, &[], &new).unwrap();
    // The certificate is there, and its key is not yet.
    std::fs::copy(new.join("tls.crt"), dir.join("tls.crt")).unwrap();
    let began = Instant::now();
    wait_until("the files were looked at", || {
        assert_eq!(identity.expires(), before);
        began.elapsed() > Duration::from_millis(1500)
    })
    .await;
    std::fs::copy(new.join("tls.key"), dir.join("tls.key")).unwrap();
    wait_until("the new certificate is used", || {
        identity.expires() > before
    })
    .await;
    let master = Access::Certificates(world.identity(Role::Master, "m"));
    let (caller, _) = meet(master, with(identity), Role::Master).await;
    caller.unwrap();
}

#[tokio::test]
async fn who_has_no_certificate_yet_is_nobody_until_there_is_one() {
    let world = World::new();
    let dir = world.path("late");
    let late = Identity::load_when_there(&dir).unwrap();
    let master = world.identity(Role::Master, "m");
    let access = || Access::Certificates(master.clone());
    let (caller, stream) = meet(access(), with(late.clone()), Role::Master).await;
    assert!(caller.is_err() && stream.is_err(), "{caller:?} {stream:?}");
    let (caller, stream) = meet(
        Access::Certificates(late.clone()),
        with(master.clone()),
        Role::Mount,
    )
    .await;
    assert!(caller.is_err() && stream.is_err(), "{caller:?} {stream:?}");
    world.issue(Role::Mount, "late");
    wait_until("it is there", || late.subject().name.as_str() == "late").await;
    let (caller, _) = meet(access(), with(late), Role::Master).await;
    caller.unwrap();
}

#[tokio::test]
async fn what_an_authority_issued_before_it_got_a_new_key_stays_valid() {
    let world = World::new();
    let (old, renewed) = (
        world.issue(Role::Worker, "old"),
        world.issue(Role::Master, "renewed"),
    );
    let authority = Authority::rotate(&world.path("ca"), Validity::default()).unwrap();
    assert_eq!(trusted_in(&world.path("ca")).unwrap().len(), 2);
    authority.make_trusted(&old).unwrap();
    authority.renew(&renewed).unwrap();
    for (server, client) in [(&old, &renewed), (&renewed, &old)] {
        let (server, client) = (
            Identity::load(server).unwrap(),
            Identity::load(client).unwrap(),
        );
        let role = server.subject().role;
        let (caller, stream) = meet(Access::Certificates(server), with(client), role).await;
        caller.unwrap();
        stream.unwrap();
    }
}

#[test]
fn a_certificate_that_others_would_refuse_is_told_when_it_is_loaded() {
    let (world, other) = (World::new(), World::new());
    let (dir, theirs) = (
        world.issue(Role::Worker, "w"),
        other.issue(Role::Worker, "w"),
    );
    std::fs::copy(theirs.join("ca.crt"), dir.join("ca.crt")).unwrap();
    let error = Identity::load(&dir).unwrap_err();
    assert!(matches!(error, TrustError::Unusable { .. }), "{error}");
    assert!(
        error.to_string().contains("no authority in ca.crt"),
        "{error}"
    );
    std::fs::write(dir.join("ca.crt"), "").unwrap();
    assert!(Identity::load(&dir).is_err());
}

#[test]
fn keys_are_for_their_owner_alone_whatever_was_there_before() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let world = World::new();
    let dir = world.path("w");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("tls.key"), "").unwrap();
    std::fs::set_permissions(dir.join("tls.key"), PermissionsExt::from_mode(0o666)).unwrap();
    world.issue(Role::Worker, "w");
    for key in [dir.join("tls.key"), world.path("ca/ca.key")] {
        let mode = std::fs::metadata(&key).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", key.display());
    }
}
