//! What clients get on a connection, whatever they send.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::LocalSet;
use weir_core::Hashing;
use weir_origin::{OriginSpec, SourcePolicy};
use weir_trust::Access;
use weir_wire::{Link, have_checksums};

use super::*;
use crate::config::WorkerConfig;
use crate::fills;
use crate::sources::DatasetSources;
use crate::stream::StreamMode;
use crate::testing;

mod opening;

/// Longest wait for anything. Generous: other tests run on the same cores.
const DEADLINE: Duration = Duration::from_mins(1);
const LENGTH: usize = 200_000;
const EPOCH: u64 = 7;

/// A worker of a directory with files `0`, `1`…, served over TCP and a Unix socket.
struct Bed {
    dir: TempDir,
    worker: Arc<Worker>,
    origin: u64,
    versions: Vec<String>,
    address: std::net::SocketAddr,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    _map: watch::Sender<Arc<ClusterMap>>,
}

fn content(n: usize) -> Vec<u8> {
    (0..LENGTH).map(|at| (at * 31 + n) as u8).collect()
}

impl Bed {
    /// Call inside a [`LocalSet`].
    async fn new(files: usize) -> Self {
        let id = "w".parse().unwrap();
        let admission = Admission::new(Access::SameUser, StreamMode::default(), &id);
        Self::with(files, admission).await
    }

    async fn with(files: usize, admission: Arc<Admission>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        for n in 0..files {
            std::fs::write(data.join(n.to_string()), content(n)).unwrap();
        }
        let url = format!("file://{}", data.display());
        let spec = OriginSpec::parse(&url).unwrap();
        let (origin, versions) = Self::list(&spec, files).await;
        let config = WorkerConfig {
            ssd: vec![testing::ssd(dir.path().join("ssd"), 64 << 20)],
            ..testing::config("w").unwrap()
        };
        let worker = testing::open(config).unwrap();
        worker.origins().add(spec);
        let map = ClusterMap::new(EPOCH, Hashing::NEWEST, Vec::new());
        let (sender, map) = watch::channel(Arc::new(map));
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let unix = UnixListener::bind(dir.path().join("socket")).unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::task::spawn_local({
            let (worker, stop) = (worker.clone(), stop.clone());
            async move {
                tokio::join!(
                    serve_tcp(worker.clone(), map.clone(), tcp, admission, stop.clone()),
                    serve_local(worker, map, unix, stop),
                );
            }
        });
        Self {
            dir,
            worker,
            origin,
            versions,
            address,
            stop,
            serving,
            _map: sender,
        }
    }

    /// The origin's number, and the versions of its files in the order of their numbers.
    async fn list(spec: &OriginSpec, files: usize) -> (u64, Vec<String>) {
        let opened = weir_origin::open(spec, &SourcePolicy::unlimited())
            .await
            .unwrap();
        let mut pages = opened.list("");
        let mut versions = vec![String::new(); files];
        while let Some(page) = pages.next().await {
            for listed in page.unwrap() {
                let key = String::from_utf8(listed.key).unwrap();
                versions[key.parse::<usize>().unwrap()] = listed.version;
            }
        }
        (opened.id().0, versions)
    }

    fn request(&self, n: usize, range: Range<u32>) -> BlockRequest {
        BlockRequest {
            epoch: EPOCH,
            dataset: "set".to_owned(),
            origin: self.origin,
            key: n.to_string(),
            object_size: LENGTH as u64,
            object_version: self.versions[n].clone(),
            offset: range.start,
            length: range.end - range.start,
            ..BlockRequest::default()
        }
    }

    async fn tcp(&self) -> Link<TcpStream> {
        Link::of_client(TcpStream::connect(self.address).await.unwrap())
    }

    async fn unix(&self) -> Link<UnixStream> {
        let path = self.dir.path().join("socket");
        Link::of_client(UnixStream::connect(path).await.unwrap())
    }

