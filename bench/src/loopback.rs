//! Weir's client without a mount: reads files of a cluster's dataset from its workers over TCP, so that the block
//! stream can be compared with sendfile.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use weir_client::map::{Doubts, Seen};
use weir_client::{
    AnySource, ClientMetrics, ClusterConfig, ClusterReader, ClusterSource, ReadAheadTarget, Reader,
};
use weir_core::Location;
use weir_core::manifest::ROOT;
use weir_origin::{FetchPolicy, OriginMetrics};
use weir_proto::v1::master_client::MasterClient;
use weir_trust::Role;

use crate::readers::Pass;
use crate::system::Cluster;

/// Bytes that are asked for at once: as a mount asks.
const REQUEST: u64 = 1 << 20;
/// Longest wait for the master's connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// Clients on nodes where no worker is, each of which has its own connections and finds its own way.
pub struct LoopbackClient {
    runtime: Runtime,
    readers: Vec<Arc<Reader>>,
    reader: Arc<Reader>,
    files: Vec<u32>,
    registry: Registry,
    // Held so that the map stays what it is where nobody follows it.
    _map: watch::Sender<Arc<weir_core::ClusterMap>>,
}

/// Readers that read on and on in the background, and compare what they get, until this is dropped.
pub struct Steady {
    counts: Arc<Mutex<Counts>>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Counts {
    since: Instant,
    bytes: u64,
    longest: Duration,
    wrong: u64,
    first_wrong: Option<String>,
}

/// What readers had in a while.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    bytes: u64,
    seconds: f64,
    /// The longest read.
    pub longest: Duration,
}

impl Taken {
    /// Bytes in a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }
}

impl Steady {
    /// What they had since this was asked last.
    pub fn take(&self) -> Taken {
        let mut counts = self.counts.lock();
        let now = Instant::now();
        let taken = Taken {
            bytes: std::mem::take(&mut counts.bytes),
            seconds: (now - counts.since).as_secs_f64(),
            longest: std::mem::take(&mut counts.longest),
        };
        counts.since = now;
        taken
    }

    /// Reads that failed, or gave other bytes than the source has.
    pub fn wrong(&self) -> u64 {
        self.counts.lock().wrong
    }

    /// What was wrong with the first of them.
    pub fn first_wrong(&self) -> Option<String> {
        self.counts.lock().first_wrong.clone()
    }
}

impl LoopbackClient {
    /// A client of a cluster's dataset, with the cluster map as it is now.
    pub fn connect(to: &Cluster, dataset: &str) -> anyhow::Result<Self> {
        Self::connect_many(to, dataset, 1)
    }

    /// So many clients, with the cluster map and the dataset's placement as they are now. More than one read from workers alone.
    pub fn connect_many(to: &Cluster, dataset: &str, clients: usize) -> anyhow::Result<Self> {
        Self::connect_all(to, dataset, clients, false)
    }

    /// So many clients, which follow the map and the placement as mounts do, and read from the origin what no worker gives.
    pub fn connect_following(to: &Cluster, dataset: &str, clients: usize) -> anyhow::Result<Self> {
        Self::connect_all(to, dataset, clients, true)
    }

    fn connect_all(
        to: &Cluster,
        dataset: &str,
        clients: usize,
        follow: bool,
    ) -> anyhow::Result<Self> {
        let dial = to.dial()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let (manifest, (map, placement)) = runtime.block_on(async {
            let channel = dial.channel(to.address(), Role::Master, CONNECT_DEADLINE)?;
            let mut client = MasterClient::new(channel);
            let manifest = weir_worker::snapshots::fetch_manifest(&mut client, dataset, 0).await?;
            let placed = weir_client::map::fetch(&mut client, dataset).await?;
            anyhow::Ok((manifest, placed))
        })?;
        let mut registry = Registry::default();
        let metrics = ClientMetrics::register(&mut registry);
        let origin_metrics = OriginMetrics::register(&mut registry);
        let (sender, seen) = watch::channel(Arc::new(map));
        let placed = watch::Sender::new(Arc::new(placement));
        let (placement, refresh_now) = (placed.subscribe(), Arc::new(Notify::new()));
        let (manifest, inside) = (Arc::new(manifest), runtime.enter());
        let mut readers = Vec::new();
        for number in 0..clients {
            let cluster = ClusterReader::new(ClusterConfig {
                node: format!("elsewhere-{number}").parse()?,
                location: Location::default(),
                map: seen.clone(),
                placement: placement.clone(),
                refresh_now: refresh_now.clone(),
                dial: dial.clone(),
                fetch: Arc::new(FetchPolicy::default()),
                origin_fallback: clients == 1 || follow,
                sources: weir_origin::SourcePolicy::unlimited(),
                metrics: metrics.clone(),
                origin_metrics: origin_metrics.clone(),
            });
            let dataset = manifest.summary().snapshot.dataset.clone();
            let source = ClusterSource::new(Arc::new(cluster), dataset);
            readers.push(Arc::new(Reader::new(
                manifest.clone(),
                AnySource::Cluster(source),
                ReadAheadTarget::Off,
                &metrics,
            )));
        }
        if follow {
            let channel = dial.channel(to.address(), Role::Master, CONNECT_DEADLINE)?;
            let followed = Seen {
                map: sender.clone(),
                dataset: dataset.to_owned(),
                placement: placed,
                node: "elsewhere".parse()?,
                at: Location::default(),
            };
            let doubts = Doubts {
                seen: 0,
                listener: broadcast::Sender::new(1),
                keep: Box::new(|_| ()),
            };
            // It ends with the runtime.
            let (metrics, stop) = (metrics.clone(), CancellationToken::new());
            let master = MasterClient::new(channel);
            runtime.spawn(weir_client::map::follow(
                master,
                followed,
                refresh_now,
                doubts,
                metrics,
                stop,
            ));
        }
        drop(inside);
        let reader = readers.first().context("no client")?.clone();
        Ok(Self {
            runtime,
            files: manifest.files_below(ROOT).collect(),
            registry,
            reader,
            readers,
            _map: sender,
        })
    }

