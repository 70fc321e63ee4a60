//! Who gets in.

use std::net::SocketAddr;
use std::time::SystemTime;

use tokio::net::TcpSocket;
use weir_trust::{Dial, Identity, Peer, Role, Stream};
use weir_wire::{Activity, Ends, Remote, StreamKey, open};

use super::*;
use crate::metrics::ReasonLabel;

/// A cluster's authority, and a worker `w` that has a certificate.
struct Certified {
    dir: TempDir,
    admission: Arc<Admission>,
    bed: Bed,
}

fn identity(dir: &Path, role: Role, name: &str) -> Arc<Identity> {
    weir_trust::testing::identity(dir, role, name.parse().unwrap()).unwrap()
}

impl Certified {
    async fn new(mode: StreamMode) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let access = Access::Certificates(identity(dir.path(), Role::Worker, "w"));
        let admission = Admission::new(access, mode, &"w".parse().unwrap());
        let bed = Bed::with(1, admission.clone()).await;
        Self {
            dir,
            admission,
            bed,
        }
    }

    /// Somebody who has shown a certificate to the control service.
    fn caller(&self, role: Role, name: &str) -> Caller {
        let dir = self.dir.path();
        identity(dir, role, name);
        let peer = Identity::peek(&dir.join(format!("{role}-{name}"))).unwrap();
        Caller::Peer {
            peer: Arc::new(peer),
            from: Some("127.0.0.1".parse().unwrap()),
        }
    }

    fn key(&self, name: &str) -> StreamKey {
        let caller = self.caller(Role::Mount, name);
        let reply = self.admission.open_stream(&caller).unwrap();
        StreamKey::new(&reply.key_id, &reply.key).unwrap()
    }

    fn refusals(&self, reason: &'static str) -> u64 {
        let refusals = &self.bed.worker.metrics().stream_refusals;
        refusals.get_or_create(&ReasonLabel { reason }).get()
    }

    async fn wait_for_refusals(&self, reasons: &[&'static str], count: u64) {
        let refused = async {
            let all = || -> u64 { reasons.iter().map(|reason| self.refusals(reason)).sum() };
            while all() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, refused).await.unwrap();
    }
}

fn ends(client: &str) -> Ends<'_> {
    Ends {
        client,
        worker: "worker w",
    }
}

async fn opened(
    address: SocketAddr,
    key: &StreamKey,
    client: &str,
) -> Result<Link<TcpStream>, OpeningError> {
    let mut link = Link::of_client(TcpStream::connect(address).await.unwrap());
    open(&mut link, key, ends(client), &Activity::default()).await?;
    Ok(link)
}

/// Reads a part of the first file, with checksums.
async fn read<S: Socket>(bed: &Bed, link: &mut Link<S>) {
    send(link, &[bed.request(0, 70_000..150_000)]).await;
    let (reply, bytes) = receive(link).await;
    assert_eq!(reply.status(), BlockStatus::Ok, "{}", reply.message);
    assert_eq!(bytes, content(0)[70_000..150_000]);
    assert!(have_checksums(&bytes, 70_000, &reply.checksums));
}

/// The message that a client without a certificate gets in place of all that it asks for.
async fn refusal(bed: &Bed, version: u32) -> String {
    let mut link = bed.tcp().await;
    let mut requests = vec![bed.request(0, 0..100)];
    if version > 0 {
        requests.insert(0, hello_of(version));
    }
    send(&mut link, &requests).await;
    let mut message = String::new();
    for _ in &requests {
        let (reply, bytes) = receive(&mut link).await;
        assert_eq!(reply.status(), BlockStatus::Denied, "version {version}");
        assert!(bytes.is_empty());
        message = reply.message;
    }
    let (_, mut incoming) = link.split();
    let end = incoming.message::<BlockReply>().await;
    assert!(matches!(end, Ok(None) | Err(_)), "{end:?}");
    message
}

#[test]
fn whoever_has_a_key_reads_and_nobody_else_does() {
    run(async {
        let certified = Certified::new(StreamMode::Authenticated).await;
        let bed = &certified.bed;
        for version in [0, 1, 2] {
            let message = refusal(bed, version).await;
            assert!(message.contains("--certs"), "{message}");
        }
        let key = certified.key("m");
        for _ in 0..3 {
            let mut link = opened(bed.address, &key, "mount m").await.unwrap();
            read(bed, &mut link).await;
            read(bed, &mut link).await;
        }
        // The key of one is not that of another.
        let other = opened(bed.address, &key, "mount n").await.err().unwrap();
        assert!(matches!(other, OpeningError::Proof), "{other:?}");
        let own = certified.key("n");
        opened(bed.address, &own, "mount n").await.unwrap();
        assert_eq!(certified.refusals("refused"), 3);
        certified.bed.end().await;
    });
}

