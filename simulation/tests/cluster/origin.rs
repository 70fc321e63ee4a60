//! What the datasets are made of: objects in memory, of which each byte says which object and version it is of.
//!
//! All hosts reach it at all times, but it is slow, fails or is away when the seed says so; and objects are replaced.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;
use weir_core::{ObjectRef, OriginId};
use weir_origin::{Fetched, Listed, Origin, OriginError, OriginSpec, SourcePolicy};

use super::clocks::{TrueTime, host};

const NAME: &str = "s3://sim";

/// The bytes of a version of an object.
pub(crate) fn content(key: &str, version: &str, size: u64) -> Vec<u8> {
    let mut content = Vec::new();
    for line in 0.. {
        if content.len() as u64 >= size {
            break;
        }
        content.extend_from_slice(format!("{line} {key}@{version}\n").as_bytes());
    }
    content.truncate(size as usize);
    content
}

/// How well the origin is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Health {
    /// Longest time to the first byte, usually.
    pub(crate) delay: Duration,
    /// The part of requests that take so long that a second one is started, and that of those that fail or break off.
    pub(crate) slow: f64,
    pub(crate) failing: f64,
}

impl Health {
    pub(crate) const GOOD: Self = Self {
        delay: Duration::from_millis(40),
        slow: 0.0,
        failing: 0.0,
    };
    pub(crate) const BAD: Self = Self {
        delay: Duration::from_millis(150),
        slow: 0.02,
        failing: 0.05,
    };
}

/// The objects.
#[derive(Clone, Debug)]
pub(crate) struct Bucket(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    health: Health,
    time: TrueTime,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    random: SmallRng,
    /// The version and the size of each.
    objects: BTreeMap<String, (u64, u64)>,
    /// Requests for each version that were answered: by whom, when, and for which bytes.
    sent: BTreeMap<(String, String), Vec<Sent>>,
    is_away: bool,
    /// When it was away last.
    away: Option<Duration>,
}

impl Bucket {
    /// So many objects of each dataset.
    pub(crate) fn new(
        seed: u64,
        datasets: &[&str],
        objects: usize,
        health: Health,
        time: TrueTime,
    ) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let keys = datasets
            .iter()
            .flat_map(|dataset| (0..objects).map(move |number| format!("{dataset}/{number}")));
        let objects = keys.map(|key| (key, (1, random.random_range(1..3000))));
        let objects = objects.collect();
        Self(Arc::new(Inner {
            health,
            time,
            state: Mutex::new(State {
                random,
                objects,
                sent: BTreeMap::new(),
                is_away: false,
                away: None,
            }),
        }))
    }

    /// What reads it, and nothing else, whatever a source is called.
    pub(crate) fn policy(&self) -> SourcePolicy {
        let bucket = self.clone();
        SourcePolicy::simulated(move |spec: &OriginSpec| {
            Arc::new(Access {
                id: spec.id(),
                bucket: bucket.clone(),
            })
        })
    }

    /// Puts another version in the place of an object of a dataset.
    pub(crate) fn replace_one(&self, dataset: &str) {
        let mut state = self.0.state.lock();
        let State {
            random, objects, ..
        } = &mut *state;
        let below = format!("{dataset}/");
        let of_dataset = objects
            .iter_mut()
            .filter(|(key, _)| key.starts_with(&below));
        let mut of_dataset: Vec<_> = of_dataset.collect();
        let chosen = random.random_range(0..of_dataset.len());
        let (version, size) = &mut *of_dataset[chosen].1;
        *version += 1;
        *size = random.random_range(1..3000);
    }

    /// Whether an object is still of this version.
    pub(crate) fn is_current(&self, object: &ObjectRef) -> bool {
        let state = self.0.state.lock();
        let known = state.objects.get(&*object.key);
        known.is_some_and(|(version, _)| *object.version == version.to_string())
    }

    /// Nothing is to be had of it from now on, or all is again.
    pub(crate) fn set_away(&self, is_away: bool) {
        let mut state = self.0.state.lock();
        state.is_away = is_away;
        state.away = Some(self.0.time.now());
    }

    /// Whether it was away at any time since.
    pub(crate) fn was_away_since(&self, since: Duration) -> bool {
        let state = self.0.state.lock();
        state.is_away || state.away.is_some_and(|away| away >= since)
    }

    /// The requests that were answered more than once for an object's version.
    pub(crate) fn sent_again(&self) -> Vec<String> {
        let state = self.0.state.lock();
        let again = state.sent.iter().filter(|(_, sent)| sent.len() > 1);
        let again = again.map(|((key, version), sent)| {
            let each: Vec<String> = sent.iter().map(ToString::to_string).collect();
            format!("{key}@{version}: {}", each.join(", "))
        });
        again.collect()
    }

    fn unavailable(key: &str, detail: &str) -> OriginError {
        OriginError::Unavailable {
            target: format!("{NAME}/{key}").into(),
            detail: detail.to_owned(),
        }
    }
}

