//! A real master with many workers that are made up here: what their heartbeats carry, what a dataset takes of the master's
//! memory, and what it costs to ask where one is cached.
//!
//! Datasets are sparse files with a million blocks each, of which each worker says it holds its share.

use std::fs::File;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use roaring::RoaringBitmap;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use weir_core::BLOCK_SIZE;
use weir_demo::mount::{run, weir};
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;
use weir_trust::{Dial, Role};

use super::{host, id, weight};
use crate::process::{Process, free_port};
use crate::stats::median;
use crate::usage::{Meter, memory};

/// Connections to the master, which the workers share.
const CONNECTIONS: usize = 8;
/// Reports of what workers hold that are under way at once, and heartbeats: of workers that come together, the master stores those
/// that wait in one go.
const AT_ONCE: usize = 32;
const BEATS_AT_ONCE: usize = 1000;
/// Time from one heartbeat of a worker to its next: the master waits 10 s.
const ROUND: Duration = Duration::from_secs(4);
const DEADLINE: Duration = Duration::from_mins(2);
/// Largest message of a map of 10,000 workers.
const MAX_MESSAGE: usize = 64 << 20;
/// Repeated questions for one dataset.
const QUESTIONS: u64 = 2000;
/// Datasets that workers have read from, as their heartbeats tell.
const READ: usize = 500;

/// How much is made up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) workers: usize,
    pub(super) datasets: usize,
    /// Blocks of each dataset.
    pub(super) blocks: u64,
}

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Bytes of a worker's first heartbeat, and of the answer, with the map and all datasets.
    pub(super) first_sent: u64,
    pub(super) first_answer: u64,
    /// The same when nothing has changed.
    pub(super) quiet_sent: u64,
    pub(super) quiet_answer: u64,
    /// A heartbeat of a worker that was started again and has read of [`READ`] datasets, and its next, when one of them was read
    /// since.
    pub(super) all_reads_sent: u64,
    pub(super) one_read_sent: u64,
    /// An answer after a worker came, for which the map is sent.
    pub(super) joined_answer: u64,
    /// CPU time of the master for a heartbeat, in µs.
    pub(super) heartbeat: f64,
    /// Resident bytes of the master for each dataset that all workers have told of, and for each of its blocks.
    pub(super) per_dataset: f64,
    pub(super) per_block: f64,
    /// Time of the first question where a dataset is cached, in ms, and of those that follow within a second, in µs.
    pub(super) first_question: f64,
    pub(super) question: f64,
    /// CPU time of the master for one of those, in µs.
    pub(super) question_cpu: f64,
    /// Bytes of the answer.
    pub(super) located: u64,
}