#[test]
fn a_reader_that_says_that_it_makes_copies_waits_for_its_turn() {
    run(async {
        let certified = Certified::new(StreamMode::Authenticated).await;
        let bed = &certified.bed;
        let key = certified.key("m");
        let mut mount = opened(bed.address, &key, "mount m").await.unwrap();
        read(bed, &mut mount).await;
        bed.until_stored(1).await;
        let other = certified.caller(Role::Worker, "x");
        let reply = certified.admission.open_stream(&other).unwrap();
        let key = StreamKey::new(&reply.key_id, &reply.key).unwrap();
        let mut worker = opened(bed.address, &key, "worker x").await.unwrap();
        let all = bed.worker.turns().take("other", u64::MAX).await;
        let for_copy = BlockRequest {
            for_copy: true,
            ..bed.request(0, 0..100)
        };
        send(&mut worker, std::slice::from_ref(&for_copy)).await;
        assert_eq!(receive(&mut worker).await.1, content(0)[..100]);
        send(&mut mount, &[for_copy]).await;
        {
            let (_, mut incoming) = mount.split();
            let told: BlockReply = incoming.message().await.unwrap().unwrap();
            assert_eq!(told.status(), BlockStatus::Queued);
        }
        drop(all);
        assert_eq!(receive(&mut mount).await.1, content(0)[..100]);
        certified.bed.end().await;
    });
}

#[test]
fn a_key_from_before_a_restart_is_not_known_and_another_is_to_be_had() {
    run(async {
        let before = Certified::new(StreamMode::Authenticated).await;
        let key = before.key("m");
        opened(before.bed.address, &key, "mount m").await.unwrap();
        before.bed.end().await;
        let after = Certified::new(StreamMode::Authenticated).await;
        let refused = opened(after.bed.address, &key, "mount m").await;
        assert!(matches!(refused, Err(OpeningError::UnknownKey)));
        let key = after.key("m");
        let mut link = opened(after.bed.address, &key, "mount m").await.unwrap();
        read(&after.bed, &mut link).await;
        drop(link);
        after.bed.end().await;
    });
}

#[test]
fn a_key_is_of_no_use_from_another_address() {
    run(async {
        let certified = Certified::new(StreamMode::Authenticated).await;
        let key = certified.key("m");
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let elsewhere = socket.connect(certified.bed.address).await.unwrap();
        let mut link = Link::of_client(elsewhere);
        let activity = Activity::default();
        let opening = open(&mut link, &key, ends("mount m"), &activity);
        let refused = opening.await.unwrap_err().to_string();
        assert!(refused.contains("127.0.0.2"), "{refused}");
        certified.bed.end().await;
    });
}

#[test]
fn keys_are_for_those_who_read_blocks() {
    run(async {
        let certified = Certified::new(StreamMode::Authenticated).await;
        for role in Role::ALL {
            let caller = certified.caller(role, "x");
            let reply = certified.admission.open_stream(&caller);
            assert_eq!(reply.is_ok(), role != Role::Master, "{role}");
        }
        let local = certified.admission.open_stream(&Caller::Local { uid: 0 });
        assert_eq!(
            local.unwrap_err().code(),
            tonic::Code::PermissionDenied,
            "a key names a certificate"
        );
        certified.bed.end().await;
        let id = "w".parse().unwrap();
        let open = Admission::new(Access::SameUser, StreamMode::default(), &id);
        let reply = open.open_stream(&Caller::Local { uid: 0 }).unwrap();
        assert_eq!(reply.mode(), weir_proto::v1::StreamMode::Plain);
        assert!(reply.key.is_empty());
    });
}

#[test]
fn hundreds_that_never_answer_the_challenge_keep_no_reader_out() {
    run(async {
        let certified = Certified::new(StreamMode::Authenticated).await;
        let key = certified.key("m");
        let mut silent = Vec::new();
        for number in 0..2 * Limits::default().unknown {
            let mut socket = TcpStream::connect(certified.bed.address).await.unwrap();
            if number % 2 == 0 {
                // The beginning of a hello.
                socket.write_all(&[30, 0, 0, 0, 0x82]).await.unwrap();
            }
            silent.push(socket);
            if number % 50 == 0 {
                let link = opened(certified.bed.address, &key, "mount m").await;
                read(&certified.bed, &mut link.unwrap()).await;
            }
        }
        let mut link = opened(certified.bed.address, &key, "mount m")
            .await
            .unwrap();
        read(&certified.bed, &mut link).await;
        // Those that took long gave way to others; the rest has a few seconds.
        let count = silent.len() as u64;
        certified
            .wait_for_refusals(&["crowded", "late"], count)
            .await;
        // An open connection is not one of them.
        read(&certified.bed, &mut link).await;
        drop((silent, link));
        certified.bed.end().await;
    });
}

