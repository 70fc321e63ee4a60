//! The origins that this worker may read.
//!
//! A block request names an origin by its id alone; only origins of known datasets are in the table, so no client
//! can make a worker fetch from elsewhere with the worker's credentials. Which sources those may be the master has
//! checked, and this process checks again by its own policy. The table is kept in a file, so that a worker that restarts
//! while the master is away still serves; and so is which dataset has which of them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use weir_core::OriginId;
use weir_origin::{FetchPolicy, Origin, OriginError, OriginSpec, Pace, SourcePolicy};

use crate::sources::{Claim, DatasetSources, Refusals};

/// Longest wait for the master to name an origin that a block request names, and how long it stays unknown after.
const LEARN_DEADLINE: Duration = Duration::from_secs(3);

/// Unknown origins and datasets that are waited for or remembered: callers may name any.
const MAX_UNKNOWN: usize = 1024;
/// Answers of the master that a dataset is waited for which does not have what a request names: one may have been on its
/// way when the dataset was made.
const ANSWERS: usize = 2;
/// Which dataset has which sources is kept in a file of this name beside that of the origins.
const SOURCES_FILE: &str = "sources.json";

/// An origin that is open.
#[derive(Clone, Debug)]
pub struct OpenOrigin {
    /// What it is read through.
    pub origin: Arc<dyn Origin>,
    /// What its reads know of each other.
    pub pace: Arc<Pace>,
    /// How patient they are.
    pub policy: Arc<FetchPolicy>,
    /// What fills of this origin may take of the fills' budget together.
    pub(crate) share: Arc<Semaphore>,
}

/// Known origins, opened at first use.
#[derive(Debug)]
pub struct Origins {
    table: RwLock<HashMap<OriginId, Slot>>,
    file: Option<PathBuf>,
    /// Those that this process needs itself, whatever the master says.
    own: Mutex<Vec<OriginSpec>>,
    /// How patient reads are where the origin does not say it.
    policy: Arc<FetchPolicy>,
    /// Which sources this process reads.
    sources: SourcePolicy,
    /// Which dataset has which; `None` with a master that does not say it.
    datasets: RwLock<Option<DatasetSources>>,
    pub(crate) refusals: Refusals,
    /// What the fills of one origin may take of the budget of all.
    share: usize,
    /// Somebody waits for an origin that is not in the table: the master should be asked now.
    wanted: Notify,
    /// The master was asked.
    learned: Notify,
    /// Origins and datasets that are not known, by a number, and when the first asked for them.
    unknown: Mutex<HashMap<u64, Instant>>,
    /// Where origins are opened. What they do in the background must go on, and a thread that answers the kernel has
    /// a runtime of its own that stands still between two reads.
    home: Handle,
}

/// A known origin.
#[derive(Debug)]
struct Slot {
    spec: OriginSpec,
    open: Option<OpenOrigin>,
}

impl Slot {
    fn of(spec: OriginSpec) -> Self {
        Self { spec, open: None }
    }

    /// Reads that begin from now on wait for so long. Gives whether that is new.
    fn set_patience(&mut self, seconds: Option<u32>, usual: &FetchPolicy) -> bool {
        if self.spec.patience_seconds == seconds {
            return false;
        }
        self.spec.patience_seconds = seconds;
        if let Some(open) = &mut self.open {
            open.policy = Arc::new(usual.with_patience(&self.spec));
        }
        true
    }
}

impl Origins {
    /// An empty table, or what `file` holds; the file is kept up to date. Call inside the process's own runtime.
    pub fn new(file: Option<PathBuf>, policy: Arc<FetchPolicy>, sources: SourcePolicy) -> Self {
        Self::with_share(file, policy, sources, Semaphore::MAX_PERMITS)
    }

    /// As [`new`](Self::new), for a worker whose fills have a budget of so many units.
    pub(crate) fn with_share(
        file: Option<PathBuf>,
        policy: Arc<FetchPolicy>,
        sources: SourcePolicy,
        share: usize,
    ) -> Self {
        let origins = Self {
            policy,
            sources,
            datasets: RwLock::default(),
            refusals: Refusals::default(),
            share,
            table: RwLock::default(),
            file,
            own: Mutex::default(),
            wanted: Notify::new(),
            learned: Notify::new(),
            unknown: Mutex::default(),
            home: Handle::current(),
        };
        let saved = origins.file.as_ref().and_then(|f| std::fs::read(f).ok());
        if let Some(specs) = saved.and_then(|json| serde_json::from_slice(&json).ok()) {
            origins.replace(specs);
        }
        let saved = origins.sources_file().and_then(|f| std::fs::read(f).ok());
        *origins.datasets.write() = saved.and_then(|json| DatasetSources::of_json(&json).ok());
        origins
    }

