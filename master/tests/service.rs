//! The master as its callers meet it: over the wire, with a store that can be full or slow, and with workers that hang or
//! are gone.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use weir_master::store::{Change, MetaStore, StoreError};
use weir_master::{Master, MasterConfig, MasterMetrics};
use weir_origin::{OriginMetrics, SourcePolicy};
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;
use weir_proto::v1::worker_server::{Worker, WorkerServer};
use weir_trust::Access;

/// An empty bitmap: no containers. And one with block 0: one container of one number.
const EMPTY: [u8; 8] = [0x3a, 0x30, 0, 0, 0, 0, 0, 0];
const FIRST: [u8; 18] = [0x3a, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0];
/// Longest wait for what should come soon.
const SOON: Duration = Duration::from_secs(30);

/// A store in memory that can be full, or keep writers waiting.
#[derive(Debug, Default)]
struct Store {
    records: Mutex<BTreeMap<String, Vec<u8>>>,
    full: AtomicBool,
    held: Mutex<Held>,
    released: Condvar,
}

/// Which writes wait.
#[derive(Debug, Default)]
struct Held {
    all: bool,
    /// Those that put this record.
    puts_of: Option<String>,
    /// How many of these wait.
    waiting: usize,
}

impl Held {
    fn holds(&self, changes: &[Change]) -> bool {
        let puts = |change: &Change| match change {
            Change::Put(key, _) => self.puts_of.as_ref() == Some(key),
            Change::Delete(_) => false,
        };
        self.all || changes.iter().any(puts)
    }
}

impl Store {
    fn hold(&self, hold: bool) {
        self.held.lock().all = hold;
        self.released.notify_all();
    }

    /// Has those wait that put a record, or nobody any more.
    fn hold_puts_of(&self, key: Option<&str>) {
        self.held.lock().puts_of = key.map(str::to_owned);
        self.released.notify_all();
    }

    fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }
}

impl MetaStore for Store {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.records.lock().get(key).cloned())
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let records = self.records.lock();
        let matching = records.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(matching.map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    fn write(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut held = self.held.lock();
        while held.holds(changes) {
            held.waiting += 1;
            self.released.wait(&mut held);
            held.waiting -= 1;
        }
        if self.full.load(Ordering::SeqCst) {
            return Err(StoreError::Engine("no space left on device".to_owned()));
        }
        let mut records = self.records.lock();
        for change in changes.iter().cloned() {
            match change {
                Change::Put(key, value) => records.insert(key, value),
                Change::Delete(key) => records.remove(&key),
            };
        }
        Ok(())
    }
}

/// A master that is served.
struct Served {
    client: MasterClient<Channel>,
    store: Arc<Store>,
    dir: tempfile::TempDir,
    _stop: DropGuard,
}