    /// Waits until the SSD tier has the first `files` files.
    async fn until_stored(&self, files: usize) {
        let stored = async {
            let stored = |n: usize| {
                let (block, _) = parse(&self.request(n, 0..1)).unwrap();
                self.worker.locate(&block.key()).is_some()
            };
            while !(0..files).all(stored) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, stored).await.unwrap();
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.serving)
            .await
            .unwrap()
            .unwrap();
        self.worker.close(DEADLINE).await;
    }
}

fn hello_of(version: u32) -> BlockRequest {
    BlockRequest {
        stream_version: version,
        ..BlockRequest::default()
    }
}

async fn send<S: Socket>(link: &mut Link<S>, requests: &[BlockRequest]) {
    let frames = requests
        .iter()
        .map(|request| Frame::new(request, Vec::new()));
    let frames: Vec<Frame> = frames.collect();
    link.split().0.send(&frames).await.unwrap();
}

/// The next answer that is one, with its bytes.
async fn receive<S: Socket>(link: &mut Link<S>) -> (BlockReply, Bytes) {
    let receive = async {
        let (_, mut incoming) = link.split();
        loop {
            let reply: BlockReply = incoming.message().await.unwrap().unwrap();
            if !matches!(reply.status(), BlockStatus::Filling | BlockStatus::Queued) {
                let bytes = incoming.payload(reply.length as usize).await.unwrap();
                return (reply, bytes);
            }
        }
    };
    tokio::time::timeout(DEADLINE, receive).await.unwrap()
}

/// Runs a test where tasks need not move between threads.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_hello_is_answered_and_what_follows_has_checksums() {
    run(async {
        let bed = Bed::new(1).await;
        for client in [0, 1, 99] {
            let mut link = bed.tcp().await;
            if client > 0 {
                send(&mut link, &[hello_of(client)]).await;
                let (reply, _) = receive(&mut link).await;
                assert_eq!((reply.stream_version, reply.epoch), (STREAM_VERSION, EPOCH));
            }
            send(&mut link, &[bed.request(0, 70_000..150_000)]).await;
            let (reply, bytes) = receive(&mut link).await;
            assert_eq!((reply.status(), reply.epoch), (BlockStatus::Ok, EPOCH));
            assert_eq!(bytes, content(0)[70_000..150_000]);
            let checked = have_checksums(&bytes, 70_000, &reply.checksums);
            assert_eq!(checked, client > 0, "client of version {client}");
        }
        bed.end().await;
    });
}

#[test]
fn a_worker_with_another_copy_has_a_block_fetched_unless_others_were_asked_for_it() {
    run(async {
        let bed = Bed::new(2).await;
        let for_copy = |n: usize| BlockRequest {
            as_filler: true,
            ..bed.request(n, 0..LENGTH as u32)
        };
        let mut link = bed.tcp().await;
        // Another worker was asked for this one, which may wait for us.
        let (block, _) = parse(&for_copy(0)).unwrap();
        let started = fills::start(&bed.worker, block.key(), block.len(), &block.object.key);
        let started = started.ok().unwrap();
        started.fill().forward(true);
        send(&mut link, &[for_copy(0)]).await;
        assert_eq!(receive(&mut link).await.0.status(), BlockStatus::NotHeld);
        started.fill().forward(false);
        started.fill().push(Bytes::from(content(0)));
        // That it is fetched because of this is said once.
        let mut sources = Vec::new();
        for n in [0, 1, 1] {
            send(&mut link, &[for_copy(n)]).await;
            let (reply, bytes) = receive(&mut link).await;
            assert_eq!(bytes, content(n));
            sources.push(reply.source() == BlockSource::Origin);
        }
        assert_eq!(sources, [false, true, false]);
        drop(started);
        let metrics = bed.worker.metrics();
        assert_eq!(metrics.fill_bytes.get(), LENGTH as u64);
        assert_eq!(metrics.handed_over_bytes.get(), 3 * LENGTH as u64);
        bed.end().await;
    });
}