    fn sources_file(&self) -> Option<PathBuf> {
        Some(self.file.as_ref()?.with_file_name(SOURCES_FILE))
    }

    /// Makes `specs`, and what was added, the whole table. Origins that stay keep their connections.
    pub fn set(&self, mut specs: Vec<OriginSpec>) {
        for own in &*self.own.lock() {
            let id = own.id();
            if specs.iter().all(|spec| spec.id() != id) {
                specs.push(own.clone());
            }
        }
        if self.replace(specs.clone())
            && let Some(file) = &self.file
            && let Ok(json) = serde_json::to_vec(&specs)
        {
            save(file, &json);
        }
        self.confirm();
    }

    /// Says which dataset has which sources; `None` if the master does not say. Call before the origins are set.
    pub(crate) fn bind(&self, datasets: Option<DatasetSources>) {
        if let Some(file) = self.sources_file() {
            match datasets.as_ref().map(DatasetSources::to_json) {
                Some(Ok(json)) => save(&file, &json),
                _ => drop(std::fs::remove_file(&file)), // not there, mostly
            }
        }
        *self.datasets.write() = datasets;
    }

    /// Whether a dataset may have this object.
    pub(crate) fn claim(&self, dataset: &str, origin: OriginId, key: &str) -> Claim {
        match &*self.datasets.read() {
            Some(datasets) => datasets.claim(dataset, origin, key),
            None => Claim::Inside,
        }
    }

    /// The datasets that may have this object, by the names of which other workers may be asked for it.
    pub(crate) fn datasets_of(&self, origin: OriginId, key: &str) -> Vec<Arc<str>> {
        let datasets = self.datasets.read();
        let datasets = datasets.as_ref();
        datasets.map_or_else(Vec::new, |datasets| datasets.datasets_of(origin, key))
    }

    /// The datasets that may have objects of this one; none as long as the master has not named them.
    pub(crate) fn overlapping(&self, dataset: &str) -> Vec<Arc<str>> {
        let datasets = self.datasets.read();
        let datasets = datasets.as_ref();
        datasets.map_or_else(Vec::new, |datasets| datasets.overlapping(dataset))
    }

    /// As [`claim`](Self::claim), but the dataset may be new: where it does not have the object, the master's next answers
    /// are waited for.
    pub(crate) async fn claim_or_learn(&self, dataset: &str, origin: OriginId, key: &str) -> Claim {
        let mut hasher = DefaultHasher::new();
        (dataset, origin).hash(&mut hasher);
        let number = hasher.finish();
        for _ in 0..ANSWERS {
            let mut learned = std::pin::pin!(self.learned.notified());
            learned.as_mut().enable(); // before the look, so that nothing is missed
            let claim = self.claim(dataset, origin, key);
            if claim == Claim::Inside {
                return claim;
            }
            let Some(until) = self.learn_until(number, Instant::now()) else {
                return claim;
            };
            self.wanted.notify_one();
            if tokio::time::timeout_at(until, learned).await.is_err() {
                break;
            }
        }
        self.claim(dataset, origin, key)
    }

    /// The master has answered, and the table is as it says.
    pub(crate) fn confirm(&self) {
        self.learned.notify_waiters();
    }

    /// Ends when somebody waits for an origin that is not in the table.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// As [`get`](Self::get), but a dataset may be so new that the master's next answer names its origin: waits for
    /// that a moment, which all who ask for the origin share.
    pub(crate) async fn get_or_learn(
        &self,
        id: OriginId,
    ) -> Option<Result<OpenOrigin, OriginError>> {
        loop {
            let mut learned = std::pin::pin!(self.learned.notified());
            learned.as_mut().enable(); // before the look, so that nothing is missed
            if let Some(found) = self.get(id).await {
                return Some(found);
            }
            let until = self.learn_until(id.0, Instant::now())?;
            self.wanted.notify_one();
            tokio::time::timeout_at(until, learned).await.ok()?;
        }
    }