    /// Reads all files with each client at the same time.
    pub fn read_with_all(&self) -> anyhow::Result<Pass> {
        let readers = self.readers.iter();
        self.pass(readers.map(|reader| (reader, self.files.clone())))
    }

    /// Reads all files as `streams` readers at the same time, each one file after the other.
    pub fn read(&self, streams: usize) -> anyhow::Result<Pass> {
        let parts = (0..streams).map(|number| {
            let own = self.files.iter().skip(number).step_by(streams);
            (&self.reader, own.copied().collect())
        });
        self.pass(parts)
    }

    /// Reads files by several readers at the same time, each its own one after the other.
    fn pass<'a>(
        &self,
        parts: impl Iterator<Item = (&'a Arc<Reader>, Vec<u32>)>,
    ) -> anyhow::Result<Pass> {
        let started = Instant::now();
        let mut files = 0;
        let bytes = self.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for (reader, own) in parts {
                files += own.len() as u64;
                tasks.spawn(read_files(reader.clone(), own));
            }
            sum(tasks).await
        })?;
        Ok(Pass {
            files,
            bytes,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Reads that went on to another worker or to the origin so far.
    pub fn failovers(&self) -> u64 {
        self.sum("weir_client_failovers_total") as u64
    }

    /// Bytes that the clients themselves have read from the origin so far.
    pub fn from_origin(&self) -> f64 {
        self.sum("weir_origin_read_bytes_total")
    }

    fn sum(&self, name: &str) -> f64 {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        let counted = text.lines().filter(|line| line.starts_with(name));
        let counted = counted.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        counted.sum()
    }

    /// Reads with each client in the background, each from a file of its own on. A client compares what it got with the file of the
    /// same path below `source`, and waits for so long before it reads more.
    pub fn read_steadily(&self, source: &Path, thinks: Duration) -> Steady {
        let stop = CancellationToken::new();
        let counts = Arc::new(Mutex::new(Counts {
            since: Instant::now(),
            bytes: 0,
            longest: Duration::ZERO,
            wrong: 0,
            first_wrong: None,
        }));
        for (number, reader) in self.readers.iter().enumerate() {
            let mut files = self.files.clone();
            files.rotate_left(number % self.files.len().max(1));
            let reading = read_and_think(
                reader.clone(),
                files,
                source.to_owned(),
                thinks,
                counts.clone(),
            );
            self.runtime
                .spawn(stop.clone().run_until_cancelled_owned(reading));
        }
        Steady {
            counts,
            _stop: stop.drop_guard(),
        }
    }

    /// Reads with each client for so long, each from a file of its own on, in the order of the files; gives the bytes that they got.
    pub fn read_for(&self, time: Duration) -> anyhow::Result<u64> {
        self.runtime.block_on(async {
            let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
            for (number, reader) in self.readers.iter().enumerate() {
                let mut files = self.files.clone();
                files.rotate_left(number % self.files.len().max(1));
                tasks.spawn(read_until(reader.clone(), files, stop.clone()));
            }
            tokio::time::sleep(time).await;
            stop.cancel();
            sum(tasks).await
        })
    }
}

impl LoopbackClient {
    /// Reads all files once, and compares every byte with the file of the same path below `source`. Fails also when
    /// fewer bytes than that went over loopback meanwhile: then they came another way.
    pub fn compare(&self, source: &Path) -> anyhow::Result<()> {
        let before = loopback_bytes()?;
        let mut total = 0;
        for &file in &self.files {
            let path = self.reader.manifest().path(file);
            let theirs = File::open(source.join(&path))?;
            let size = self.reader.manifest().object(file).size;
            anyhow::ensure!(theirs.metadata()?.len() == size, "{path}: not {size} bytes");
            let mut expected = vec![0; REQUEST as usize];
            for (offset, end) in requests(&self.reader, file) {
                let (mut ours, mut unfinished) = (Vec::new(), Vec::new());
                let read = self
                    .reader
                    .read(file, offset, end, &mut ours, &mut unfinished);
                self.runtime.block_on(read)?;
                let expected = &mut expected[..(end - offset) as usize];
                theirs.read_exact_at(expected, offset)?;
                let equal = ours.concat() == expected;
                anyhow::ensure!(equal, "{path}: wrong bytes behind offset {offset}");
            }
            total += size;
        }
        let moved = loopback_bytes()? - before;
        anyhow::ensure!(moved >= total, "{moved} bytes of {total} went over TCP");
        Ok(())
    }
}

/// Bytes that loopback has carried since the machine started.
fn loopback_bytes() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/sys/class/net/lo/statistics/rx_bytes")?;
    Ok(text.trim().parse()?)
}