#[test]
fn requests_that_came_together_are_answered_in_their_order() {
    run(async {
        let bed = Bed::new(40).await;
        for round in 0..2 {
            let mut link = bed.tcp().await;
            let whole = |n: usize| bed.request(n, 0..LENGTH as u32);
            let requests: Vec<BlockRequest> = (0..40).rev().map(whole).collect();
            send(&mut link, &requests).await;
            for n in (0..40).rev() {
                let (reply, bytes) = receive(&mut link).await;
                assert_eq!(reply.status(), BlockStatus::Ok, "{}", reply.message);
                assert_eq!(bytes, content(n), "file {n} in round {round}");
            }
            bed.until_stored(40).await;
        }
        bed.end().await;
    });
}

#[test]
fn what_is_asked_for_if_it_is_held_is_never_fetched_for_that() {
    run(async {
        let bed = Bed::new(3).await;
        let held = |n: usize| BlockRequest {
            held_only: true,
            ..bed.request(n, 0..LENGTH as u32)
        };
        let fetched = || bed.worker.metrics().fill_bytes.get();
        let mut link = bed.tcp().await;
        send(&mut link, &[hello_of(STREAM_VERSION)]).await;
        assert_eq!(receive(&mut link).await.0.stream_version, STREAM_VERSION);
        // Alone, and together with others.
        for requests in [vec![held(0)], vec![held(1), held(0), held(2)]] {
            send(&mut link, &requests).await;
            for _ in &requests {
                let (reply, bytes) = receive(&mut link).await;
                assert_eq!((reply.status(), bytes.len()), (BlockStatus::NotHeld, 0));
            }
        }
        // One that itself asks other workers is not waited for, and one that comes from the origin is.
        let (block, _) = parse(&held(2)).unwrap();
        let started = fills::start(&bed.worker, block.key(), block.len(), &block.object.key);
        let started = started.ok().unwrap();
        send(&mut link, &[held(2)]).await;
        assert_eq!(receive(&mut link).await.0.status(), BlockStatus::NotHeld);
        let (give, given) = tokio::sync::oneshot::channel::<()>();
        let chunks = stream::once(async move {
            given.await.unwrap();
            Ok(Bytes::from(content(2)))
        });
        let fill = started.fill().clone();
        let taking = tokio::task::spawn_local(async move { fill.take(chunks).await });
        tokio::task::yield_now().await;
        send(&mut link, &[held(2)]).await;
        let (_, mut incoming) = link.split();
        let waits: BlockReply = incoming.message().await.unwrap().unwrap();
        assert_eq!(waits.status(), BlockStatus::Filling);
        give.send(()).unwrap();
        let (reply, bytes) = receive(&mut link).await;
        assert_eq!(
            (reply.status(), &bytes[..]),
            (BlockStatus::Ok, &content(2)[..])
        );
        taking.await.unwrap().unwrap();
        drop(started);
        assert_eq!(fetched(), 0);
        // What is held is given, with checksums, and is nobody's read.
        send(&mut link, &[bed.request(0, 0..LENGTH as u32)]).await;
        assert_eq!(receive(&mut link).await.1, content(0));
        bed.until_stored(1).await;
        let (before, reads) = (fetched(), bed.worker.metrics().reads_of("set"));
        send(&mut link, &[held(0), held(1)]).await;
        let (reply, bytes) = receive(&mut link).await;
        assert_eq!(
            (reply.source(), &bytes[..]),
            (BlockSource::Ssd, &content(0)[..])
        );
        assert!(have_checksums(&bytes, 0, &reply.checksums));
        assert_eq!(receive(&mut link).await.0.status(), BlockStatus::NotHeld);
        // Nor does a descriptor leave for one.
        let mut unix = bed.unix().await;
        let located = BlockRequest {
            location_format: LOCATION_FORMAT,
            ..held(0)
        };
        send(&mut unix, &[located]).await;
        let (reply, bytes) = receive(&mut unix).await;
        assert!(reply.location.is_none() && bytes == content(0));
        assert_eq!(fetched(), before);
        assert_eq!(bed.worker.metrics().reads_of("set"), reads);
        bed.end().await;
    });
}