/// A request that was answered.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    to: String,
    at: Duration,
    range: Range<u64>,
}

impl std::fmt::Display for Sent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} to {} at {:?}", self.range, self.to, self.at)
    }
}

/// The bucket, as one source has it.
#[derive(Debug)]
struct Access {
    id: OriginId,
    bucket: Bucket,
}

#[async_trait]
impl Origin for Access {
    fn id(&self) -> OriginId {
        self.id
    }

    fn kind(&self) -> &'static str {
        "s3"
    }

    fn describe(&self) -> &'static str {
        NAME
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<Vec<Listed>, OriginError>> {
        let prefix = prefix.to_owned();
        let page = async move {
            sleep(self.bucket.0.health.delay).await;
            let state = self.bucket.0.state.lock();
            if state.is_away {
                return Err(Bucket::unavailable(&prefix, "away"));
            }
            let listed = state
                .objects
                .iter()
                .filter(|(key, _)| key.starts_with(&prefix));
            let listed = listed.map(|(key, (version, size))| Listed {
                key: key.clone().into_bytes(),
                size: *size,
                mtime_ns: 1,
                version: version.to_string(),
                hindrance: None,
            });
            Ok(listed.collect())
        };
        stream::once(page).boxed()
    }

    async fn get(&self, object: &ObjectRef, range: Range<u64>) -> Result<Fetched, OriginError> {
        let Inner { health, state, .. } = &*self.bucket.0;
        let (delay, breaks_off) = {
            let mut state = state.lock();
            let usual = health.delay.mul_f64(state.random.random_range(0.1..1.0));
            let slow = state.random.random_bool(health.slow);
            let delay = if slow { 40 * health.delay } else { usual };
            (delay, state.random.random_bool(health.failing))
        };
        sleep(delay).await;
        {
            let mut state = state.lock();
            if state.is_away {
                return Err(Bucket::unavailable(&object.key, "away"));
            }
            let is_same = state
                .objects
                .get(&*object.key)
                .is_some_and(|(version, size)| {
                    *object.version == version.to_string() && *size == object.size
                });
            if !is_same {
                return Err(OriginError::Changed {
                    origin: NAME.into(),
                    key: object.key.clone(),
                });
            }
            let version = (object.key.to_string(), object.version.to_string());
            let sent = Sent {
                to: host(),
                at: self.bucket.0.time.now(),
                range: range.clone(),
            };
            state.sent.entry(version).or_default().push(sent);
        }
        let content = content(&object.key, &object.version, object.size);
        let bytes = Bytes::from(content).slice(range.start as usize..range.end as usize);
        let half = bytes.len() / 2;
        let key = object.key.clone();
        let pieces = [Ok(bytes.slice(..half)), Ok(bytes.slice(half..))];
        let body = stream::iter(pieces)
            .enumerate()
            .then(move |(number, piece)| {
                let broken =
                    (breaks_off && number > 0).then(|| Bucket::unavailable(&key, "broken"));
                async move {
                    sleep(delay / 4).await;
                    broken.map_or(piece, Err)
                }
            });
        // Pieces are never empty.
        let body = body.try_filter(|piece| std::future::ready(!piece.is_empty()));
        Ok(Fetched {
            range,
            body: body.boxed(),
            digest: None,
        })
    }
}