/// What all readers have read.
async fn sum(mut readers: JoinSet<anyhow::Result<u64>>) -> anyhow::Result<u64> {
    let mut bytes = 0;
    while let Some(read) = readers.join_next().await {
        bytes += read.context("a reader panicked")??;
    }
    Ok(bytes)
}

/// Reads files over and over, until it is told to stop.
async fn read_until(
    reader: Arc<Reader>,
    files: Vec<u32>,
    stop: CancellationToken,
) -> anyhow::Result<u64> {
    let mut total = 0;
    for file in files.into_iter().cycle() {
        for (start, end) in requests(&reader, file) {
            if stop.is_cancelled() {
                return Ok(total);
            }
            let read = read_request(&reader, file, start, end).await?;
            if !stop.is_cancelled() {
                total += read;
            }
        }
    }
    Ok(total)
}

async fn read_and_think(
    reader: Arc<Reader>,
    files: Vec<u32>,
    source: PathBuf,
    thinks: Duration,
    counts: Arc<Mutex<Counts>>,
) {
    let mut expected = vec![0; REQUEST as usize];
    for file in files.into_iter().cycle() {
        let (path, size) = (
            reader.manifest().path(file),
            reader.manifest().object(file).size,
        );
        let theirs = File::open(source.join(&path));
        for offset in (0..size).step_by(REQUEST as usize) {
            let end = size.min(offset + REQUEST);
            let (mut pieces, mut unfinished) = (Vec::new(), Vec::new());
            let began = Instant::now();
            let read = reader.read(file, offset, end, &mut pieces, &mut unfinished);
            let read = read.await.map_err(|error| error.to_string());
            let took = began.elapsed();
            let expected = &mut expected[..(end - offset) as usize];
            let compared = read.and_then(|()| {
                let theirs = theirs.as_ref().map_err(ToString::to_string)?;
                let here = theirs.read_exact_at(expected, offset);
                here.map_err(|error| error.to_string())?;
                let is_same = pieces.concat() == expected;
                is_same.then_some(()).ok_or("wrong bytes".to_owned())
            });
            {
                let mut counts = counts.lock();
                counts.longest = counts.longest.max(took);
                match compared {
                    Ok(()) => counts.bytes += end - offset,
                    Err(why) => {
                        counts.wrong += 1;
                        let what = format!("{path} at {offset}: {why}");
                        counts.first_wrong.get_or_insert(what);
                    }
                }
            }
            tokio::time::sleep(thinks).await;
        }
    }
}

async fn read_files(reader: Arc<Reader>, files: Vec<u32>) -> anyhow::Result<u64> {
    let mut total = 0;
    for file in files {
        for (start, end) in requests(&reader, file) {
            total += read_request(&reader, file, start, end).await?;
        }
    }
    Ok(total)
}

/// Beginning and end of what is asked for at once, from the first byte of a file to its last.
fn requests(reader: &Reader, file: u32) -> impl Iterator<Item = (u64, u64)> + use<> {
    let size = reader.manifest().object(file).size;
    let starts = (0..size).step_by(REQUEST as usize);
    starts.map(move |start| (start, size.min(start + REQUEST)))
}

/// Reads a part of a file; gives its bytes.
async fn read_request(reader: &Reader, file: u32, start: u64, end: u64) -> anyhow::Result<u64> {
    let (mut pieces, mut unfinished) = (Vec::new(), Vec::new());
    let reading = reader.read(file, start, end, &mut pieces, &mut unfinished);
    reading.await?;
    let read: usize = pieces.iter().map(Bytes::len).sum();
    let (read, asked) = (read as u64, end - start);
    anyhow::ensure!(read == asked, "{read} bytes of {asked}");
    Ok(read)
}