#[test]
fn a_request_that_makes_no_sense_is_refused_and_the_next_one_answered() {
    run(async {
        let bed = Bed::new(2).await;
        let good = bed.request(0, 0..100);
        let change = |change: fn(&mut BlockRequest)| {
            let mut request = good.clone();
            change(&mut request);
            request
        };
        let bad = [
            change(|r| r.length = 0),
            change(|r| r.offset = LENGTH as u32),
            change(|r| (r.offset, r.length) = (u32::MAX, u32::MAX)),
            change(|r| r.block_index = 1),
            change(|r| r.block_index = u32::MAX),
            change(|r| r.object_size = 0),
            change(|r| r.dataset = String::new()),
            change(|r| r.dataset = format!("default/{}", r.dataset)),
            change(|r| r.dataset = format!("../{}", r.dataset)),
            change(|r| r.ahead = true), // with a length
            change(|r| (r.ahead, r.held_only, r.length) = (true, true, 0)),
            change(|r| (r.ahead, r.as_filler, r.length) = (true, true, 0)),
        ];
        let mut link = bed.tcp().await;
        for bad in &bad {
            send(&mut link, &[bad.clone(), good.clone()]).await;
            let (reply, bytes) = receive(&mut link).await;
            assert_eq!(reply.status(), BlockStatus::BadRequest, "{bad:?}");
            assert!(bytes.is_empty() && !reply.message.is_empty());
            assert_eq!(receive(&mut link).await.1, content(0)[..100]);
        }
        let mut gone = bed.request(1, 0..100);
        gone.object_version = "another".to_owned();
        send(&mut link, &[gone, good]).await;
        let (reply, _) = receive(&mut link).await;
        assert_eq!(reply.status(), BlockStatus::Changed, "{}", reply.message);
        assert_eq!(receive(&mut link).await.1, content(0)[..100]);
        bed.end().await;
    });
}

#[test]
fn a_block_on_ssd_is_told_by_its_place_on_a_unix_socket_and_as_bytes_over_tcp() {
    run(async {
        let bed = Bed::new(1).await;
        let mut request = bed.request(0, 0..LENGTH as u32);
        let (mut tcp, mut unix) = (bed.tcp().await, bed.unix().await);
        request.location_format = LOCATION_FORMAT;
        send(&mut unix, &[request.clone()]).await;
        let (reply, bytes) = receive(&mut unix).await;
        assert!(reply.location.is_none(), "it is not on SSD yet");
        assert_eq!(bytes, content(0));
        bed.until_stored(1).await;
        send(&mut unix, &[request.clone()]).await;
        let (reply, bytes) = receive(&mut unix).await;
        let location = reply.location.unwrap();
        assert_eq!((bytes.len(), location.block_length), (0, LENGTH as u32));
        let descriptor = unix.split().1.descriptor().unwrap();
        drop(descriptor);
        let mut stored = vec![0; LENGTH];
        let file = File::open(segment(&bed.dir.path().join("ssd"))).unwrap();
        file.read_exact_at(&mut stored, location.file_offset)
            .unwrap();
        assert_eq!(stored, content(0));
        send(&mut tcp, &[request.clone()]).await;
        let (reply, bytes) = receive(&mut tcp).await;
        assert!(reply.location.is_none() && tcp.split().1.descriptor().is_none());
        assert_eq!(bytes, content(0));
        request.location_format = LOCATION_FORMAT + 1;
        send(&mut unix, &[request]).await;
        assert_eq!(
            receive(&mut unix).await.1,
            content(0),
            "a format of the future"
        );
        bed.end().await;
    });
}

fn segment(ssd: &Path) -> std::path::PathBuf {
    let mut files = std::fs::read_dir(ssd)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files
        .find(|path| path.extension().is_some_and(|e| e == "segment"))
        .unwrap()
}