impl Served {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        for name in ["a", "b"] {
            std::fs::write(dir.path().join("data").join(name), name).unwrap();
        }
        Self::start_with(Arc::default(), dir).await
    }

    /// Starts another one on what this one has stored.
    async fn restart(self) -> Self {
        Self::start_with(self.store, self.dir).await
    }

    async fn start_with(store: Arc<Store>, dir: tempfile::TempDir) -> Self {
        let mut registry = Registry::default();
        let config = MasterConfig {
            dir: dir.path().to_owned(),
            sources: SourcePolicy::unlimited(),
            ..MasterConfig::default()
        };
        let metrics = MasterMetrics::register(&mut registry);
        let origin = OriginMetrics::register(&mut registry);
        let master = Master::with_store(config, store.clone(), metrics, origin).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let limits = weir_trust::Limits::default();
        let incoming = weir_trust::incoming(listener, Access::SameUser, limits, stop.clone());
        tokio::spawn(weir_master::serve(master, incoming, stop.clone()));
        let channel = Endpoint::from_shared(format!("http://{address}"));
        Self {
            client: MasterClient::new(channel.unwrap().connect_lazy()),
            store,
            dir,
            _stop: stop.drop_guard(),
        }
    }

    async fn create(&self, name: &str) -> Result<v1::Dataset, Status> {
        let origin = v1::OriginSpec {
            url: format!("file://{}/data", self.dir.path().display()),
            ..Default::default()
        };
        let request = v1::CreateDatasetRequest {
            spec: String::new(),
            name: name.to_owned(),
            mounts: vec![v1::MountSpec {
                origin: Some(origin),
                path: String::new(),
            }],
        };
        let made = self.client.clone().create_dataset(request).await?;
        Ok(made.into_inner())
    }

    /// Makes a dataset with this `placement`, as JSON.
    async fn create_placed(&self, name: &str, placement: &str) -> v1::Dataset {
        let url = format!("file://{}/data", self.dir.path().display());
        let request = v1::CreateDatasetRequest {
            spec: format!(r#"{{"sources":[{{"url":"{url}"}}],"placement":{placement}}}"#),
            name: name.to_owned(),
            mounts: Vec::new(),
        };
        let made = self.client.clone().create_dataset(request).await;
        made.unwrap().into_inner()
    }

    async fn datasets(&self) -> Vec<String> {
        let list = v1::ListDatasetsRequest::default();
        let list = self.client.clone().list_datasets(list).await.unwrap();
        let datasets = list.into_inner().datasets;
        datasets.into_iter().map(|dataset| dataset.name).collect()
    }

    async fn beat(&self, worker: &str, control: &str) -> Result<v1::HeartbeatReply, Status> {
        self.beat_as(v1::WorkerInfo {
            id: worker.to_owned(),
            node: worker.to_owned(),
            control_address: control.to_owned(),
            ..Default::default()
        })
        .await
    }

    /// The heartbeat of a worker of a zone, which has a TiB.
    async fn beat_in(&self, zone: &str, worker: &str, control: &str) {
        let beat = self.beat_as(v1::WorkerInfo {
            id: worker.to_owned(),
            node: worker.to_owned(),
            zone: zone.to_owned(),
            control_address: control.to_owned(),
            weight: 1 << 40,
            ..Default::default()
        });
        beat.await.unwrap();
    }

    async fn beat_as(&self, worker: v1::WorkerInfo) -> Result<v1::HeartbeatReply, Status> {
        let beat = v1::HeartbeatRequest {
            worker: Some(worker),
            ..Default::default()
        };
        Ok(self.client.clone().heartbeat(beat).await?.into_inner())
    }

    /// Epoch and workers of the map.
    async fn map(&self) -> (u64, Vec<String>) {
        let map = v1::GetClusterMapRequest::default();
        let map = self.client.clone().get_cluster_map(map).await.unwrap();
        let map = map.into_inner().map.unwrap();
        (map.epoch, map.workers.into_iter().map(|w| w.id).collect())
    }

    async fn start_job(&self, kind: v1::JobKind, dataset: &str) -> Result<v1::Job, Status> {
        let request = v1::StartJobRequest {
            kind: kind.into(),
            dataset: dataset.to_owned(),
            paths: Vec::new(),
            ..Default::default()
        };
        Ok(self.client.clone().start_job(request).await?.into_inner())
    }

    async fn job(&self, id: u64) -> Result<v1::Job, Status> {
        let request = v1::GetJobRequest { id };
        Ok(self.client.clone().get_job(request).await?.into_inner())
    }

    /// Tells the first snapshot's blocks of a worker, as a bitmap.
    async fn report(&self, dataset: &str, worker: &str, blocks: &[u8]) {
        let report = v1::ReportInventoryRequest {
            worker: worker.to_owned(),
            inventory: Some(v1::Inventory {
                dataset: dataset.to_owned(),
                version: 1,
                blocks: blocks.to_vec(),
                bytes: 1,
            }),
        };
        self.client.clone().report_inventory(report).await.unwrap();
    }

    /// Drains a worker of which there is one in the map; the job once it has ended.
    async fn drain(&self, worker: &str) -> v1::Job {
        let drain = v1::DrainWorkerRequest {
            worker: worker.to_owned(),
            bytes_per_second: 1 << 30,
        };
        let job = self.client.clone().drain_worker(drain).await.unwrap();
        self.ended(job.into_inner().id).await
    }

    /// The job once it has ended.
    async fn ended(&self, id: u64) -> v1::Job {
        let deadline = Instant::now() + SOON;
        loop {
            let job = self.job(id).await.unwrap();
            if job.state() != v1::JobState::Running {
                return job;
            }
            assert!(Instant::now() < deadline, "it is still running: {job:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Waits until something is so.
async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A worker that warms at once, and evicts at once or never. Its control address.
#[derive(Default)]
struct Fake {
    hangs: bool,
    /// What it was asked to take over.
    taken: Arc<Mutex<Vec<v1::TakeOverRequest>>>,
}

impl Fake {
    /// One that never ends an eviction.
    fn hanging() -> Self {
        Self {
            hangs: true,
            ..Self::default()
        }
    }

    /// One that tells what it was asked to take over.
    async fn recording() -> (String, Arc<Mutex<Vec<v1::TakeOverRequest>>>) {
        let fake = Self::default();
        let taken = fake.taken.clone();
        (fake.start().await, taken)
    }

    async fn start(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tonic::transport::Server::builder().add_service(WorkerServer::new(self));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }
}

#[tonic::async_trait]
impl Worker for Fake {
    type WarmStream = ReceiverStream<Result<v1::WarmProgress, Status>>;

    async fn warm(
        &self,
        _: Request<v1::WarmRequest>,
    ) -> Result<Response<Self::WarmStream>, Status> {
        let (_, reports) = tokio::sync::mpsc::channel(1);
        Ok(Response::new(ReceiverStream::new(reports)))
    }

    type TakeOverStream = ReceiverStream<Result<v1::TakeOverProgress, Status>>;

    /// Has everything already.
    async fn take_over(
        &self,
        request: Request<v1::TakeOverRequest>,
    ) -> Result<Response<Self::TakeOverStream>, Status> {
        self.taken.lock().push(request.into_inner());
        let (_, reports) = tokio::sync::mpsc::channel(1);
        Ok(Response::new(ReceiverStream::new(reports)))
    }

    async fn evict(
        &self,
        _: Request<v1::EvictRequest>,
    ) -> Result<Response<v1::EvictReply>, Status> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(v1::EvictReply { evicted_bytes: 7 }))
    }

    async fn report_checksums(
        &self,
        _: Request<v1::ReportChecksumsRequest>,
    ) -> Result<Response<v1::ReportChecksumsReply>, Status> {
        Ok(Response::new(v1::ReportChecksumsReply::default()))
    }

    async fn drop_blocks(
        &self,
        _: Request<v1::DropBlocksRequest>,
    ) -> Result<Response<v1::DropBlocksReply>, Status> {
        Ok(Response::new(v1::DropBlocksReply::default()))
    }

    async fn open_stream(
        &self,
        _: Request<v1::OpenStreamRequest>,
    ) -> Result<Response<v1::OpenStreamReply>, Status> {
        Ok(Response::new(v1::OpenStreamReply::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_is_durable_before_anybody_is_told() {
    let master = Served::start().await;
    master.beat("a", "x:1").await.unwrap();
    assert_eq!(master.map().await, (1, vec!["a".to_owned()]));
    master.store.hold(true);
    let client = master.client.clone();
    let new = async {
        let mut beat = Request::new(v1::HeartbeatRequest {
            worker: Some(v1::WorkerInfo {
                id: "b".to_owned(),
                node: "b".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        });
        beat.set_timeout(Duration::from_millis(300));
        client.clone().heartbeat(beat).await
    };
    // The new worker gives up before the store has its map, and nobody was told of it meanwhile.
    assert!(new.await.is_err());
    assert_eq!(master.map().await.0, 1);
    // Heartbeats of those that are known count all the same.
    let reply = master.beat("a", "x:1").await.unwrap();
    assert_eq!(reply.map.unwrap().epoch, 1);
    master.store.hold(false);
    let deadline = Instant::now() + SOON;
    while master.map().await != (2, vec!["a".to_owned(), "b".to_owned()]) {
        assert!(Instant::now() < deadline, "{:?}", master.map().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_may_change_its_zone_and_not_give_it_any_name() {
    let master = Served::start().await;
    let beat = async |zone: &str, group: &str| {
        let beat = v1::HeartbeatRequest {
            worker: Some(v1::WorkerInfo {
                id: "a".to_owned(),
                node: "a".to_owned(),
                zone: zone.to_owned(),
                group: group.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut client = master.client.clone();
        let map = client.heartbeat(beat).await?.into_inner().map.unwrap();
        let worker = &map.workers[0];
        Ok::<_, Status>((map.epoch, worker.zone.clone(), worker.group.clone()))
    };
    let seen = |epoch, zone: &str, group: &str| (epoch, zone.to_owned(), group.to_owned());
    assert_eq!(beat("", "").await.unwrap(), seen(1, "", ""));
    assert_eq!(beat("b", "r1").await.unwrap(), seen(2, "b", "r1"));
    assert_eq!(beat("b", "r1").await.unwrap(), seen(2, "b", "r1"));
    assert_eq!(beat("c", "").await.unwrap(), seen(3, "c", ""));
    let long = "z".repeat(129);
    for (zone, group) in [
        ("a/b", ""),
        ("", "../x"),
        (&long, ""),
        ("a", "\u{1b}[2J"),
        ("-", ""),
    ] {
        let refused = beat(zone, group).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    assert_eq!(master.map().await.0, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_is_a_clear_error_and_nothing_is_lost() {
    let master = Served::start().await;
    master.create("before").await.unwrap();
    master.beat("a", "x:1").await.unwrap();
    master.store.set_full(true);
    let refused = master.create("during").await.unwrap_err();
    assert!(refused.message().contains("free space"), "{refused:?}");
    assert_eq!(master.datasets().await, ["before"]);
    let refused = master.start_job(v1::JobKind::Evict, "before").await;
    assert!(refused.unwrap_err().message().contains("free space"));
    // The job that could not be stored has ended.
    assert_eq!(master.job(1).await.unwrap().state(), v1::JobState::Failed);
    // Workers live on; a new one waits for its place in the map.
    for worker in ["a", "b"] {
        let reply = master.beat(worker, "x:1").await.unwrap();
        assert_eq!(reply.map.unwrap().epoch, 1);
    }
    let gone = v1::DeleteDatasetRequest {
        name: "before".to_owned(),
    };
    assert!(master.client.clone().delete_dataset(gone).await.is_err());
    assert_eq!(master.datasets().await, ["before"]);

    master.store.set_full(false);
    let deadline = Instant::now() + SOON;
    while master.map().await.1.len() < 2 {
        assert!(Instant::now() < deadline, "{:?}", master.map().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    master.create("during").await.unwrap();
    assert_eq!(master.datasets().await, ["before", "during"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_given_up_leave_no_job_behind() {
    let master = Served::start().await;
    master.create("set").await.unwrap();
    let control = Fake::default().start().await;
    master.beat("a", &control).await.unwrap();
    for round in 0..60 {
        master.store.hold(round % 3 == 0);
        let call = master.start_job(v1::JobKind::Warm, "set");
        // Dropped at one await or another.
        let given_up = Duration::from_micros(100 * round);
        let _ = tokio::time::timeout(given_up, call).await;
        if round % 7 == 0 {
            let cancel = v1::CancelJobRequest { id: round / 2 };
            let mut client = master.client.clone();
            let _ = tokio::time::timeout(given_up, client.cancel_job(cancel)).await;
        }
        master.store.hold(false);
    }
    let last = master.start_job(v1::JobKind::Warm, "set").await.unwrap();
    for id in 1..=last.id {
        let job = master.ended(id).await;
        let is_good = matches!(job.state(), v1::JobState::Done | v1::JobState::Cancelled);
        assert!(is_good, "{job:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_worker_is_gone_ends_with_an_error() {
    let master = Served::start().await;
    master.create("set").await.unwrap();
    master.beat("gone", "127.0.0.1:1").await.unwrap();
    let job = master.start_job(v1::JobKind::Evict, "set").await.unwrap();
    let job = master.ended(job.id).await;
    assert_eq!(job.state(), v1::JobState::Failed);
    assert!(job.message.contains("worker gone"), "{}", job.message);
    // It can be tried again, and the others are asked whatever becomes of that one.
    let control = Fake::default().start().await;
    master.beat("gone", &control).await.unwrap();
    let job = master.start_job(v1::JobKind::Evict, "set").await.unwrap();
    let job = master.ended(job.id).await;
    assert_eq!((job.state(), job.done_bytes), (v1::JobState::Done, 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_is_there_after_a_restart_and_jobs_go_on() {
    let master = Served::start().await;
    master.create("set").await.unwrap();
    master.beat("a", "127.0.0.1:1").await.unwrap();
    let job = master.start_job(v1::JobKind::Warm, "set").await.unwrap();
    assert_eq!(
        master.job(job.id).await.unwrap().state(),
        v1::JobState::Running
    );
    let evict = master.start_job(v1::JobKind::Evict, "set").await.unwrap();
    let evict = master.ended(evict.id).await;

    let master = master.restart().await;
    assert_eq!(master.datasets().await, ["set"]);
    assert_eq!(master.map().await, (1, vec!["a".to_owned()]));
    assert_eq!(master.job(evict.id).await.unwrap().state(), evict.state());
    let control = Fake::default().start().await;
    master.beat("a", &control).await.unwrap();
    assert_eq!(master.map().await.0, 2, "the worker has moved");
    assert_eq!(master.ended(job.id).await.state(), v1::JobState::Done);
    // Numbers go on where they were.
    let next = master.start_job(v1::JobKind::Warm, "set").await.unwrap();
    assert_eq!(next.id, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_bounds_are_refused() {
    let master = Served::start().await;
    master.create("set").await.unwrap();
    let long = "x".repeat(2 << 20);
    let request = v1::StartJobRequest {
        kind: v1::JobKind::Warm.into(),
        dataset: "set".to_owned(),
        paths: vec![long.clone()],
        ..Default::default()
    };
    let refused = master.client.clone().start_job(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let refused = master.beat("a", &long).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let request = v1::CreateDatasetRequest {
        spec: String::new(),
        name: "long".to_owned(),
        mounts: vec![v1::MountSpec {
            origin: Some(v1::OriginSpec {
                url: "file:///tmp".to_owned(),
                ..Default::default()
            }),
            path: long,
        }],
    };
    let refused = master.client.clone().create_dataset(request).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    for (kind, places, copies) in [
        (v1::JobKind::Evict, vec![], 1),
        (v1::JobKind::Evict, vec!["zone=a".to_owned()], 0),
        (v1::JobKind::Warm, vec!["zone=a".to_owned(); 100], 0),
        (v1::JobKind::Warm, vec!["a".to_owned()], 0),
        (v1::JobKind::Warm, vec![], u32::MAX),
    ] {
        let request = v1::StartJobRequest {
            kind: kind.into(),
            dataset: "set".to_owned(),
            places,
            copies,
            ..Default::default()
        };
        let refused = master.client.clone().start_job(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    let request = v1::StartJobRequest {
        kind: 77,
        dataset: "set".to_owned(),
        paths: Vec::new(),
        ..Default::default()
    };
    let refused = master.client.clone().start_job(request).await.unwrap_err();
    assert_eq!(
        refused.code(),
        Code::InvalidArgument,
        "a kind of later versions"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_is_deleted_also_while_a_worker_hangs() {
    let master = Served::start().await;
    master.create("set").await.unwrap();
    let control = Fake::hanging().start().await;
    master.beat("frozen", &control).await.unwrap();
    let job = master.start_job(v1::JobKind::Evict, "set").await.unwrap();
    let mut delete = Request::new(v1::DeleteDatasetRequest {
        name: "set".to_owned(),
    });
    // As the command waits.
    delete.set_timeout(Duration::from_secs(10));
    master.client.clone().delete_dataset(delete).await.unwrap();
    assert_eq!(master.datasets().await, [""; 0]);
    assert_eq!(master.ended(job.id).await.state(), v1::JobState::Cancelled);
    // A dataset of the same name is another one.
    let again = master.create("set").await.unwrap();
    assert_eq!(again.snapshots[0].version, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn origins_are_told_once_and_inventories_are_taken_from_members_alone() {
    let master = Served::start().await;
    master.create("set").await.unwrap();
    let first = master.beat("a", "x:1").await.unwrap();
    assert_eq!((first.origins.len(), first.snapshots.len()), (1, 1));
    assert_eq!(first.missing.len(), 1);
    let known = |version| {
        let beat = v1::HeartbeatRequest {
            worker: Some(v1::WorkerInfo {
                id: "a".to_owned(),
                node: "a".to_owned(),
                control_address: "x:1".to_owned(),
                ..Default::default()
            }),
            known_version: version,
            ..Default::default()
        };
        let mut client = master.client.clone();
        async move { client.heartbeat(beat).await.unwrap().into_inner() }
    };
    let second = known(first.version).await;
    assert_eq!((second.origins.len(), second.snapshots.len()), (0, 0));
    let report = |worker: &str, version, blocks: &[u8]| {
        let report = v1::ReportInventoryRequest {
            worker: worker.to_owned(),
            inventory: Some(v1::Inventory {
                dataset: "set".to_owned(),
                version,
                blocks: blocks.to_vec(),
                bytes: 1,
            }),
        };
        let mut client = master.client.clone();
        async move { client.report_inventory(report).await.map(|_| ()) }
    };
    let refused = |outcome: Result<(), Status>| outcome.unwrap_err().code();
    assert_eq!(refused(report("b", 1, &EMPTY).await), Code::NotFound);
    assert_eq!(refused(report("a", 9, &EMPTY).await), Code::NotFound);
    assert_eq!(
        refused(report("a", 1, &[1; 9]).await),
        Code::InvalidArgument
    );
    report("a", 1, &EMPTY).await.unwrap();
    assert_eq!(known(first.version).await.missing.len(), 0);
    master.create("more").await.unwrap();
    let third = known(first.version).await;
    assert_eq!((third.origins.len(), third.snapshots.len()), (1, 2));
    assert_eq!(third.missing.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_map_is_sent_to_those_who_do_not_have_it() {
    let master = Served::start().await;
    let beat = |worker: &str, known_map| {
        let beat = v1::HeartbeatRequest {
            worker: Some(v1::WorkerInfo {
                id: worker.to_owned(),
                node: worker.to_owned(),
                ..Default::default()
            }),
            known_map,
            ..Default::default()
        };
        let mut client = master.client.clone();
        async move { client.heartbeat(beat).await.unwrap().into_inner() }
    };
    let looked = |known_map| {
        let look = v1::GetClusterMapRequest {
            known_map,
            ..Default::default()
        };
        let mut client = master.client.clone();
        async move { client.get_cluster_map(look).await.unwrap().into_inner() }
    };
    let first = beat("a", 0).await;
    assert_ne!(first.map_version, 0);
    assert_eq!(first.map.unwrap().workers.len(), 1);
    let again = beat("a", first.map_version).await;
    assert_eq!((again.map, again.map_version), (None, first.map_version));
    assert_eq!(looked(first.map_version).await.map, None);
    // Those who do not say what they know, or know another one, get it.
    for known in [0, first.map_version + 1] {
        assert_eq!(beat("a", known).await.map.unwrap().workers.len(), 1);
        assert_eq!(looked(known).await.map.unwrap().workers.len(), 1);
    }
    let joined = beat("b", first.map_version).await;
    assert_eq!(joined.map.unwrap().workers.len(), 2);
    for reply in [
        beat("a", first.map_version).await,
        beat("b", first.map_version).await,
    ] {
        assert_eq!(reply.map_version, joined.map_version);
        assert_eq!(reply.map.unwrap().workers.len(), 2);
    }
    assert_eq!(
        looked(first.map_version).await.map_version,
        joined.map_version
    );
    // The same map is the same after a restart.
    let master = master.restart().await;
    let look = v1::GetClusterMapRequest {
        known_map: joined.map_version,
        ..Default::default()
    };
    let mut client = master.client.clone();
    let reply = client.get_cluster_map(look).await.unwrap().into_inner();
    assert_eq!((reply.map, reply.map_version), (None, joined.map_version));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_tells_the_reads_that_the_master_does_not_know() {
    let master = Served::start().await;
    for name in ["one", "two"] {
        master.create(name).await.unwrap();
    }
    let beat = |reads: &[(&str, u64)], known_reads| {
        let reads = reads.iter().map(|(dataset, hits)| v1::DatasetReads {
            dataset: (*dataset).to_owned(),
            hits: *hits,
            ..Default::default()
        });
        let beat = v1::HeartbeatRequest {
            worker: Some(v1::WorkerInfo {
                id: "a".to_owned(),
                node: "a".to_owned(),
                ..Default::default()
            }),
            reads: reads.collect(),
            known_reads,
            ..Default::default()
        };
        let mut client = master.client.clone();
        async move {
            client
                .heartbeat(beat)
                .await
                .unwrap()
                .into_inner()
                .reads_version
        }
    };
    let hits = || {
        let mut client = master.client.clone();
        async move {
            let status = client.get_status(v1::GetStatusRequest::default()).await;
            let datasets = status.unwrap().into_inner().datasets.into_iter();
            let hits = datasets.map(|dataset| (dataset.name, dataset.reads.unwrap().hits));
            let mut hits: Vec<_> = hits.collect();
            hits.sort();
            hits
        }
    };
    let of = |one, two| vec![("one".to_owned(), one), ("two".to_owned(), two)];
    let version = beat(&[("one", 1), ("two", 2)], 0).await;
    assert_eq!(hits().await, of(1, 2));
    assert_eq!(beat(&[("two", 5)], version).await, version);
    assert_eq!(hits().await, of(1, 5));
    // A worker of an earlier version, or one that was started again, tells all.
    let other = beat(&[("two", 1)], 0).await;
    assert_ne!(other, version);
    assert_eq!(hits().await, of(0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_that_is_deleted_while_it_is_placed_anew_stays_deleted() {
    let master = Served::start().await;
    let control = Fake::default().start().await;
    master.beat_in("a", "w-a", &control).await;
    let everywhere = r#"{"spread":"zone","copies":"all"}"#;
    master.create_placed("set", everywhere).await;
    master.store.hold_puts_of(Some("dataset/set"));
    master.beat_in("b", "w-b", &control).await;
    let is_placed = async || {
        master.beat_in("a", "w-a", &control).await;
        master.beat_in("b", "w-b", &control).await;
        master.store.held.lock().waiting > 0
    };
    until("it is placed anew", is_placed).await;
    let mut client = master.client.clone();
    let delete = v1::DeleteDatasetRequest {
        name: "set".to_owned(),
    };
    let mut deleted = tokio::spawn(async move { client.delete_dataset(delete).await });
    // It waits for the other record; if it does not, it is done by now.
    let done = tokio::time::timeout(Duration::from_secs(2), &mut deleted).await;
    master.store.hold_puts_of(None);
    let is_written = async || master.store.held.lock().waiting == 0;
    until("the other record is written", is_written).await;
    match done {
        Ok(done) => done,
        Err(_) => deleted.await,
    }
    .unwrap()
    .unwrap();
    assert!(!master.store.records.lock().contains_key("dataset/set"));
    let master = master.restart().await;
    assert_eq!(master.datasets().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_of_a_zones_last_worker_is_taken_over_where_the_dataset_goes_then() {
    let master = Served::start().await;
    let (control, taken) = Fake::recording().await;
    master.beat_in("a", "w-a", &control).await;
    let set = master.create_placed("set", r#"{"spread":"zone"}"#).await;
    assert_eq!(set.placement.unwrap().domains, ["a"]);
    master.beat_in("b", "w-b", &control).await;
    let job = master.drain("w-a").await;
    assert_eq!(job.state(), v1::JobState::Done, "{job:?}");
    let taken = taken.lock();
    assert_eq!(taken.len(), 1, "{taken:?}");
    assert_eq!(taken[0].placement.as_ref().unwrap().domains, ["b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_shares_its_rate_among_those_that_take_blocks_of_the_dataset() {
    let master = Served::start().await;
    let (control, taken) = Fake::recording().await;
    for (zone, worker) in [("a", "w-1"), ("a", "w-2"), ("a", "w-3"), ("b", "w-4")] {
        master.beat_in(zone, worker, &control).await;
    }
    let everywhere = r#"{"spread":"cluster"}"#;
    master.create_placed("everywhere", everywhere).await;
    let in_a = r#"{"spread":"zone","in":["a"]}"#;
    master.create_placed("in-a", in_a).await;
    let job = master.drain("w-1").await;
    assert_eq!(job.state(), v1::JobState::Done, "{job:?}");
    let mut taken: Vec<(String, u64)> = taken
        .lock()
        .iter()
        .map(|request| (request.dataset.clone(), request.bytes_per_second))
        .collect();
    taken.sort();
    let expected = [
        [("everywhere", (1 << 30) / 3); 3].as_slice(),
        &[("in-a", 1 << 29); 2],
    ];
    let expected = expected.concat().into_iter();
    let expected: Vec<_> = expected
        .map(|(name, rate)| (name.to_owned(), rate))
        .collect();
    assert_eq!(taken, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_passes_over_datasets_of_which_the_worker_told_that_it_has_nothing() {
    let master = Served::start().await;
    let (control, taken) = Fake::recording().await;
    for worker in ["w-1", "w-2"] {
        master.beat_in("a", worker, &control).await;
    }
    for name in ["empty", "held", "untold"] {
        master.create(name).await.unwrap();
    }
    master.report("empty", "w-1", &EMPTY).await;
    master.report("held", "w-1", &FIRST).await;
    let job = master.drain("w-1").await;
    assert_eq!(job.state(), v1::JobState::Done, "{job:?}");
    let taken = taken.lock();
    let datasets: Vec<_> = taken.iter().map(|taken| &*taken.dataset).collect();
    assert_eq!(datasets, ["held", "untold"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cordoned_worker_that_is_away_is_shown_as_such() {
    let master = Served::start().await;
    for worker in ["w-1", "w-2"] {
        master.beat_in("a", worker, "x:1").await;
    }
    let cordon = async |uncordon| {
        let cordon = v1::CordonWorkerRequest {
            worker: "w-1".to_owned(),
            uncordon,
        };
        let status = master.client.clone().cordon_worker(cordon).await.unwrap();
        let status = status.into_inner();
        assert_eq!(status.worker.as_ref().unwrap().id, "w-1");
        (status.state(), status.away)
    };
    let away = async || {
        let status = v1::GetStatusRequest::default();
        let status = master.client.clone().get_status(status).await.unwrap();
        let status = status.into_inner();
        let away = status.away.iter();
        let away = away.map(|one| (one.worker.clone().unwrap().id, one.state(), one.away));
        (status.workers.len(), away.collect::<Vec<_>>())
    };
    assert_eq!(cordon(false).await, (v1::WorkerState::Cordoned, false));
    assert_eq!(away().await, (2, vec![]));
    let leaving = v1::HeartbeatRequest {
        worker: Some(v1::WorkerInfo {
            id: "w-1".to_owned(),
            node: "w-1".to_owned(),
            ..Default::default()
        }),
        leaving: true,
        ..Default::default()
    };
    master.client.clone().heartbeat(leaving).await.unwrap();
    let shown = ("w-1".to_owned(), v1::WorkerState::Cordoned, true);
    assert_eq!(away().await, (1, vec![shown]));
    assert_eq!(cordon(false).await, (v1::WorkerState::Cordoned, true));
    assert_eq!(cordon(true).await, (v1::WorkerState::Unspecified, true));
    assert_eq!(away().await, (1, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_refused_leaves_the_worker_as_it_was() {
    let master = Served::start().await;
    master.create("set").await.unwrap();
    let control = Fake::hanging().start().await;
    for worker in ["w-1", "w-2"] {
        master.beat_in("a", worker, &control).await;
    }
    // As many jobs as may run.
    let mut refused = None;
    for number in 0..1000 {
        let evict = v1::StartJobRequest {
            kind: v1::JobKind::Evict.into(),
            dataset: "set".to_owned(),
            paths: vec!["a".to_owned(); number + 1],
            ..Default::default()
        };
        if let Err(status) = master.client.clone().start_job(evict).await {
            refused = Some(status.code());
            break;
        }
    }
    assert_eq!(refused, Some(Code::ResourceExhausted));
    let state = async || {
        let map = v1::GetClusterMapRequest::default();
        let map = master.client.clone().get_cluster_map(map).await.unwrap();
        let map = map.into_inner().map.unwrap();
        (map.workers[0].weight, map.workers[0].cordoned_weight)
    };
    let drain = v1::DrainWorkerRequest {
        worker: "w-1".to_owned(),
        bytes_per_second: 0,
    };
    let busy = master.client.clone().drain_worker(drain.clone()).await;
    assert_eq!(busy.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(state().await, (1 << 40, 0));
    // One that was cordoned before stays so.
    let cordon = v1::CordonWorkerRequest {
        worker: "w-1".to_owned(),
        uncordon: false,
    };
    master.client.clone().cordon_worker(cordon).await.unwrap();
    let busy = master.client.clone().drain_worker(drain).await;
    assert_eq!(busy.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(state().await, (0, 1 << 40));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_shown_without_their_paths_and_drains_in_no_namespace() {
    let master = Served::start().await;
    master.create("set").await.unwrap();
    let control = Fake::hanging().start().await;
    master.beat_in("a", "w-1", &control).await;
    // Nobody takes over, so the drain goes on.
    master.beat_in("a", "w-2", "x:1").await;
    let evict = v1::StartJobRequest {
        kind: v1::JobKind::Evict.into(),
        dataset: "set".to_owned(),
        paths: vec!["a".to_owned(); 1000],
        ..Default::default()
    };
    master.client.clone().start_job(evict).await.unwrap();
    let drain = v1::DrainWorkerRequest {
        worker: "w-1".to_owned(),
        bytes_per_second: 0,
    };
    master.client.clone().drain_worker(drain).await.unwrap();
    let shown = async |namespace: &str| {
        let status = v1::GetStatusRequest {
            namespace: namespace.to_owned(),
        };
        let status = master.client.clone().get_status(status).await.unwrap();
        let jobs = status.into_inner().jobs;
        assert!(jobs.iter().all(|job| job.paths.is_empty()));
        let kinds = jobs.iter().map(v1::Job::kind);
        kinds.collect::<Vec<_>>()
    };
    let (evict, drain) = (v1::JobKind::Evict, v1::JobKind::Drain);
    assert_eq!(shown("").await, [evict, drain]);
    assert_eq!(shown("default").await, [evict]);
    assert_eq!(shown("other").await, []);
}

/// Asks which snapshot a pod sees of the dataset `set`.
async fn seen(master: &Served, uid: &str) -> v1::ChooseSnapshotReply {
    let asked = v1::ChooseSnapshotRequest {
        dataset: "set".to_owned(),
        job: String::new(),
        pod: Some(v1::Pod {
            namespace: "team-a".to_owned(),
            name: format!("pod-{uid}"),
            uid: uid.to_owned(),
        }),
    };
    let mut client = master.client.clone();
    client.choose_snapshot(asked).await.unwrap().into_inner()
}

/// Says of which job pods are, as an operator does, until it is dropped.
fn operator(master: &Served) -> DropGuard {
    let (mut client, stop) = (master.client.clone(), CancellationToken::new());
    let told = stop.clone();
    tokio::spawn(async move {
        let mut known = Vec::new();
        while !told.is_cancelled() {
            let exchange = v1::ExchangePodsRequest {
                known,
                known_uses: Vec::new(),
            };
            let Ok(asked) = client.exchange_pods(exchange).await else {
                return; // the master has ended
            };
            let job_of = |pod: v1::Pod| v1::PodJob {
                job: pod.uid.split('/').next().unwrap().to_owned(),
                pod: Some(pod),
            };
            known = asked.into_inner().asked.into_iter().map(job_of).collect();
        }
    });
    stop.drop_guard()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_s_snapshot_that_could_not_be_stored_is_stored_when_it_is_asked_for_again() {
    let master = Served::start().await;
    master.create("set").await.unwrap();
    let choose = async |master: &Served| {
        let request = v1::ChooseSnapshotRequest {
            dataset: "set".to_owned(),
            job: "a".to_owned(),
            ..v1::ChooseSnapshotRequest::default()
        };
        let chosen = master.client.clone().choose_snapshot(request).await;
        chosen.map(|chosen| chosen.into_inner().version)
    };
    master.store.set_full(true);
    assert!(choose(&master).await.is_err());
    master.store.set_full(false);
    assert_eq!(choose(&master).await.unwrap(), 1);
    std::fs::write(master.dir.path().join("data/c"), "c").unwrap();
    let refresh = v1::RefreshDatasetRequest {
        name: "set".to_owned(),
    };
    let refreshed = master.client.clone().refresh_dataset(refresh).await;
    assert!(refreshed.unwrap().into_inner().changed);
    let master = master.restart().await;
    assert_eq!(choose(&master).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_pods_of_a_job_see_one_snapshot_also_after_a_refresh_and_a_restart() {
    let master = Served::start().await;
    master.create("set").await.unwrap();
    let alone = seen(&master, "early/0").await;
    assert!(alone.job_unknown, "no operator is there");
    let answering = operator(&master);
    until("an operator that has come by", async || {
        !seen(&master, "first/0").await.job_unknown
    })
    .await;
    std::fs::write(master.dir.path().join("data/c"), "c").unwrap();
    let refresh = v1::RefreshDatasetRequest {
        name: "set".to_owned(),
    };
    let refreshed = master.client.clone().refresh_dataset(refresh).await;
    assert!(refreshed.unwrap().into_inner().changed);
    assert_eq!(seen(&master, "first/1").await.version, 1);
    assert_eq!(seen(&master, "second/0").await.version, 2);
    drop(answering);
    let master = master.restart().await;
    let _answering = operator(&master);
    until("an operator that has come by", async || {
        !seen(&master, "first/2").await.job_unknown
    })
    .await;
    assert_eq!(seen(&master, "first/3").await.version, 1);
    let gone = v1::ReviewJobsRequest {
        gone: vec!["first".to_owned()],
        ..v1::ReviewJobsRequest::default()
    };
    let mut client = master.client.clone();
    client.review_jobs(gone).await.unwrap();
    assert_eq!(
        seen(&master, "first/4").await.version,
        2,
        "it is another one"
    );
    let missing = v1::ChooseSnapshotRequest {
        dataset: "none".to_owned(),
        ..v1::ChooseSnapshotRequest::default()
    };
    let missing = client.choose_snapshot(missing).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}
