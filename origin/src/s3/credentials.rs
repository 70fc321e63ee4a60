//! The keys that requests are signed with.
//!
//! They come from the environment, a profile, the program that a profile names, or a service ([`chain`]). Whoever
//! needs them waits at most for a deadline: loading happens on the process's own runtime, once at a time however many
//! wait for it, and keys that expire are renewed before they do, while the old ones are still in use.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use super::calls::{Calls, Refused};
use super::chain::{self, Source, Temporary};
use super::configuration::Configuration;
use super::environment::Environment;
use super::signature::Keys;
use super::trust::Trust;
use crate::error::OriginError;

/// Longest time that loading may take: a program's deadline, or those of a few services in a row.
const LOAD_DEADLINE: Duration = Duration::from_secs(20);
/// How long a failure, and that no other keys were found, counts for those who come after.
const FAILED_FOR: Duration = Duration::from_secs(2);
/// Keys are renewed so long before they expire, but not before half their life is over.
const RENEW_BEFORE: Duration = Duration::from_mins(5);
/// For keys of a service that do not tell how long they last, or have expired by this machine's clock alone.
const SERVICE_RENEWED_AFTER: Duration = Duration::from_secs(30);
const SERVICE_STALE_AFTER: Duration = Duration::from_secs(150);

/// How the keys of an origin are found.
pub(super) struct Settings {
    pub(super) profile: Option<String>,
    /// The bucket's.
    pub(super) region: Option<String>,
    /// The origin in messages.
    pub(super) name: Arc<str>,
}

/// The keys of one origin.
pub(super) struct Credentials {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    find: Box<Find>,
    /// Where loading happens: a service's client keeps connections, which belong to one runtime.
    home: Handle,
    state: Mutex<State>,
}

struct State {
    found: Found,
    keys: Option<Loaded>,
    /// Loading under way.
    flight: Option<Flight>,
    failed: Option<(Instant, OriginError)>,
    /// When keys that the origin had refused were found again.
    no_others: Option<Instant>,
}

/// Finds out where keys come from.
type Find = dyn Fn(&Settings) -> Result<Found, OriginError> + Send + Sync;
type Outcome = Result<Arc<Keys>, OriginError>;
type Flight = Shared<BoxFuture<'static, Outcome>>;

/// Where keys come from, and how the services are reached that they may come from.
#[derive(Clone)]
struct Found {
    source: Source,
    calls: Calls,
}

#[derive(Clone)]
struct Loaded {
    credential: Arc<Keys>,
    /// From when on they are renewed in the background, and from when on they are not used any more.
    lasts: Option<(Instant, Instant)>,
}

impl Credentials {
    /// Finds out where keys come from, without waiting for them. Fails on a profile that makes no sense. Call inside
    /// the process's own runtime.
    pub(super) fn find(settings: Settings) -> Result<Self, OriginError> {
        Self::of(
            settings,
            Box::new(|settings| Found::in_environment(settings, &Environment::of_process())),
        )
    }

    fn of(settings: Settings, find: Box<Find>) -> Result<Self, OriginError> {
        let state = State {
            found: find(&settings)?,
            keys: None,
            flight: None,
            failed: None,
            no_others: None,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                settings,
                find,
                home: Handle::current(),
                state: Mutex::new(state),
            }),
        })
    }

    /// Keys that have not expired as far as is known.
    pub(super) async fn get(&self) -> Outcome {
        let flight = {
            let mut state = self.inner.state.lock();
            if let Source::Fixed(credential) = &state.found.source {
                return Ok(credential.clone());
            }
            let now = Instant::now();
            let failed = state
                .failed
                .clone()
                .filter(|(at, _)| now < *at + FAILED_FOR);
            if let Some(Loaded { credential, lasts }) = state.keys.clone()
                && lasts.is_none_or(|(_, stale)| now < stale)
            {
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
    pub(super) async fn renew(&self, refused: &Keys) -> Result<bool, OriginError> {
        loop {
            let (flight, was_under_way) = {
                let mut state = self.inner.state.lock();
                let current = match (&state.found.source, &state.keys) {
                    (Source::Fixed(credential), _) => Some(credential),
                    (_, keys) => keys.as_ref().map(|keys| &keys.credential),
                };
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

impl Inner {
    /// Begins to load from the beginning, which looks into the files again, or joins those who wait for it.
    fn start(self: &Arc<Self>, state: &mut State) -> Flight {
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
                Ok(Err(_)) => Err(inner.none(&late(LOAD_DEADLINE))),
                Err(_) => Err(inner.none("loading them failed")),
            };
            let mut state = inner.state.lock();
            state.flight = None;
            match loaded {
                Ok((found, loaded)) => {
                    let credential = loaded.credential.clone();
                    state.found = found;
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
    async fn wait(&self, flight: Flight) -> Outcome {
        let limit = LOAD_DEADLINE + Duration::from_secs(1);
        let outcome = timeout(limit, flight).await;
        outcome.unwrap_or_else(|_| Err(self.none(&late(limit))))
    }

    /// `had_keys` is whether there were any before: then a service that does not answer is one that does not answer now.
    async fn load(self: &Arc<Self>, had_keys: bool) -> Result<(Found, Loaded), OriginError> {
        let inner = self.clone();
        let find = move || (inner.find)(&inner.settings);
        let found = self.home.spawn_blocking(find).await;
        let found = found.unwrap_or_else(|_| Err(self.none("loading them was interrupted")))?;
        if let Source::Fixed(credential) = &found.source {
            let credential = credential.clone();
            let lasts = None;
            return Ok((found, Loaded { credential, lasts }));
        }
        let target = &self.settings.name;
        let loaded = found.source.load(&found.calls, target).await;
        let Temporary { keys, life } = loaded.map_err(|refused| match refused {
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
            _ if found.source.changes() => {
                let now = Instant::now();
                Some((now + SERVICE_RENEWED_AFTER, now + SERVICE_STALE_AFTER))
            }
            _ => None,
        };
        let credential = Arc::new(keys);
        Ok((found, Loaded { credential, lasts }))
    }

    fn none(&self, detail: &str) -> OriginError {
        OriginError::AccessDenied {
            target: self.settings.name.clone(),
            detail: detail.to_owned(),
            remedy: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a --profile, or use --anonymous for a public bucket",
        }
    }
}

fn late(limit: Duration) -> String {
    format!("no credentials within {limit:?}")
}

/// When keys that live so long are renewed, and when they are gone.
fn until(life: Duration) -> (Instant, Instant) {
    let now = Instant::now();
    (now + life - RENEW_BEFORE.min(life / 2), now + life)
}

impl Found {
    fn in_environment(settings: &Settings, environment: &Environment) -> Result<Self, OriginError> {
        let (origin, named) = (&settings.name, settings.profile.as_deref());
        let configuration = Configuration::load(origin, named, environment)?;
        Ok(Self {
            source: chain::find(origin, named, settings.region.as_deref(), &configuration)?,
            calls: Calls::new(Trust::of(origin, &configuration), environment),
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