/// Measures a master that has everything below `home`.
pub(super) fn measure(home: &Path, size: Size) -> anyhow::Result<Found> {
    let data = home.join("data");
    std::fs::create_dir_all(&data)?;
    let (listen, http) = (free_port()?, free_port()?);
    let address = format!("127.0.0.1:{listen}");
    let mut command = weir(home)?;
    command
        .args(["master", "--listen", &address, "--allow-file"])
        .arg(&data)
        .args(["--http", &format!("127.0.0.1:{http}"), "--dir"])
        .arg(home.join("master"));
    let answers = || TcpStream::connect(("127.0.0.1", http)).is_ok();
    let master = Process::start(command, &home.join("master.log"), answers)?;
    for number in 0..size.datasets {
        let dir = data.join(number.to_string());
        std::fs::create_dir(&dir)?;
        File::create(dir.join("model"))?.set_len(size.blocks * BLOCK_SIZE)?;
        let url = format!("file://{}", dir.display());
        let name = dataset(number);
        run(
            home,
            &["dataset", "create", &name, &url, "--master", &address],
        )?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let found = runtime.block_on(ask(&address, master.pid(), size));
    runtime.shutdown_timeout(Duration::from_secs(1));
    found.with_context(|| format!("{} workers; see {}", size.workers, home.display()))
}

fn dataset(number: usize) -> String {
    format!("set-{number}")
}

/// The workers, and what they know of the master.
struct Fleet {
    masters: Vec<MasterClient<Channel>>,
    workers: usize,
    /// Of the answer that came last; all workers are told the same.
    version: AtomicU64,
    map: AtomicU64,
}

impl Fleet {
    fn connect(address: &str, workers: usize) -> anyhow::Result<Self> {
        let dial = Dial::new(None);
        let masters = (0..CONNECTIONS).map(|_| {
            let channel = dial.channel(address, Role::Master, DEADLINE)?;
            Ok(MasterClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
        });
        Ok(Self {
            masters: masters.collect::<anyhow::Result<_>>()?,
            workers,
            version: AtomicU64::new(0),
            map: AtomicU64::new(0),
        })
    }

    fn master(&self, number: usize) -> MasterClient<Channel> {
        self.masters[number % CONNECTIONS].clone()
    }

    /// The heartbeat of a worker that knows what the others do.
    fn beat_of(&self, number: usize) -> v1::HeartbeatRequest {
        let host = host(number);
        v1::HeartbeatRequest {
            worker: Some(v1::WorkerInfo {
                node: format!("node-{number}"),
                data_address: format!("{host}:7002"),
                control_address: format!("{host}:7001"),
                local_socket: "/run/weir/worker.sock".to_owned(),
                weight: weight(number),
                zone: format!("zone-{}", number % 3),
                group: format!("rack-{}", number % 60),
                id: id(number),
                ..v1::WorkerInfo::default()
            }),
            tiers: vec![v1::TierUsage {
                tier: "ssd".to_owned(),
                path: "/var/lib/weir/ssd".to_owned(),
                capacity_bytes: weight(number),
                used_bytes: weight(number) / 2,
                blocks: weight(number) / 2 / BLOCK_SIZE,
                ..v1::TierUsage::default()
            }],
            callers: "certificates".to_owned(),
            known_version: self.version.load(Ordering::Relaxed),
            known_map: self.map.load(Ordering::Relaxed),
            ..v1::HeartbeatRequest::default()
        }
    }

    async fn beat(
        &self,
        number: usize,
        beat: v1::HeartbeatRequest,
    ) -> anyhow::Result<v1::HeartbeatReply> {
        let reply = self.master(number).heartbeat(beat).await?.into_inner();
        self.version.store(reply.version, Ordering::Relaxed);
        self.map.store(reply.map_version, Ordering::Relaxed);
        Ok(reply)
    }

    /// One heartbeat of each worker.
    async fn beat_all(&self) -> anyhow::Result<()> {
        let beats = stream::iter(0..self.workers).map(|number| self.beat_once(number));
        beats.buffer_unordered(BEATS_AT_ONCE).try_collect().await
    }

    async fn beat_once(&self, number: usize) -> anyhow::Result<()> {
        self.beat(number, self.beat_of(number)).await?;
        Ok(())
    }

    /// Heartbeats of all workers until it is dropped.
    async fn keep_alive(self: Arc<Self>) -> anyhow::Result<()> {
        loop {
            let began = Instant::now();
            self.beat_all().await?;
            tokio::time::sleep_until((began + ROUND).into()).await;
        }
    }

    /// Each worker tells what it holds of a dataset: its share by a hash of each block's number.
    async fn report(&self, number: usize, blocks: u64) -> anyhow::Result<()> {
        let mut held = vec![RoaringBitmap::new(); self.workers];
        for block in 0..blocks as u32 {
            let mixed = u64::from(block).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            held[mixed as usize % self.workers].insert(block);
        }
        let reports = stream::iter(held.into_iter().enumerate());
        let reports = reports.map(|(worker, held)| self.report_of(number, worker, held));
        reports.buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn report_of(
        &self,
        number: usize,
        worker: usize,
        held: RoaringBitmap,
    ) -> anyhow::Result<()> {
        let mut blocks = Vec::new();
        held.serialize_into(&mut blocks)?;
        let report = v1::ReportInventoryRequest {
            worker: id(worker),
            inventory: Some(v1::Inventory {
                dataset: dataset(number),
                version: 1,
                blocks,
                bytes: held.len() * BLOCK_SIZE,
            }),
        };
        self.master(worker).report_inventory(report).await?;
        Ok(())
    }

    async fn locate(&self, number: usize) -> anyhow::Result<v1::LocateDatasetReply> {
        let name = dataset(number);
        let mut master = self.master(number);
        let asked = master.locate_dataset(v1::LocateDatasetRequest {
            name,
            path: String::new(),
        });
        Ok(asked.await?.into_inner())
    }
}

async fn ask(address: &str, master: u32, size: Size) -> anyhow::Result<Found> {
    let mut found = Found::default();
    let fleet = Arc::new(Fleet::connect(address, size.workers)?);
    // All come, and then know all of each other.
    fleet.beat_all().await?;
    fleet.beat_all().await?;
    fleet.version.store(0, Ordering::Relaxed);
    fleet.map.store(0, Ordering::Relaxed);
    let first = fleet.beat_of(0);
    found.first_sent = first.encoded_len() as u64;
    let reply = fleet.beat(0, first).await?;
    let known = reply.map.as_ref().map_or(0, |map| map.workers.len());
    ensure!(
        known == size.workers,
        "{known} of {} workers are in the map",
        size.workers
    );
    found.first_answer = reply.encoded_len() as u64;
    let mut alive = JoinSet::new();
    alive.spawn(fleet.clone().keep_alive());

    let empty = memory(master).1;
    for number in 0..size.datasets {
        fleet.report(number, size.blocks).await?;
    }
    let held = memory(master).1.saturating_sub(empty) as f64;
    found.per_dataset = held / size.datasets as f64;
    found.per_block = found.per_dataset / size.blocks as f64;

    let mut first = Vec::new();
    for number in 0..size.datasets {
        let since = Instant::now();
        let located = fleet.locate(number).await?;
        first.push(since.elapsed().as_secs_f64() * 1e3);
        let nodes = located.nodes.len();
        ensure!(
            nodes == size.workers,
            "{nodes} of {} nodes hold it",
            size.workers
        );
        ensure!(located.cached_bytes == located.bytes, "not all is cached");
        found.located = located.encoded_len() as u64;
    }
    found.first_question = median(&first);
    alive.shutdown().await;
    // Nothing else keeps the master busy from here on.
    fleet.beat_all().await?;
    let (pids, since) = ([master], Instant::now());
    let meter = Meter::start(&pids);
    for _ in 0..QUESTIONS {
        fleet.locate(0).await?;
    }
    found.question_cpu = meter.stop().cpu_seconds * 1e6 / QUESTIONS as f64;
    found.question = since.elapsed().as_secs_f64() * 1e6 / QUESTIONS as f64;

    let quiet = fleet.beat_of(1);
    found.quiet_sent = quiet.encoded_len() as u64;
    let reply = fleet.beat(1, quiet).await?;
    ensure!(
        reply.map.is_none(),
        "the map is sent though nothing has changed"
    );
    found.quiet_answer = reply.encoded_len() as u64;
    let read = |number| v1::DatasetReads {
        dataset: format!("team-{number}/imagenet"),
        ssd_bytes: 1 << 40,
        hits: 1 << 20,
        ..v1::DatasetReads::default()
    };
    let with_reads = |datasets| v1::HeartbeatRequest {
        reads: (0..datasets).map(read).collect(),
        known_reads: reply.reads_version,
        ..fleet.beat_of(1)
    };
    found.all_reads_sent = with_reads(READ).encoded_len() as u64;
    found.one_read_sent = with_reads(1).encoded_len() as u64;
    fleet.beat_all().await?;
    let meter = Meter::start(&pids);
    fleet.beat_all().await?;
    found.heartbeat = meter.stop().cpu_seconds * 1e6 / size.workers as f64;
    let joins = fleet.beat_of(size.workers);
    let reply = fleet.beat(size.workers, joins).await?;
    ensure!(
        reply.map.is_some(),
        "a worker came, and the map is not sent"
    );
    found.joined_answer = reply.encoded_len() as u64;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_know_all_are_told_nothing_again() {
        let dir = tempfile::tempdir().unwrap();
        let size = Size {
            workers: 20,
            datasets: 3,
            blocks: 20_000,
        };
        let found = measure(dir.path(), size).unwrap();
        assert!(found.quiet_answer < 100, "{found:?}");
        assert!(found.first_answer > 20 * 100, "{found:?}");
        assert!(found.joined_answer > found.first_answer / 2, "{found:?}");
        assert!(found.quiet_sent < 400, "{found:?}");
        assert!(found.one_read_sent < found.all_reads_sent / 10, "{found:?}");
        assert!(found.located > 0 && found.question > 0.0, "{found:?}");
    }
}