#[test]
fn a_client_that_breaks_off_or_sends_garbage_disturbs_no_other() {
    run(async {
        let bed = Bed::new(1).await;
        for garbage in [
            &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
            &[5, 0, 0, 0, 1],
            &[3, 0, 0, 0, 0xff, 0xff, 0xff],
            &[0; 64],
            &[0xff; 64],
        ] {
            let mut broken = TcpStream::connect(bed.address).await.unwrap();
            broken.write_all(garbage).await.unwrap();
            broken.shutdown().await.unwrap();
            let mut rest = Vec::new();
            // It is closed, with an answer or without, and perhaps before all was read.
            let _ = tokio::time::timeout(DEADLINE, broken.read_to_end(&mut rest))
                .await
                .unwrap();
        }
        for _ in 0..20 {
            // Asks for much and never reads it.
            let mut link = bed.tcp().await;
            let all = vec![bed.request(0, 0..LENGTH as u32); 30];
            send(&mut link, &all).await;
        }
        let mut link = bed.tcp().await;
        send(&mut link, &[bed.request(0, 0..100)]).await;
        assert_eq!(receive(&mut link).await.1, content(0)[..100]);
        bed.end().await;
    });
}

#[test]
fn when_the_worker_stops_its_idle_connections_end_and_new_requests_get_no_answer() {
    run(async {
        let bed = Bed::new(1).await;
        let mut idle = bed.tcp().await;
        send(&mut idle, &[bed.request(0, 0..100)]).await;
        receive(&mut idle).await;
        bed.end().await;
        let end = idle.split().1.message::<BlockReply>().await;
        assert!(matches!(end, Ok(None) | Err(_)), "{end:?}");
    });
}

/// A map of so many workers, which do not answer.
fn map_of(workers: usize) -> watch::Receiver<Arc<ClusterMap>> {
    let worker = |number: usize| weir_core::WorkerInfo {
        data_address: "127.0.0.1:1".to_owned(),
        ..testing::info(&format!("w{number}")).unwrap()
    };
    let map = ClusterMap::new(1, Hashing::NEWEST, (0..workers).map(worker).collect());
    watch::channel(Arc::new(map)).1
}

#[test]
fn readers_of_what_many_read_are_sent_on_and_others_are_not() {
    run(async {
        let bed = Bed::new(2).await;
        bed.worker
            .copy_from_others(map_of(6), weir_trust::Dial::default());
        let whole = 0..LENGTH as u32;
        let mut link = bed.tcp().await;
        let ask = async |link: &mut Link<TcpStream>, reader, copies, range: &Range<u32>| {
            let request = BlockRequest {
                reader,
                copies,
                ..bed.request(0, range.clone())
            };
            send(link, &[request]).await;
            let (reply, bytes) = receive(link).await;
            assert_eq!(reply.status() == BlockStatus::Ok, !bytes.is_empty());
            (reply.status(), reply.copies)
        };
        for reader in 1..30 {
            let answer = ask(&mut link, reader, 0, &whole).await;
            assert_eq!(answer, (BlockStatus::Ok, 0), "nobody waits");
        }
        let busy: Vec<_> = (0..8).map(|_| bed.worker.demand().answering()).collect();
        let answer = ask(&mut link, 30, 0, &whole).await;
        assert_eq!(answer, (BlockStatus::Spread, 5));
        for (reader, copies, range) in [
            (0, 0, whole.clone()),
            (30, 5, whole.clone()),
            (30, u32::MAX, whole.clone()),
            (30, 0, 0..4096),
        ] {
            let (status, _) = ask(&mut link, reader, copies, &range).await;
            assert_eq!(status, BlockStatus::Ok, "{reader} {copies} {range:?}");
        }
        // It has no turn for whoever would stay with it.
        let all = bed.worker.turns().take("other", u64::MAX).await;
        for (copies, is_sent_on) in [(5, true), (7, true), (u32::MAX, false)] {
            let request = BlockRequest {
                reader: 30,
                copies,
                ..bed.request(0, whole.clone())
            };
            send(&mut link, &[request]).await;
            if is_sent_on {
                let (reply, _) = receive(&mut link).await;
                assert_eq!(reply.status(), BlockStatus::Spread);
                assert!(reply.owner_is_busy);
            }
        }
        drop(all);
        assert_eq!(receive(&mut link).await.0.status(), BlockStatus::Ok);
        // Nobody is nearer than who is on the same machine.
        let mut near = bed.unix().await;
        let request = BlockRequest {
            reader: 31,
            ..bed.request(0, whole.clone())
        };
        send(&mut near, &[request]).await;
        assert_eq!(receive(&mut near).await.0.status(), BlockStatus::Ok);
        drop(busy);
        bed.end().await;
    });
}

