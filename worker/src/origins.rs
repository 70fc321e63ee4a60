//! The origins that this worker may read.
//!
//! A block request names an origin by its id alone; only origins of known datasets are in the table, so no client
//! can make a worker fetch from elsewhere with the worker's credentials. The table is kept in a file, so that a
//! worker that restarts while the master is away still serves.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use weir_core::OriginId;
use weir_origin::{FetchPolicy, Origin, OriginError, OriginSpec, Pace};

/// Longest wait for the master to name an origin that a block request names, and how long it stays unknown after.
const LEARN_DEADLINE: Duration = Duration::from_secs(3);

/// Unknown origins that are waited for or remembered: callers may name any.
const MAX_UNKNOWN: usize = 1024;

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
    /// What the fills of one origin may take of the budget of all.
    share: usize,
    /// Somebody waits for an origin that is not in the table: the master should be asked now.
    wanted: Notify,
    /// The master was asked.
    learned: Notify,
    /// Origins that are not in the table, and when the first asked for them.
    unknown: Mutex<HashMap<OriginId, Instant>>,
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
    pub fn new(file: Option<PathBuf>, policy: Arc<FetchPolicy>) -> Self {
        Self::with_share(file, policy, Semaphore::MAX_PERMITS)
    }

    /// As [`new`](Self::new), for a worker whose fills have a budget of so many units.
    pub(crate) fn with_share(
        file: Option<PathBuf>,
        policy: Arc<FetchPolicy>,
        share: usize,
    ) -> Self {
        let origins = Self {
            policy,
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
        origins
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
            let temporary = file.with_extension("new");
            let written =
                std::fs::write(&temporary, json).and_then(|()| std::fs::rename(&temporary, file));
            if let Err(error) = written {
                tracing::warn!(%error, file = %file.display(), "the list of origins could not be saved");
            }
        }
        self.confirm();
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
            let until = self.learn_until(id, Instant::now())?;
            self.wanted.notify_one();
            tokio::time::timeout_at(until.into(), learned).await.ok()?;
        }
    }

    /// Until when the master's answer is waited for. `None` when it was waited for in vain, or when too many are.
    fn learn_until(&self, id: OriginId, now: Instant) -> Option<Instant> {
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
            let opening = spec.clone();
            let opening = self
                .home
                .spawn(async move { weir_origin::open(&opening).await });
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
            origin: weir_origin::open(spec).await.unwrap(),
            pace: Arc::default(),
            policy: Arc::default(),
            share: Arc::new(Semaphore::new(1)),
        };
        let origins = Origins::new(None, Arc::default());
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
        let origins = Origins::new(None, Arc::default());
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
        let origins = Origins::new(None, Arc::default());
        let id = |n: usize| OriginSpec::parse(&format!("s3://b{n}")).unwrap().id();
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
        let origins = Origins::new(None, Arc::default());
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
}
