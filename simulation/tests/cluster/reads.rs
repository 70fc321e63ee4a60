//! Readers of the datasets, as mounts are, and what must be true of each read: its bytes are those of the version that was listed, and
//! it succeeds while the origin is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use weir_client::map::{Doubts, Seen, fetch, follow};
use weir_client::{
    AnySource, ClientMetrics, ClusterConfig, ClusterReader, ClusterSource, ReadAheadTarget,
    ReadError, Reader,
};
use weir_core::manifest::ROOT;
use weir_core::placement::domains::Placement;
use weir_core::{ClusterMap, Location, Manifest};
use weir_origin::OriginMetrics;

use super::clocks::TrueTime;
use super::hosts::{DATASETS, dial, master_client, reader, zone};
use super::origin::{Bucket, content};
use super::views::Views;

/// Longest time between two reads of one reader.
const PAUSE: Duration = Duration::from_millis(1200);
/// Nobody waits for longer, by its own clock. That of a silent origin is shorter.
const DEADLINE: Duration = Duration::from_mins(1);

/// How long after the origin is back a failure of before may be told.
const REMEMBERED: Duration = Duration::from_secs(3);

/// Newest snapshots that somebody has had from the master, as a mount keeps its own; and what came of the reads.
#[derive(Clone)]
pub(crate) struct Reads {
    bucket: Bucket,
    time: TrueTime,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    manifests: BTreeMap<String, Arc<Manifest>>,
    kept: BTreeMap<usize, (Arc<ClusterMap>, Arc<Placement>)>,
    /// Reads that have succeeded, and of which objects.
    done: usize,
    read: BTreeSet<String>,
    longest: Duration,
    wrong: Vec<String>,
}

impl Reads {
    pub(crate) fn new(bucket: Bucket, time: TrueTime) -> Self {
        Self {
            bucket,
            time,
            state: Arc::default(),
        }
    }

    /// A snapshot was made.
    pub(crate) fn listed(&self, manifest: Manifest) {
        let name = manifest.summary().snapshot.dataset.to_string();
        let mut state = self.state.lock();
        state.manifests.insert(name, Arc::new(manifest));
    }

    fn newest(&self, dataset: &str) -> Option<Arc<Manifest>> {
        self.state.lock().manifests.get(dataset).cloned()
    }

    /// Panics if a read was wrong, or if there were fewer than so many.
    pub(crate) fn check(&self, least: usize, longest: Duration) {
        let state = self.state.lock();
        assert!(state.wrong.is_empty(), "{}", state.wrong.join("\n"));
        assert!(state.done >= least, "only {} reads succeeded", state.done);
        assert!(state.longest <= longest, "a read took {:?}", state.longest);
    }

    /// Waits until so many objects have been read.
    pub(crate) async fn until_read(&self, objects: usize, most: Duration) {
        let deadline = Instant::now() + most;
        while self.state.lock().read.len() < objects {
            assert!(Instant::now() < deadline, "not all is read");
            sleep(PAUSE).await;
        }
    }

    async fn read_one(&self, reader: &Reader, file: u32, range: (u64, u64)) {
        let object = reader.manifest().object(file);
        let (start, end) = range;
        let (mut bytes, mut unfinished) = (Vec::new(), Vec::new());
        let began = self.time.now();
        let read = reader.read(file, start, end, &mut bytes, &mut unfinished);
        let outcome = timeout(DEADLINE, read.boxed_local()).await;
        let took = self.time.now().saturating_sub(began);
        let what = format!(
            "{}@{} {start}..{end} of {:?}, from {began:?} on, for {took:?}",
            object.key,
            object.version,
            reader.manifest().summary().snapshot,
        );
        let was_away = self.bucket.was_away_since(began.saturating_sub(REMEMBERED));
        let mut state = self.state.lock();
        match outcome {
            Ok(Ok(())) => {
                let content = content(&object.key, &object.version, object.size);
                if bytes.concat() == content[start as usize..end as usize] {
                    state.done += 1;
                    state.read.insert(object.key.to_string());
                } else {
                    let got = String::from_utf8_lossy(&bytes.concat()).into_owned();
                    state.wrong.push(format!("{what}: wrong bytes: {got:?}"));
                }
                if !was_away {
                    state.longest = state.longest.max(took);
                }
            }
            Ok(Err(ReadError::Stale { .. })) if !self.bucket.is_current(&object) => {}
            // Not to be read without the origin, maybe.
            Ok(Err(ReadError::Unavailable { .. })) if was_away => {}
            Ok(Err(error)) => state.wrong.push(format!("{what}: {error}")),
            Err(_) => state.wrong.push(format!("{what}: no end")),
        }
    }