#[test]
fn who_asks_for_a_copy_gets_what_is_here_and_has_nothing_fetched() {
    run(async {
        let bed = Bed::new(2).await;
        bed.worker
            .copy_from_others(map_of(3), weir_trust::Dial::default());
        let copy = |n: usize, place, from: &[&str]| BlockRequest {
            copy_place: place,
            copy_from: from.iter().map(|id| (*id).to_owned()).collect(),
            ..bed.request(n, 0..LENGTH as u32)
        };
        let mut link = bed.tcp().await;
        send(&mut link, &[bed.request(0, 0..LENGTH as u32)]).await;
        assert_eq!(receive(&mut link).await.1, content(0));
        let fetched = bed.worker.metrics().fill_bytes.get();
        send(&mut link, &[copy(0, 1, &["w1"])]).await;
        assert_eq!(receive(&mut link).await.1, content(0));
        for request in [
            copy(1, 1, &["w1"]),
            copy(1, 3, &["w1", "w2"]),
            copy(1, 1, &[]),
            copy(1, u32::MAX, &["w1"]),
            copy(1, 1, &["no worker"]),
        ] {
            send(&mut link, std::slice::from_ref(&request)).await;
            let (reply, _) = receive(&mut link).await;
            assert_eq!(reply.status(), BlockStatus::NotHeld, "{request:?}");
        }
        let senseless = BlockRequest {
            ahead: true,
            length: 0,
            ..copy(1, 1, &["w1"])
        };
        send(&mut link, &[senseless]).await;
        let (reply, _) = receive(&mut link).await;
        assert_eq!(reply.status(), BlockStatus::BadRequest);
        assert_eq!(bed.worker.metrics().fill_bytes.get(), fetched);
        bed.end().await;
    });
}

#[test]
fn requests_wait_for_their_turn_and_are_told_so() {
    run(async {
        let bed = Bed::new(1).await;
        let whole = bed.request(0, 0..LENGTH as u32);
        let mut link = bed.tcp().await;
        send(&mut link, &[hello_of(STREAM_VERSION), whole.clone()]).await;
        receive(&mut link).await;
        receive(&mut link).await;
        bed.until_stored(1).await;
        let all = bed.worker.turns().take("other", u64::MAX).await;
        send(&mut link, std::slice::from_ref(&whole)).await;
        {
            let (_, mut incoming) = link.split();
            let told: BlockReply = incoming.message().await.unwrap().unwrap();
            assert_eq!(told.status(), BlockStatus::Queued);
        }
        drop(all);
        assert_eq!(receive(&mut link).await.1, content(0));
        bed.end().await;
    });
}