    /// Until when the master's answer is waited for. `None` when it was waited for in vain, or when too many are.
    fn learn_until(&self, id: u64, now: Instant) -> Option<Instant> {
        let mut unknown = self.unknown.lock();
        unknown.retain(|_, asked| now < *asked + 2 * LEARN_DEADLINE);
        if unknown.len() >= MAX_UNKNOWN && !unknown.contains_key(&id) {
            return None;
        }
        let until = *unknown.entry(id).or_insert(now) + LEARN_DEADLINE;
        (now < until).then_some(until)
    }

    fn replace(&self, specs: Vec<OriginSpec>) -> bool {
        let mut table = self.table.write();
        let mut next: HashMap<OriginId, Slot> = HashMap::new();
        let mut patience: HashMap<OriginId, Option<u32>> = HashMap::new();
        let mut changed = false;
        for spec in specs {
            let id = spec.id();
            // Several prefixes of one bucket: the longest patience is that of all.
            let longest = patience.entry(id).or_default();
            *longest = (*longest).max(spec.patience_seconds);
            if next.contains_key(&id) {
                continue;
            }
            let slot = table
                .remove(&id)
                .filter(|slot| is_same_place(&slot.spec, &spec));
            changed |= slot.is_none();
            next.insert(id, slot.unwrap_or_else(|| Slot::of(spec)));
        }
        for (id, slot) in &mut next {
            changed |= slot.set_patience(patience[id], &self.policy);
        }
        changed |= !table.is_empty();
        *table = next;
        changed
    }

    /// Closes connections that no read has used for a while.
    pub(crate) fn close_idle(&self) {
        for slot in self.table.read().values() {
            if let Some(open) = &slot.open {
                open.origin.close_idle();
            }
        }
    }

    /// Whether more requests to this origin at once would bring more.
    pub(crate) fn wants_more(&self, id: OriginId) -> bool {
        let table = self.table.read();
        let open = table.get(&id).and_then(|slot| slot.open.as_ref());
        open.is_some_and(|open| open.pace.wants_more())
    }

    /// Whether there is an origin of which [`Self::wants_more`] is true.
    pub(crate) fn any_wants_more(&self) -> bool {
        let table = self.table.read();
        let mut open = table.values().filter_map(|slot| slot.open.as_ref());
        open.any(|open| open.pace.wants_more())
    }

    /// Adds one origin that stays, or replaces the options of a known one.
    pub fn add(&self, spec: OriginSpec) {
        let id = spec.id();
        {
            let mut own = self.own.lock();
            if !own.contains(&spec) {
                own.retain(|own| own.id() != id);
                own.push(spec.clone());
            }
        }
        let patience = spec.patience_seconds;
        let mut table = self.table.write();
        match table.get_mut(&id) {
            Some(slot) if is_same_place(&slot.spec, &spec) => {
                slot.set_patience(patience, &self.policy);
            }
            _ => {
                table.insert(id, Slot::of(spec));
            }
        }
    }

    /// The origin with this id; `None` when it is not in the table.
    pub async fn get(&self, id: OriginId) -> Option<Result<OpenOrigin, OriginError>> {
        loop {
            let spec = {
                let table = self.table.read();
                let slot = table.get(&id)?;
                if let Some(open) = &slot.open {
                    return Some(Ok(open.clone()));
                }
                slot.spec.clone()
            };
            let (opening, sources) = (spec.clone(), self.sources.clone());
            let opening = self
                .home
                .spawn(async move { weir_origin::open(&opening, &sources).await });
            let opened = match opening.await {
                Ok(Ok(origin)) => OpenOrigin {
                    origin,
                    pace: Arc::default(),
                    policy: Arc::new(self.policy.with_patience(&spec)),
                    share: Arc::new(Semaphore::new(self.share)),
                },
                Ok(Err(error)) => return Some(Err(error)),
                Err(_) => return Some(Err(OriginError::interrupted("the origin"))), // shutting down
            };
            if let Some(kept) = self.keep(&spec, opened) {
                return Some(Ok(kept));
            }
        }
    }

