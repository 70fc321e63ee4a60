//! What requests are authorised with: keys and tokens that are found, kept, and renewed.
//!
//! They come from the environment, a file, a program or a service; an [`Issuer`] knows which. Whoever
//! needs them waits at most for a deadline: loading happens on the process's own runtime, once at a time however many
//! wait for it, and what expires is renewed before it does, while the old is still in use.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use super::calls::Refused;
use crate::error::OriginError;

/// Longest time that loading may take: a program's deadline, or those of a few services in a row. Whoever reads waits no longer
/// for one attempt, and then, by the origin's patience, maybe for others; keys that are still good are used meanwhile.
const LOAD_DEADLINE: Duration = Duration::from_secs(20);
/// How long a failure, and that no other keys were found, counts for those who come after.
const FAILED_FOR: Duration = Duration::from_secs(2);
/// Keys are renewed so long before they expire, but not before half their life is over.
const RENEW_BEFORE: Duration = Duration::from_mins(5);
/// For keys of a service that do not tell how long they last, or have expired by this machine's clock alone.
const SERVICE_RENEWED_AFTER: Duration = Duration::from_secs(30);
const SERVICE_STALE_AFTER: Duration = Duration::from_secs(150);
/// With how many other keys one request is made again: they may change once more meanwhile.
const MAX_RENEWALS: u32 = 3;

/// Knows where the keys of one origin come from, and gets them there.
pub(crate) trait Issuer: Send + Sync + 'static {
    /// What requests are authorised with.
    type Key: PartialEq + Send + Sync + 'static;
    /// A place where it comes from.
    type Source: Clone + Send + Sync + 'static;

    /// Finds out where the keys come from. Reads variables and files, and asks nobody; may block for a moment.
    fn find(&self) -> Result<Self::Source, OriginError>;

    /// The keys that are written down there, for which nobody has to wait.
    fn fixed(source: &Self::Source) -> Option<&Arc<Self::Key>>;

    /// Gets the keys, and how long they live if that is known.
    fn load(
        &self,
        source: &Self::Source,
    ) -> impl Future<Output = Result<(Self::Key, Option<Duration>), Refused>> + Send;

    /// Whether keys that do not tell how long they last must be asked for again soon.
    fn changes(source: &Self::Source) -> bool;

    /// The origin in messages.
    fn target(&self) -> &Arc<str>;

    /// What to do when there are none.
    fn remedy(&self) -> &'static str;
}

/// The keys of one origin.
pub(crate) struct Renewed<I: Issuer> {
    inner: Arc<Inner<I>>,
}

struct Inner<I: Issuer> {
    issuer: I,
    /// Where loading happens: a service's client keeps connections, which belong to one runtime.
    home: Handle,
    state: Mutex<State<I>>,
}

struct State<I: Issuer> {
    source: I::Source,
    keys: Option<Loaded<I::Key>>,
    /// Loading under way.
    flight: Option<Flight<I::Key>>,
    failed: Option<(Instant, OriginError)>,
    /// When keys that the origin had refused were found again.
    no_others: Option<Instant>,
}

type Outcome<K> = Result<Arc<K>, OriginError>;
type Flight<K> = Shared<BoxFuture<'static, Outcome<K>>>;

struct Loaded<K> {
    credential: Arc<K>,
    /// From when on they are renewed in the background, and from when on they are not used any more.
    lasts: Option<(Instant, Instant)>,
}

