//! Connections to workers as they are, which are stopped and started again.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use weir_core::{ByteSize, ClusterMap, WorkerInfo};
use weir_proto::v1::master_client::MasterClient;
use weir_trust::{Access, Dial, Identity, Limits, Role, incoming};
use weir_wire::{Activity, Connect, ConnectionError, Connections, FarWorkers};
use weir_worker::snapshots::Snapshots;
use weir_worker::stream::{Admission, StreamMode as Mode, serve_tcp};
use weir_worker::{WorkerConfig, testing};

const DEADLINE: Duration = Duration::from_mins(1);
/// Silence after which a client asks others.
const SILENCE: Duration = Duration::from_millis(600);

fn identity(dir: &Path, role: Role, name: &str) -> Arc<Identity> {
    weir_trust::testing::identity(dir, role, name.parse().unwrap()).unwrap()
}

/// A worker's services, until this is dropped.
struct Served {
    data: SocketAddr,
    control: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Served {
    /// At these addresses, or any.
    async fn start(access: Access, mode: Mode, at: Option<(SocketAddr, SocketAddr)>) -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        let (data, control) = at.unwrap_or((any, any));
        let (data, control) = (
            TcpListener::bind(data).await.unwrap(),
            TcpListener::bind(control).await.unwrap(),
        );
        let config = WorkerConfig {
            memory: ByteSize(1 << 20),
            ..testing::config("w").unwrap()
        };
        let id = config.id.clone();
        let worker = testing::open(config).unwrap();
        let nowhere = Dial::default().channel("127.0.0.1:1", Role::Master, DEADLINE);
        let snapshots = Arc::new(Snapshots::new(MasterClient::new(nowhere.unwrap())));
        let (_, map) = watch::channel(Arc::new(ClusterMap::default()));
        let stop = CancellationToken::new();
        let admission = Admission::new(access.clone(), mode, &id);
        let mut served = Self {
            data: data.local_addr().unwrap(),
            control: control.local_addr().unwrap(),
            stop: stop.clone(),
            tasks: JoinSet::new(),
        };
        let (s, admitted) = (stop.clone(), admission.clone());
        let streaming = serve_tcp(worker.clone(), map, data, admitted, s);
        served.tasks.spawn_local(streaming);
        let callers = incoming(control, access, Limits::default(), stop.clone());
        served.tasks.spawn_local(async move {
            let serving =
                weir_worker::service::serve(worker, snapshots, Some(admission), callers, stop)
                    .await;
            serving.unwrap();
        });
        served
    }

    /// Another one at the same addresses, which knows nothing of this one's keys.
    async fn restart(mut self, access: Access, mode: Mode) -> Self {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        timeout(DEADLINE, ended).await.unwrap();
        Self::start(access, mode, Some((self.data, self.control))).await
    }

    fn info(&self, id: &str) -> WorkerInfo {
        WorkerInfo {
            data_address: self.data.to_string(),
            control_address: self.control.to_string(),
            ..testing::info(id).unwrap()
        }
    }
}

/// The directory of an authority, and how its worker admits and its mount calls.
fn cluster() -> (TempDir, Access, Dial) {
    let dir = tempfile::tempdir().unwrap();
    let access = Access::Certificates(identity(dir.path(), Role::Worker, "w"));
    let dial = Dial::new(Some(identity(dir.path(), Role::Mount, "m")));
    (dir, access, dial)
}

/// Runs a test where tasks need not move between threads.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn connections(dial: Dial) -> Connections<FarWorkers> {
    Connections::new(FarWorkers::new(dial))
}

/// Another address of a server, and how many connections came to it there.
async fn counted(server: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let came = Arc::<AtomicUsize>::default();
    let count = came.clone();
    tokio::task::spawn_local(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            tokio::task::spawn_local(async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, came)
}

async fn refusal(connections: &Connections<FarWorkers>, worker: &WorkerInfo) -> String {
    let probe = timeout(DEADLINE, connections.probe(worker)).await.unwrap();
    match probe.unwrap_err() {
        ConnectionError::Refused(why) => why,
        error => panic!("not refused: {error:?}"),
    }
}

#[test]
fn a_worker_that_was_started_again_is_asked_again_for_its_way() {
    run(async {
        let (_dir, access, dial) = cluster();
        let connections = connections(dial);
        let mut served = Served::start(access.clone(), Mode::Authenticated, None).await;
        let worker = served.info("w");
        for mode in [
            Mode::Authenticated,
            Mode::Tls,
            Mode::Tls,
            Mode::Authenticated,
        ] {
            for _ in 0..3 {
                connections.probe(&worker).await.unwrap();
            }
            served = served.restart(access.clone(), mode).await;
        }
        connections.probe(&worker).await.unwrap();
    });
}

#[test]
fn many_who_want_to_know_ask_once() {
    run(async {
        let (_dir, access, dial) = cluster();
        let connections = connections(dial);
        let served = Served::start(access, Mode::Authenticated, None).await;
        // Each question is a connection of its own.
        let (control, asked) = counted(served.control).await;
        let worker = WorkerInfo {
            control_address: control.to_string(),
            ..served.info("w")
        };
        let probes = (0..100).map(|_| connections.probe(&worker));
        for probe in futures::future::join_all(probes).await {
            probe.unwrap();
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn only_the_worker_that_is_meant_will_do_and_only_with_a_certificate() {
    run(async {
        let (_dir, access, dial) = cluster();
        let served = Served::start(access, Mode::Authenticated, None).await;
        let ours = connections(dial.clone());
        let why = refusal(&ours, &served.info("another")).await;
        assert!(why.contains("another"), "{why}");
        let open = Served::start(Access::SameUser, Mode::Authenticated, None).await;
        refusal(&ours, &open.info("w")).await;
        // And those without a certificate are told what they lack.
        let stranger = connections(Dial::default());
        let why = refusal(&stranger, &served.info("w")).await;
        assert!(why.contains("--certs"), "{why}");
        stranger.probe(&open.info("w")).await.unwrap();
        // Of another cluster.
        let (_other, _, dial) = cluster();
        refusal(&connections(dial), &served.info("w")).await;
    });
}

#[test]
fn silence_in_an_opening_counts_as_silence() {
    run(async {
        let (_dir, access, dial) = cluster();
        for mode in [Mode::Authenticated, Mode::Tls] {
            let served = Served::start(access.clone(), mode, None).await;
            // Its kernel accepts, and nobody says a word.
            let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let deaf = deaf.local_addr().map(|address| (deaf, address)).unwrap();
            let worker = WorkerInfo {
                data_address: deaf.1.to_string(),
                ..served.info("w")
            };
            let far = FarWorkers::new(dial.clone());
            let activity = Activity::default();
            let outcome = tokio::select! {
                opened = far.connect(&worker, &activity) => Some(opened.is_ok()),
                () = activity.silent_for(SILENCE) => None,
            };
            assert_eq!(outcome, None, "it is silent before the opening is given up");
            // As it is when even the question has no answer.
            let worker = WorkerInfo {
                control_address: deaf.1.to_string(),
                ..worker
            };
            let (far, activity) = (FarWorkers::new(dial.clone()), Activity::default());
            let outcome = tokio::select! {
                opened = far.connect(&worker, &activity) => Some(opened.is_ok()),
                () = activity.silent_for(SILENCE) => None,
            };
            assert_eq!(outcome, None);
        }
    });
}