    /// Puts an origin that was opened by `spec` into its place, unless one is there. `None` when its options were replaced
    /// meanwhile.
    fn keep(&self, spec: &OriginSpec, opened: OpenOrigin) -> Option<OpenOrigin> {
        let mut table = self.table.write();
        let slot = table.get_mut(&spec.id())?;
        if !is_same_place(&slot.spec, spec) {
            return None;
        }
        let patience = slot.spec.patience_seconds;
        let policy = self.policy.with_patience(&slot.spec);
        let open = slot.open.get_or_insert(opened);
        if patience != spec.patience_seconds {
            open.policy = Arc::new(policy);
        }
        Some(open.clone())
    }
}

/// Replaces a file; that it cannot be written is not a reader's matter.
fn save(file: &Path, json: &[u8]) {
    let temporary = file.with_extension("new");
    let written = std::fs::write(&temporary, json).and_then(|()| std::fs::rename(&temporary, file));
    if let Err(error) = written {
        tracing::warn!(%error, file = %file.display(), "what the master says of origins could not be saved");
    }
}

/// Two datasets may name two prefixes of one bucket, and wait for it for longer or shorter: that is one origin.
fn is_same_place(a: &OriginSpec, b: &OriginSpec) -> bool {
    OriginSpec {
        url: b.url.clone(),
        patience_seconds: b.patience_seconds,
        ..a.clone()
    } == *b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_origin_that_was_opened_by_replaced_options_is_not_kept() {
        let old = OriginSpec::parse("s3://bucket/a").unwrap();
        let new = OriginSpec {
            region: Some("eu-west-1".to_owned()),
            anonymous: true,
            ..old.clone()
        };
        let other_prefix = OriginSpec {
            url: "s3://bucket/b".to_owned(),
            ..new.clone()
        };
        let open = async |spec: &OriginSpec| OpenOrigin {
            origin: weir_origin::open(spec, &SourcePolicy::unlimited())
                .await
                .unwrap(),
            pace: Arc::default(),
            policy: Arc::default(),
            share: Arc::new(Semaphore::new(1)),
        };
        let origins = Origins::new(None, Arc::default(), SourcePolicy::unlimited());
        origins.add(old.clone());
        let opened = open(&new).await; // stands for one by the old options: its making takes no credentials
        origins.add(new.clone());
        assert!(origins.keep(&old, opened.clone()).is_none());
        let kept = origins.keep(&other_prefix, opened.clone()).unwrap();
        assert!(Arc::ptr_eq(&kept.origin, &opened.origin));
        let found = origins.get(new.id()).await.unwrap().unwrap();
        assert!(Arc::ptr_eq(&found.origin, &opened.origin));
    }

    #[tokio::test]
    async fn the_longest_patience_of_a_buckets_datasets_holds_and_may_change() {
        let spec = |url: &str, patience_seconds| OriginSpec {
            anonymous: true,
            patience_seconds,
            ..OriginSpec::parse(url).unwrap()
        };
        let id = spec("s3://bucket", None).id();
        let origins = Origins::new(None, Arc::default(), SourcePolicy::unlimited());
        let budget = async || {
            let open = origins.get(id).await.unwrap().unwrap();
            (open.policy.budget.as_secs(), open.origin)
        };
        let datasets = [
            spec("s3://bucket/a", Some(5)),
            spec("s3://bucket/b", Some(600)),
        ];
        assert!(origins.replace(datasets.to_vec()));
        let (seconds, first) = budget().await;
        assert_eq!(seconds, 600);
        assert!(!origins.replace(datasets.to_vec()), "nothing changed");
        assert!(origins.replace(datasets[..1].to_vec()));
        let (seconds, same) = budget().await;
        assert_eq!(seconds, 5);
        assert!(Arc::ptr_eq(&first, &same), "it was not opened anew");
        origins.add(spec("s3://bucket", None));
        assert_eq!(budget().await.0, 30);
    }

    #[tokio::test]
    async fn an_unknown_origin_is_waited_for_once_and_no_more_than_a_thousand_are() {
        let origins = Origins::new(None, Arc::default(), SourcePolicy::unlimited());
        let id = |n: usize| OriginSpec::parse(&format!("s3://b{n}")).unwrap().id().0;
        let start = Instant::now();
        let after = |millis: u64| start + Duration::from_millis(millis);
        let end = Some(after(3000));
        // All who come meanwhile wait to the same moment, and those who come after it do not wait.
        for (now, until) in [(0, end), (10, end), (2900, end), (3000, None), (5900, None)] {
            assert_eq!(origins.learn_until(id(0), after(now)), until, "{now}");
        }
        assert_eq!(origins.learn_until(id(0), after(6000)), Some(after(9000)));
        let waited_for = (0..2 * MAX_UNKNOWN).filter(|n| {
            let until = origins.learn_until(id(*n), after(6000));
            until.is_some()
        });
        assert_eq!(waited_for.count(), MAX_UNKNOWN);
        assert_eq!(origins.unknown.lock().len(), MAX_UNKNOWN);
    }

    #[tokio::test]
    async fn what_was_added_stays_whatever_the_master_says() {
        let spec = |url: &str| OriginSpec {
            anonymous: true,
            ..OriginSpec::parse(url).unwrap()
        };
        let origins = Origins::new(None, Arc::default(), SourcePolicy::unlimited());
        origins.add(spec("s3://own/a"));
        let known = async |url: &str| origins.get(spec(url).id()).await.is_some();
        origins.set(vec![spec("s3://one")]);
        assert!(known("s3://own").await && known("s3://one").await);
        origins.set(vec![spec("s3://own/b"), spec("s3://two")]);
        assert!(known("s3://own").await && known("s3://two").await);
        assert!(!known("s3://one").await);
        origins.set(Vec::new());
        assert!(known("s3://own").await && !known("s3://two").await);
    }

    fn of_dataset(name: &str, origin: OriginId, prefix: &str) -> DatasetSources {
        DatasetSources::of_reply(vec![weir_proto::v1::DatasetSources {
            dataset: name.to_owned(),
            sources: vec![weir_proto::v1::Source {
                origin: origin.0,
                prefix: prefix.to_owned(),
            }],
            placement: None,
            former: Vec::new(),
        }])
    }

    #[tokio::test]
    async fn a_dataset_that_is_new_is_asked_for_and_one_that_is_none_is_given_up_soon() {
        let dir = tempfile::tempdir().unwrap();
        let file = Some(dir.path().join("origins.json"));
        let new = || Origins::new(file.clone(), Arc::default(), SourcePolicy::unlimited());
        let origins = new();
        let id = OriginId(1);
        assert_eq!(
            origins.claim("old", id, "a/b"),
            Claim::Inside,
            "an old master says nothing"
        );
        origins.bind(Some(of_dataset("old", id, "a/")));
        assert_eq!(
            origins.claim_or_learn("old", id, "a/b").await,
            Claim::Inside
        );
        let (claim, ()) = tokio::join!(origins.claim_or_learn("new", id, "a/b"), async {
            origins.wanted().await;
            origins.confirm(); // an answer that was on its way
            origins.wanted().await;
            origins.bind(Some(of_dataset("new", id, "a/")));
            origins.set(Vec::new());
        });
        assert_eq!(claim, Claim::Inside);
        let begun = Instant::now();
        for (dataset, key, expected) in [
            ("new", "b/c", Claim::Outside),
            ("other", "a/b", Claim::Unknown),
        ] {
            let answers = async {
                for _ in 0..ANSWERS {
                    origins.wanted().await;
                    origins.confirm();
                }
            };
            let (claim, ()) = tokio::join!(origins.claim_or_learn(dataset, id, key), answers);
            assert_eq!(claim, expected, "{dataset}");
        }
        assert!(begun.elapsed() < LEARN_DEADLINE);
        // The next process knows what this one knew, before the master answers.
        assert_eq!(new().claim("new", id, "a/b"), Claim::Inside);
        assert_eq!(new().claim("new", id, "b/c"), Claim::Outside);
        origins.bind(None);
        assert_eq!(
            new().claim("new", id, "b/c"),
            Claim::Inside,
            "the master says it no more"
        );
    }

    #[tokio::test]
    async fn a_worker_s_own_policy_counts_whatever_the_master_says() {
        let policy = SourcePolicy::of("weir worker", Vec::new(), Vec::new());
        let origins = Origins::new(None, Arc::default(), policy);
        let etc = OriginSpec::parse("file:///etc").unwrap();
        origins.set(vec![etc.clone()]);
        let error = origins.get(etc.id()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), "not_allowed", "{error}");
    }
}