#[test]
fn what_has_no_bytes_takes_no_turn() {
    run(async {
        let bed = Bed::new(1).await;
        let whole = bed.request(0, 0..LENGTH as u32);
        let mut link = bed.tcp().await;
        send(&mut link, std::slice::from_ref(&whole)).await;
        assert_eq!(receive(&mut link).await.1, content(0));
        bed.until_stored(1).await;
        let of_set = weir_proto::v1::DatasetSources {
            dataset: "set".to_owned(),
            sources: vec![weir_proto::v1::Source {
                origin: bed.origin,
                prefix: String::new(),
            }],
            ..Default::default()
        };
        let sources = DatasetSources::of_reply(vec![of_set]);
        bed.worker.origins().bind(Some(sources));
        let _all = bed.worker.turns().take("other", u64::MAX).await;
        let held_only = |dataset: &str, version: &str| BlockRequest {
            held_only: true,
            dataset: dataset.to_owned(),
            object_version: version.to_owned(),
            ..whole.clone()
        };
        let senseless = BlockRequest {
            length: u32::MAX,
            ..whole.clone()
        };
        for (request, expected) in [
            (senseless, BlockStatus::BadRequest),
            (
                held_only("gone", &bed.versions[0]),
                BlockStatus::UnknownOrigin,
            ),
            (held_only("set", "another"), BlockStatus::NotHeld),
        ] {
            send(&mut link, &[request]).await;
            assert_eq!(receive(&mut link).await.0.status(), expected);
        }
        bed.end().await;
    });
}

#[test]
fn each_answer_says_which_placement_of_the_dataset_the_worker_knows() {
    run(async {
        let bed = Bed::new(1).await;
        let placed = weir_proto::v1::DatasetSources {
            dataset: "set".to_owned(),
            placement: Some(weir_proto::v1::Placement {
                version: 7,
                ..Default::default()
            }),
            ..Default::default()
        };
        let whole = 0..LENGTH as u32;
        let mut link = bed.tcp().await;
        let request = bed.request(0, whole.clone());
        send(&mut link, std::slice::from_ref(&request)).await;
        assert_eq!(receive(&mut link).await.0.placement_version, 0);
        bed.worker.placements().set(&[placed]);
        let missing = BlockRequest {
            key: "none".to_owned(),
            ..request.clone()
        };
        let senseless = BlockRequest {
            length: u32::MAX,
            ..request.clone()
        };
        let not_held = BlockRequest {
            held_only: true,
            ..missing.clone()
        };
        send(&mut link, &[hello_of(STREAM_VERSION)]).await;
        receive(&mut link).await;
        for request in [request.clone(), missing, senseless, not_held] {
            send(&mut link, &[request]).await;
            let (reply, _) = receive(&mut link).await;
            assert_eq!((reply.placement_version, reply.epoch), (7, EPOCH));
        }
        let other = BlockRequest {
            dataset: "other".to_owned(),
            ..request
        };
        send(&mut link, &[other]).await;
        assert_eq!(receive(&mut link).await.0.placement_version, 0);
        bed.end().await;
    });
}

#[test]
fn a_worker_that_heard_of_a_dataset_sooner_is_not_told_of_in_the_log() {
    run(async {
        let bed = Bed::new(1).await;
        bed.worker.origins().bind(Some(DatasetSources::default()));
        let held = BlockRequest {
            held_only: true,
            ..bed.request(0, 0..LENGTH as u32)
        };
        let mut link = bed.tcp().await;
        send(&mut link, &[held]).await;
        let (reply, _) = receive(&mut link).await;
        assert_eq!(reply.status(), BlockStatus::UnknownOrigin);
        assert!(bed.worker.origins().refusals.has_line(), "there was none");
        bed.end().await;
    });
}

