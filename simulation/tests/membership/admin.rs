//! Somebody who cordons and drains workers, and remembers what was acknowledged.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Code, Status};
use weir_proto::v1;

use super::hosts::{master_client, worker};
use super::views::Views;

/// Longest wait for an answer of the master.
const DEADLINE: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Cordon,
    Uncordon,
    Drain,
}

/// Something that is asked of the master.
#[derive(Debug)]
pub(crate) struct Operation {
    at: Duration,
    what: What,
    worker: String,
}

/// What must be so, as far as the master has acknowledged it.
#[derive(Default)]
pub(crate) struct Wanted(Mutex<State>);

#[derive(Default)]
struct State {
    /// Whether a worker is cordoned; `None` when it is not known, since an answer did not come.
    cordoned: BTreeMap<String, Option<bool>>,
    acknowledged: usize,
}

impl Wanted {
    /// How often the master has said yes.
    pub(crate) fn acknowledged(&self) -> usize {
        self.0.lock().acknowledged
    }
}

/// What a seed asks for.
pub(crate) fn operations(random: &mut SmallRng, workers: usize, time: Duration) -> Vec<Operation> {
    let count = random.random_range(5..15);
    let operations = (0..count).map(|_| Operation {
        at: time.mul_f64(random.random_range(0.1..1.0)),
        what: [What::Cordon, What::Uncordon, What::Drain][random.random_range(0..3)],
        worker: worker(random.random_range(0..workers)),
    });
    let mut operations: Vec<Operation> = operations.collect();
    operations.sort_by_key(|operation| operation.at);
    operations
}

/// Asks for one thing after the other.
pub(crate) async fn run(operations: Vec<Operation>, wanted: &Wanted) {
    let start = Instant::now();
    for operation in operations {
        sleep_until(start + operation.at).await;
        // Until it has answered, either may be so.
        let worker = operation.worker.clone();
        let before = wanted.0.lock().cordoned.insert(worker.clone(), None);
        let answer = timeout(DEADLINE, ask(&operation)).await;
        let mut state = wanted.0.lock();
        match answer {
            Ok(Ok(())) => {
                state.acknowledged += 1;
                let is_cordoned = operation.what != What::Uncordon;
                state.cordoned.insert(worker, Some(is_cordoned));
            }
            // Nothing has changed.
            Ok(Err(status)) if is_refusal(&status) => {
                state.cordoned.insert(worker, before.unwrap_or(Some(false)));
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

fn is_refusal(status: &Status) -> bool {
    let refusals = [
        Code::NotFound,
        Code::FailedPrecondition,
        Code::ResourceExhausted,
    ];
    refusals.contains(&status.code())
}

async fn ask(operation: &Operation) -> Result<(), Status> {
    let (mut master, worker) = (master_client(), operation.worker.clone());
    match operation.what {
        What::Drain => {
            let drain = v1::DrainWorkerRequest {
                worker,
                ..v1::DrainWorkerRequest::default()
            };
            master.drain_worker(drain).await.map(drop)
        }
        What::Cordon | What::Uncordon => {
            let uncordon = operation.what == What::Uncordon;
            let cordon = v1::CordonWorkerRequest { worker, uncordon };
            master.cordon_worker(cordon).await.map(drop)
        }
    }
}

/// Waits for so long at most until all views are the same, and are what the master has acknowledged.
pub(crate) async fn until_agreed(views: &Views, wanted: &Wanted, workers: usize, most: Duration) {
    let deadline = Instant::now() + most;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        views.until_all_see(workers, left).await;
        let map = views.of(&worker(0));
        let differs = map.workers().iter().find_map(|info| {
            let is = info.weight == 0 && info.cordoned_weight > 0;
            let state = wanted.0.lock();
            let should = state.cordoned.get(info.id.as_str()).copied();
            let should = should.unwrap_or(Some(false))?;
            let differs = format!("{} is cordoned: {is}; acknowledged was: {should}", info.id);
            (should != is).then_some(differs)
        });
        let Some(differs) = differs else {
            return;
        };
        assert!(Instant::now() < deadline, "{differs}");
        sleep(Duration::from_secs(1)).await;
    }
}