async fn over_tls(
    certified: &Certified,
    identity: Arc<Identity>,
    worker: &str,
) -> io::Result<Link<Remote>> {
    let dial = Dial::new(Some(identity)).expecting(worker);
    let address = certified.bed.address.to_string();
    match dial.connect(&address, Role::Worker).await? {
        Stream::Tls(stream) => Ok(Link::of_client(Remote::from(*stream))),
        other => panic!("not TLS: {other:?}"),
    }
}

#[test]
fn over_tls_those_with_a_certificate_of_the_cluster_read_and_nobody_else_does() {
    run(async {
        let certified = Certified::new(StreamMode::Tls).await;
        let dir = certified.dir.path();
        for version in [0, 1, 2] {
            let message = refusal(&certified.bed, version).await;
            assert!(message.contains("TLS"), "{message}");
        }
        for role in [Role::Mount, Role::Worker, Role::Admin] {
            let own = identity(dir, role, "m");
            let mut link = over_tls(&certified, own, "w").await.unwrap();
            send(&mut link, &[hello_of(STREAM_VERSION)]).await;
            assert_eq!(receive(&mut link).await.0.epoch, EPOCH);
            read(&certified.bed, &mut link).await;
        }
        // It may not read, and is told so.
        let master = identity(dir, Role::Master, "m");
        let mut link = over_tls(&certified, master, "w").await.unwrap();
        send(&mut link, &[hello_of(STREAM_VERSION)]).await;
        let (reply, _) = receive(&mut link).await;
        assert_eq!(reply.status(), BlockStatus::Denied);
        // Another worker than the one that is wanted.
        let own = identity(dir, Role::Mount, "m");
        let wrong = over_tls(&certified, own, "x").await.err().unwrap();
        assert!(wrong.to_string().contains("worker x"), "{wrong}");
        // Of another cluster.
        let elsewhere = tempfile::tempdir().unwrap();
        let stranger = identity(elsewhere.path(), Role::Mount, "m");
        assert!(over_tls(&certified, stranger, "w").await.is_err());
        certified.bed.end().await;
    });
}

#[test]
fn who_says_nothing_is_let_go() {
    for mode in [StreamMode::Authenticated, StreamMode::Tls] {
        run(async {
            let certified = Certified::new(mode).await;
            let mut silent = TcpStream::connect(certified.bed.address).await.unwrap();
            let end = tokio::time::timeout(DEADLINE, silent.read(&mut [0; 1])).await;
            assert_eq!(end.unwrap().unwrap(), 0);
            assert_eq!(certified.refusals("late"), 1);
            certified.bed.end().await;
        });
    }
}

#[test]
fn a_connection_ends_with_the_certificate_however_busy_it_is() {
    run(async {
        let certified = Certified::new(StreamMode::Authenticated).await;
        let bed = &certified.bed;
        let Caller::Peer { peer, from } = certified.caller(Role::Mount, "m") else {
            panic!("not known by a certificate");
        };
        let peer = Peer {
            expires: SystemTime::now() + Duration::from_secs(2),
            ..(*peer).clone()
        };
        let peer = Arc::new(peer);
        let reply = certified
            .admission
            .open_stream(&Caller::Peer { peer, from });
        let reply = reply.unwrap();
        let key = StreamKey::new(&reply.key_id, &reply.key).unwrap();
        let mut link = opened(bed.address, &key, "mount m").await.unwrap();
        let (outgoing, mut incoming) = link.split();
        let asked = Frame::new(&bed.request(0, 0..100), Vec::new());
        let busy = async {
            // There is always one more that waits.
            while outgoing.send(std::slice::from_ref(&asked)).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        let answered = async {
            let mut answers = 0;
            while let Ok(Some(reply)) = incoming.message::<BlockReply>().await {
                if incoming.payload(reply.length as usize).await.is_err() {
                    break;
                }
                answers += 1;
            }
            answers
        };
        let answers = tokio::time::timeout(DEADLINE, async {
            tokio::select! {
                answers = answered => answers,
                () = busy => 1,
            }
        });
        assert!(answers.await.expect("it goes on without a certificate") > 0);
        let refused = opened(bed.address, &key, "mount m").await;
        assert!(matches!(refused, Err(OpeningError::UnknownKey)));
        certified.bed.end().await;
    });
}