#[test]
fn a_request_is_for_the_objects_of_the_dataset_that_it_names() {
    run(async {
        let bed = Bed::new(3).await;
        let sources = |dataset: &str, origin, prefix: &str| weir_proto::v1::DatasetSources {
            dataset: dataset.to_owned(),
            sources: vec![weir_proto::v1::Source {
                origin,
                prefix: prefix.to_owned(),
            }],
            placement: None,
            former: Vec::new(),
        };
        let bind = |datasets| {
            let datasets = DatasetSources::of_reply(datasets);
            bed.worker.origins().bind(Some(datasets));
        };
        let told = vec![
            sources("set", bed.origin, ""),
            sources("part", bed.origin, "1/"),
            sources("other", 7, ""),
        ];
        bind(told.clone());
        // A master that answers at once, and has nothing new until a dataset is asked for that was just made.
        let master = async {
            loop {
                bed.worker.origins().wanted().await;
                let mut told = told.clone();
                told.push(sources("new", bed.origin, ""));
                bind(told);
                bed.worker.origins().confirm();
            }
        };
        let ask = async {
            let whole = 0..LENGTH as u32;
            let of = |dataset: &str, n: usize| BlockRequest {
                dataset: dataset.to_owned(),
                ..bed.request(n, whole.clone())
            };
            // In the tier, so that what is cached is guarded as well.
            let mut link = bed.tcp().await;
            send(
                &mut link,
                &[bed.request(0, whole.clone()), bed.request(1, whole.clone())],
            )
            .await;
            for _ in 0..2 {
                assert_eq!(receive(&mut link).await.0.status(), BlockStatus::Ok);
            }
            bed.until_stored(2).await;
            let hostile = |key: &str| BlockRequest {
                key: key.to_owned(),
                ..of("set", 0)
            };
            let long = "x".repeat(50_000);
            let cases = [
                (of("set", 0), BlockStatus::Ok),
                (of("other", 0), BlockStatus::Denied),
                (of("part", 1), BlockStatus::Denied),
                (of("set", 1), BlockStatus::Ok),
                (of("gone", 1), BlockStatus::UnknownOrigin),
                (hostile("../0"), BlockStatus::Denied),
                (hostile("/etc/shadow"), BlockStatus::Denied),
                (hostile(""), BlockStatus::Denied),
                (hostile("a\0b"), BlockStatus::Denied),
                (hostile(&long), BlockStatus::Denied),
                (of("new", 2), BlockStatus::Ok),
            ];
            let requests: Vec<_> = cases.iter().map(|(request, _)| request.clone()).collect();
            let mut link = bed.tcp().await;
            send(&mut link, &requests).await;
            for (request, expected) in &cases {
                let (reply, _) = receive(&mut link).await;
                assert_eq!(reply.status(), *expected, "{request:?}: {reply:?}");
                let has_bytes = *expected == BlockStatus::Ok;
                assert_eq!(reply.length > 0, has_bytes, "{request:?}");
            }
            // Whoever may not read a dataset has nobody asked for its placement.
            let newer = |dataset: &str| BlockRequest {
                placement_version: u64::MAX,
                held_only: true,
                ..of(dataset, 0)
            };
            let is_asked = || bed.worker.placements().wanted().now_or_never().is_some();
            send(&mut link, &[hello_of(STREAM_VERSION)]).await;
            receive(&mut link).await;
            for (dataset, expected) in [
                ("other", BlockStatus::Denied),
                ("gone", BlockStatus::UnknownOrigin),
                ("set", BlockStatus::Ok),
            ] {
                assert!(!is_asked(), "{dataset}");
                send(&mut link, &[newer(dataset)]).await;
                let (reply, _) = receive(&mut link).await;
                assert_eq!(reply.status(), expected, "{dataset}");
            }
            assert!(is_asked());
            // Nor as a descriptor of the file where it is.
            let mut link = bed.unix().await;
            let located = BlockRequest {
                location_format: LOCATION_FORMAT,
                ..of("other", 0)
            };
            send(&mut link, &[located]).await;
            let (reply, _) = receive(&mut link).await;
            assert_eq!(reply.status(), BlockStatus::Denied);
            assert!(reply.location.is_none());
        };
        tokio::select! {
            () = master => {}
            () = ask => {}
        }
        let refused = ResultLabel { result: "refused" };
        let counted = bed
            .worker
            .metrics()
            .stream_requests
            .get_or_create(&refused)
            .get();
        assert_eq!(counted, 11);
        bed.end().await;
    });
}
