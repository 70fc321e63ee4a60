//! Somebody who cordons and drains workers, moves datasets and makes new snapshots, and remembers what was acknowledged.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Code, Status};
use weir_proto::v1;
use weir_worker::snapshots::fetch_manifest;

use super::hosts::{DATASETS, master_client, reader, worker};
use super::origin::Bucket;
use super::reads::Reads;
use super::views::Views;

/// Longest wait for an answer of the master.
const DEADLINE: Duration = Duration::from_secs(8);
/// How the first dataset is placed.
const WIDE: &str = r#"{"spread": "cluster"}"#;
/// How the second one may be; it is as the first of these at first.
const PLACEMENTS: [&str; 4] = [
    r#"{"spread": "zone", "copies": 2}"#,
    r#"{"spread": "zone", "in": ["b"]}"#,
    r#"{"spread": "zone", "in": ["a", "b"]}"#,
    WIDE,
];

#[derive(Clone, PartialEq, Eq, Debug)]
enum What {
    Cordon(String),
    Uncordon(String),
    Drain(String),
    /// The second dataset is to be placed so.
    Place(&'static str),
    /// An object of a dataset is replaced, and a new snapshot made.
    Renew(&'static str),
}

/// Something that is asked of the master.
#[derive(Debug)]
pub(crate) struct Operation {
    at: Duration,
    what: What,
}

/// What must be so, as far as the master has acknowledged it.
#[derive(Default)]
pub(crate) struct Wanted(Mutex<State>);

#[derive(Default)]
struct State {
    /// Whether a worker is cordoned; `None` when it is not known, since an answer did not come.
    cordoned: BTreeMap<String, Option<bool>>,
    /// How the second dataset is placed; `None` when it is not known.
    placement: Option<&'static str>,
    /// The newest snapshot of each dataset that must be there.
    snapshots: BTreeMap<String, u64>,
    acknowledged: usize,
}

impl Wanted {
    /// How often the master has said yes.
    pub(crate) fn acknowledged(&self) -> usize {
        self.0.lock().acknowledged
    }

    fn has_snapshot(&self, dataset: &str, version: u64) {
        let mut state = self.0.lock();
        let least = state.snapshots.entry(dataset.to_owned()).or_default();
        *least = version.max(*least);
    }
}

/// When, and how often, what may be asked for.
#[derive(Clone, Copy)]
pub(crate) struct Asking {
    pub(crate) from: Duration,
    pub(crate) to: Duration,
    pub(crate) most: usize,
    /// Datasets are moved, and snapshots made.
    pub(crate) of_datasets: bool,
}

/// What a seed asks for.
pub(crate) fn operations(random: &mut SmallRng, workers: usize, asking: Asking) -> Vec<Operation> {
    let count = random.random_range(asking.most / 3..asking.most);
    let kinds = if asking.of_datasets { 5 } else { 3 };
    let operations = (0..count).map(|_| {
        let at = random.random_range(0.0..1.0);
        let worker = worker(random.random_range(0..workers));
        let what = match random.random_range(0..kinds) {
            0 => What::Cordon(worker),
            1 => What::Uncordon(worker),
            2 => What::Drain(worker),
            3 => What::Place(PLACEMENTS[random.random_range(0..PLACEMENTS.len())]),
            _ => What::Renew(DATASETS[random.random_range(0..DATASETS.len())]),
        };
        Operation {
            at: asking.from + asking.to.saturating_sub(asking.from).mul_f64(at),
            what,
        }
    });
    let mut operations: Vec<Operation> = operations.collect();
    operations.sort_by_key(|operation| operation.at);
    operations
}

/// The same workers and datasets as planned changes have them: one after the other, each when the one before is done.
pub(crate) async fn drain(number: usize) -> Result<(), Status> {
    ask(&What::Drain(worker(number))).await
}

pub(crate) async fn uncordon(number: usize) -> Result<(), Status> {
    ask(&What::Uncordon(worker(number))).await
}

pub(crate) async fn place(number: usize) -> Result<(), Status> {
    ask(&What::Place(PLACEMENTS[number % PLACEMENTS.len()])).await
}

/// Asks for one thing after the other.
pub(crate) async fn run(
    operations: Vec<Operation>,
    wanted: &Wanted,
    bucket: &Bucket,
    reads: Option<&Reads>,
) {
    let start = Instant::now();
    for operation in operations {
        sleep_until(start + operation.at).await;
        let before = begin(&operation.what, wanted);
        if let What::Renew(dataset) = operation.what {
            bucket.replace_one(dataset);
        }
        let answer = timeout(DEADLINE, ask(&operation.what)).await;
        let is_done = match answer {
            Ok(Ok(())) => Some(true),
            // Nothing has changed.
            Ok(Err(status)) if is_refusal(&status) => Some(false),
            Ok(Err(_)) | Err(_) => None,
        };
        if let Some(is_done) = is_done {
            end(&operation.what, is_done, before, wanted);
        }
        if let (What::Renew(dataset), Some(reads)) = (&operation.what, reads) {
            list(dataset, wanted, reads).await;
        }
    }
}

/// How it was before. Until the master has answered, either may be so.
fn begin(what: &What, wanted: &Wanted) -> State {
    let mut state = wanted.0.lock();
    let before = State {
        cordoned: state.cordoned.clone(),
        placement: state.placement,
        ..State::default()
    };
    match what {
        What::Cordon(worker) | What::Uncordon(worker) | What::Drain(worker) => {
            state.cordoned.insert(worker.clone(), None);
        }
        What::Place(_) => state.placement = None,
        What::Renew(_) => {}
    }
    before
}

fn end(what: &What, is_done: bool, before: State, wanted: &Wanted) {
    let mut state = wanted.0.lock();
    state.acknowledged += usize::from(is_done);
    match what {
        What::Cordon(worker) | What::Uncordon(worker) | What::Drain(worker) => {
            let is_cordoned = !matches!(what, What::Uncordon(_));
            let known = before.cordoned.get(worker).copied();
            let known = known.unwrap_or(Some(false));
            let now = if is_done { Some(is_cordoned) } else { known };
            state.cordoned.insert(worker.clone(), now);
        }
        What::Place(placement) => {
            state.placement = if is_done {
                Some(placement)
            } else {
                before.placement
            };
        }
        What::Renew(_) => {}
    }
}

fn is_refusal(status: &Status) -> bool {
    let refusals = [
        Code::NotFound,
        Code::InvalidArgument,
        Code::FailedPrecondition,
        Code::ResourceExhausted,
    ];
    refusals.contains(&status.code())
}

fn spec(dataset: &str, placement: &str) -> String {
    let source = format!(r#"{{"url": "s3://sim/{dataset}/", "anonymous": true}}"#);
    format!(r#"{{"sources": [{source}], "placement": {placement}}}"#)
}

async fn apply(dataset: &str, placement: &str) -> Result<(), Status> {
    let request = v1::ApplyDatasetRequest {
        name: dataset.to_owned(),
        spec: spec(dataset, placement),
        ..v1::ApplyDatasetRequest::default()
    };
    master_client().apply_dataset(request).await.map(drop)
}

async fn ask(what: &What) -> Result<(), Status> {
    let mut master = master_client();
    match what.clone() {
        What::Drain(worker) => {
            let drain = v1::DrainWorkerRequest {
                worker,
                ..v1::DrainWorkerRequest::default()
            };
            master.drain_worker(drain).await.map(drop)
        }
        What::Cordon(worker) => cordon(worker, false).await,
        What::Uncordon(worker) => cordon(worker, true).await,
        What::Place(placement) => apply(DATASETS[1], placement).await,
        What::Renew(dataset) => {
            let name = dataset.to_owned();
            let renew = v1::RefreshDatasetRequest { name };
            master.refresh_dataset(renew).await.map(drop)
        }
    }
}

async fn cordon(worker: String, uncordon: bool) -> Result<(), Status> {
    let cordon = v1::CordonWorkerRequest { worker, uncordon };
    master_client().cordon_worker(cordon).await.map(drop)
}

/// Makes the datasets, and waits until each has been listed.
pub(crate) async fn make(wanted: &Wanted, reads: &Reads, most: Duration) {
    let deadline = Instant::now() + most;
    for (dataset, placement) in DATASETS.iter().zip([WIDE, PLACEMENTS[0]]) {
        while !matches!(
            timeout(DEADLINE, apply(dataset, placement)).await,
            Ok(Ok(()))
        ) {
            assert!(Instant::now() < deadline, "{dataset} cannot be made");
            sleep(Duration::from_secs(1)).await;
        }
        while !list(dataset, wanted, reads).await {
            assert!(Instant::now() < deadline, "{dataset} cannot be had");
        }
    }
    wanted.0.lock().placement = Some(PLACEMENTS[0]);
}

/// Gives readers the newest snapshot, if it is to be had.
async fn list(dataset: &str, wanted: &Wanted, reads: &Reads) -> bool {
    let mut master = master_client();
    let manifest = timeout(DEADLINE, fetch_manifest(&mut master, dataset, 0)).await;
    let Ok(Ok(manifest)) = manifest else {
        return false;
    };
    wanted.has_snapshot(dataset, manifest.summary().snapshot.version);
    reads.listed(manifest);
    true
}

async fn dataset(name: &str) -> Option<v1::Dataset> {
    let request = v1::GetDatasetRequest {
        name: name.to_owned(),
    };
    let mut master = master_client();
    let answer = timeout(DEADLINE, master.get_dataset(request)).await;
    Some(answer.ok()?.ok()?.into_inner())
}

/// Waits for so long at most until all views are the same, and are what the master has acknowledged.
pub(crate) async fn until_agreed(views: &Views, wanted: &Wanted, readers: usize, most: Duration) {
    let deadline = Instant::now() + most;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        views.until_all_see(left).await;
        let differs = match workers_differ(views, wanted) {
            None => datasets_differ(views, wanted, readers).await,
            differs => differs,
        };
        let Some(differs) = differs else {
            return;
        };
        assert!(Instant::now() < deadline, "{differs}");
        sleep(Duration::from_secs(1)).await;
    }
}

fn workers_differ(views: &Views, wanted: &Wanted) -> Option<String> {
    let map = views.map_of(&worker(0));
    map.workers().iter().find_map(|info| {
        let is = info.weight == 0 && info.cordoned_weight > 0;
        let state = wanted.0.lock();
        let should = state.cordoned.get(info.id.as_str()).copied();
        let should = should.unwrap_or(Some(false))?;
        let differs = format!("{} is cordoned: {is}; acknowledged was: {should}", info.id);
        (should != is).then_some(differs)
    })
}

async fn datasets_differ(views: &Views, wanted: &Wanted, readers: usize) -> Option<String> {
    let (snapshots, placement) = {
        let state = wanted.0.lock();
        (state.snapshots.clone(), state.placement)
    };
    for (number, name) in DATASETS.iter().enumerate() {
        let Some(least) = snapshots.get(*name) else {
            continue; // there are no datasets
        };
        let Some(dataset) = dataset(name).await else {
            return Some(format!("{name} is not to be had"));
        };
        let newest = dataset.snapshots.last().map_or(0, |newest| newest.version);
        if newest < *least {
            return Some(format!(
                "{name}@{newest} is the newest; acknowledged was {least}"
            ));
        }
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
        let should = placement.and_then(json).filter(|_| number == 1);
        let is = json(&dataset.spec).map(|spec| spec["placement"].clone());
        if should.is_some() && is != should {
            return Some(format!(
                "{name} is placed as {is:?}; acknowledged was {should:?}"
            ));
        }
        let version = dataset.placement.map_or(0, |placement| placement.version);
        for reader in (0..readers).filter(|reader| reader % DATASETS.len() == number) {
            let seen = views.placement_of(&self::reader(reader));
            if seen != version {
                return Some(format!(
                    "reader {reader} sees placement {seen} of {name}, and not {version}"
                ));
            }
        }
    }
    None
}