impl<I: Issuer> Renewed<I> {
    /// Finds out where keys come from, without waiting for them. Fails on settings that make no sense. Call inside
    /// the process's own runtime.
    pub(crate) fn find(issuer: I) -> Result<Self, OriginError> {
        let state = State {
            source: issuer.find()?,
            keys: None,
            flight: None,
            failed: None,
            no_others: None,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                issuer,
                home: Handle::current(),
                state: Mutex::new(state),
            }),
        })
    }

    /// Keys that have not expired as far as is known.
    pub(crate) async fn get(&self) -> Outcome<I::Key> {
        let flight = {
            let mut state = self.inner.state.lock();
            if let Some(credential) = I::fixed(&state.source) {
                return Ok(credential.clone());
            }
            let now = Instant::now();
            let failed = state
                .failed
                .clone()
                .filter(|(at, _)| now < *at + FAILED_FOR);
            if let Some(Loaded { credential, lasts }) = &state.keys
                && lasts.is_none_or(|(_, stale)| now < stale)
            {
                let (credential, lasts) = (credential.clone(), *lasts);
                if lasts.is_some_and(|(renew, _)| now >= renew) && failed.is_none() {
                    drop(self.inner.start(&mut state));
                }
                return Ok(credential);
            }
            if let Some((_, error)) = failed {
                return Err(error);
            }
            self.inner.start(&mut state)
        };
        self.inner.wait(flight).await
    }

    /// Has the keys loaded from the beginning after the origin has refused `refused`. Gives whether there are others now.
    pub(crate) async fn renew(&self, refused: &I::Key) -> Result<bool, OriginError> {
        loop {
            let (flight, was_under_way) = {
                let mut state = self.inner.state.lock();
                let loaded = || state.keys.as_ref().map(|keys| &keys.credential);
                let current = I::fixed(&state.source).or_else(loaded);
                if current.is_some_and(|current| **current != *refused) {
                    return Ok(true); // others were sooner
                }
                let now = Instant::now();
                if state.no_others.is_some_and(|at| now < at + FAILED_FOR) {
                    return Ok(false);
                }
                let was_under_way = state.flight.is_some();
                (self.inner.start(&mut state), was_under_way)
            };
            let found = self.inner.wait(flight).await?;
            if *found != *refused {
                return Ok(true);
            }
            // Loading that began before the refusal may have been too soon.
            if !was_under_way {
                self.inner.state.lock().no_others = Some(Instant::now());
                return Ok(false);
            }
        }
    }
}

impl<I: Issuer> Inner<I> {
    /// Begins to load from the beginning, which looks into the files again, or joins those who wait for it.
    fn start(self: &Arc<Self>, state: &mut State<I>) -> Flight<I::Key> {
        if let Some(flight) = &state.flight {
            return flight.clone();
        }
        let inner = self.clone();
        let had_keys = state.keys.is_some();
        let task = self.home.spawn(async move {
            let loaded = timeout(LOAD_DEADLINE, inner.load(had_keys));
            // A panic must not leave those who come later waiting for it.
            let loaded = match AssertUnwindSafe(loaded).catch_unwind().await {
                Ok(Ok(loaded)) => loaded,
                Ok(Err(_)) => Err(inner.late(LOAD_DEADLINE)),
                Err(_) => Err(inner.none("loading them failed")),
            };
            let mut state = inner.state.lock();
            state.flight = None;
            match loaded {
                Ok((source, loaded)) => {
                    let credential = loaded.credential.clone();
                    state.source = source;
                    state.keys = Some(loaded);
                    state.failed = None;
                    Ok(credential)
                }
                Err(error) => {
                    tracing::warn!(%error, "no credentials could be loaded");
                    state.failed = Some((Instant::now(), error.clone()));
                    Err(error)
                }
            }
        });
        let inner = self.clone();
        let flight = task
            .map(move |done| {
                done.unwrap_or_else(|_| Err(inner.none("loading them was interrupted")))
            })
            .boxed()
            .shared();
        state.flight = Some(flight.clone());
        flight
    }

    /// The deadline is kept by the caller's own runtime, too, whatever becomes of the other.
    async fn wait(&self, flight: Flight<I::Key>) -> Outcome<I::Key> {
        let limit = LOAD_DEADLINE + Duration::from_secs(1);
        let outcome = timeout(limit, flight).await;
        outcome.unwrap_or_else(|_| Err(self.late(limit)))
    }