    /// The cluster as a reader has it when it starts: as it was when it started for the first time, which a mount keeps, too.
    async fn place(&self, number: usize, dataset: &str) -> (Arc<ClusterMap>, Arc<Placement>) {
        loop {
            if let Some(kept) = self.state.lock().kept.get(&number) {
                return kept.clone();
            }
            let mut master = master_client();
            if self.newest(dataset).is_some()
                && let Ok(Ok((map, placement))) =
                    timeout(DEADLINE, fetch(&mut master, dataset)).await
            {
                let kept = (Arc::new(map), Arc::new(placement));
                self.state.lock().kept.insert(number, kept);
            } else {
                sleep(PAUSE).await;
            }
        }
    }

    /// A host that reads files at random.
    pub(crate) async fn run(self, number: usize, seed: u64, views: Views) -> turmoil::Result {
        let dataset = DATASETS[number % DATASETS.len()];
        let (map, placement) = self.place(number, dataset).await;
        let (map, mut map_seen) = watch::channel(map);
        let (placement, mut placement_seen) = watch::channel(placement);
        map_seen.mark_changed();
        placement_seen.mark_changed();
        let location = Location::of_names(zone(number / DATASETS.len()), "")?;
        let seen = Seen {
            map,
            dataset: dataset.to_owned(),
            placement,
            node: reader(number).parse()?,
            at: location.clone(),
        };
        let doubts = Doubts {
            seen: 0,
            listener: broadcast::Sender::new(1),
            keep: Box::new(|_| ()),
        };
        let metrics = ClientMetrics::register(&mut Registry::default());
        let refresh_now = Arc::new(Notify::new());
        let stop = CancellationToken::new();
        let following = follow(
            master_client(),
            seen,
            refresh_now.clone(),
            doubts,
            metrics.clone(),
            stop,
        );
        let placed = placement_seen.clone();
        let cluster = Arc::new(ClusterReader::new(ClusterConfig {
            node: reader(number).parse()?,
            location,
            map: map_seen.clone(),
            placement: placement_seen,
            refresh_now,
            dial: dial(),
            fetch: Arc::default(),
            sources: self.bucket.policy(),
            origin_fallback: true,
            metrics: metrics.clone(),
            origin_metrics: OriginMetrics::register(&mut Registry::default()),
        }));
        let source = AnySource::Cluster(ClusterSource::new(cluster, dataset.parse()?));
        let reading = async {
            let mut random = SmallRng::seed_from_u64(seed ^ number as u64);
            loop {
                let Some(manifest) = self.newest(dataset) else {
                    sleep(PAUSE).await;
                    continue;
                };
                let target = ReadAheadTarget::Off;
                let reader = Reader::new(manifest.clone(), source.clone(), target, &metrics);
                let files: Vec<u32> = manifest.files_below(ROOT).collect();
                let until = Instant::now() + 4 * PAUSE;
                while Instant::now() < until {
                    let file = files[random.random_range(0..files.len())];
                    let size = manifest.object(file).size;
                    let start = random.random_range(0..size);
                    let whole = random.random_bool(0.5);
                    let range = if whole { (0, size) } else { (start, size) };
                    self.read_one(&reader, file, range).await;
                    sleep(PAUSE.mul_f64(random.random_range(0.0..1.0))).await;
                }
            }
        };
        tokio::join!(
            following,
            views.clone().follow(reader(number), map_seen),
            views.follow_placement(reader(number), placed),
            reading.boxed_local()
        );
        Ok(())
    }
}