    /// `had_keys` is whether there were any before: then a service that does not answer is one that does not answer now.
    async fn load(
        self: &Arc<Self>,
        had_keys: bool,
    ) -> Result<(I::Source, Loaded<I::Key>), OriginError> {
        let inner = self.clone();
        let found = self.home.spawn_blocking(move || inner.issuer.find()).await;
        let source = found.unwrap_or_else(|_| Err(self.none("loading them was interrupted")))?;
        if let Some(credential) = I::fixed(&source) {
            let credential = credential.clone();
            let lasts = None;
            return Ok((source, Loaded { credential, lasts }));
        }
        let target = self.issuer.target();
        let loaded = self.issuer.load(&source).await;
        let (keys, life) = loaded.map_err(|refused| match refused {
            Refused::Error(error) => error,
            Refused::Denied(detail, remedy) => OriginError::AccessDenied {
                target: target.clone(),
                detail,
                remedy,
            },
            Refused::Absent(detail) if !had_keys => {
                self.none(&format!("no credentials were found: {detail}"))
            }
            Refused::Absent(detail) | Refused::Unavailable(detail) => OriginError::Unavailable {
                target: target.clone(),
                detail,
            },
        })?;
        let lasts = match life {
            Some(life) if !life.is_zero() => Some(until(life)),
            _ if I::changes(&source) => {
                let now = Instant::now();
                Some((now + SERVICE_RENEWED_AFTER, now + SERVICE_STALE_AFTER))
            }
            _ => None,
        };
        let credential = Arc::new(keys);
        Ok((source, Loaded { credential, lasts }))
    }

    /// What gives the keys is slow, or hangs: another attempt may succeed.
    fn late(&self, limit: Duration) -> OriginError {
        let detail = format!("what gives the credentials gave none within {limit:?}");
        OriginError::Unavailable {
            target: self.issuer.target().clone(),
            detail,
        }
    }

    fn none(&self, detail: &str) -> OriginError {
        OriginError::AccessDenied {
            target: self.issuer.target().clone(),
            detail: detail.to_owned(),
            remedy: self.issuer.remedy(),
        }
    }
}

impl<I: Issuer> std::fmt::Debug for Renewed<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Renewed(…)")
    }
}

/// The keys of one request, which is made again with others if they are refused.
pub(crate) struct RequestKeys<'a, I: Issuer> {
    /// `None` when requests are not authorised.
    keys: Option<&'a Renewed<I>>,
    used: Option<Arc<I::Key>>,
    renewals: u32,
}

impl<'a, I: Issuer> RequestKeys<'a, I> {
    /// Of a request that has not been made yet.
    pub(crate) fn of(keys: Option<&'a Renewed<I>>) -> Self {
        Self {
            keys,
            used: None,
            renewals: 0,
        }
    }

    /// Those to make it with.
    pub(crate) async fn get(&mut self) -> Result<Option<Arc<I::Key>>, OriginError> {
        if let Some(keys) = self.keys {
            self.used = Some(keys.get().await?);
        }
        Ok(self.used.clone())
    }

    /// Whether there are others, now that those it was made with were refused.
    pub(crate) async fn renew(&mut self) -> Result<bool, OriginError> {
        if self.renewals < MAX_RENEWALS
            && let (Some(keys), Some(refused)) = (self.keys, &self.used)
            && keys.renew(refused).await?
        {
            self.renewals += 1;
            return Ok(true);
        }
        Ok(false)
    }
}

/// When keys that live so long are renewed, and when they are gone.
fn until(life: Duration) -> (Instant, Instant) {
    let now = Instant::now();
    (now + life - RENEW_BEFORE.min(life / 2), now + life)
}

/// What tests change of the time that passes.
#[cfg(test)]
impl<I: Issuer> Renewed<I> {
    pub(crate) fn set_lasts(&self, renew: Instant, stale: Instant) {
        if let Some(keys) = &mut self.inner.state.lock().keys {
            keys.lasts = Some((renew, stale));
        }
    }

    pub(crate) fn set_keys(&self, credential: Arc<I::Key>, renew: Instant, stale: Instant) {
        let lasts = Some((renew, stale));
        self.inner.state.lock().keys = Some(Loaded { credential, lasts });
    }

    pub(crate) async fn loading(&self) -> Outcome<I::Key> {
        let flight = self.inner.state.lock().flight.clone();
        flight.unwrap().await
    }

    pub(crate) fn forget_failures(&self) {
        let mut state = self.inner.state.lock();
        (state.failed, state.no_others) = (None, None);
    }
}
