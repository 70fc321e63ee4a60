//! The keys that requests are signed with.
//!
//! They come from the environment, a profile, the program that a profile names, or a service of the platform. Whoever
//! needs them waits at most for a deadline: loading happens on the process's own runtime, once at a time however many
//! wait for it, and keys that expire are renewed before they do, while the old ones are still in use.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared};
use http::HeaderValue;
use object_store::RetryConfig;
use object_store::aws::{AmazonS3Builder, AwsCredential, AwsCredentialProvider};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use super::environment::Environment;
use super::helper::Helper;
use super::profile::{self, Keys};
use crate::error::OriginError;

/// Longest wait for credentials from a metadata service.
const SERVICE_DEADLINE: Duration = Duration::from_secs(10);
/// Longest time that loading may take: a program's deadline, and some for reading files.
const LOAD_DEADLINE: Duration = Duration::from_secs(20);
/// How long a failure, and that no other keys were found, counts for those who come after.
const FAILED_FOR: Duration = Duration::from_secs(2);
/// Keys are renewed so long before they expire, but not before half their life is over.
const RENEW_BEFORE: Duration = Duration::from_mins(5);
/// A service's keys do not tell how long they last, but what it gives out lasts for some minutes. It keeps them, so
/// asking it again costs nothing mostly.
const SERVICE_RENEWED_AFTER: Duration = Duration::from_secs(30);
const SERVICE_STALE_AFTER: Duration = Duration::from_secs(150);

/// Where keys come from.
#[derive(Clone)]
enum Source {
    /// They are written down.
    Fixed(Arc<AwsCredential>),
    /// A program prints them.
    Helper(Arc<Helper>),
    /// A web identity, a container's or an instance's metadata service.
    Service(AwsCredentialProvider),
    /// Nowhere.
    Nothing,
}

/// How the keys of an origin are found.
pub(super) struct Settings {
    pub(super) profile: Option<String>,
    pub(super) region: String,
    pub(super) bucket: String,
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
    source: Source,
    keys: Option<Loaded>,
    /// Loading under way.
    flight: Option<Flight>,
    failed: Option<(Instant, OriginError)>,
    /// When keys that the origin had refused were found again.
    no_others: Option<Instant>,
}

/// Finds out where keys come from.
type Find = dyn Fn(&Settings) -> Result<Source, OriginError> + Send + Sync;
type Outcome = Result<Arc<AwsCredential>, OriginError>;
type Flight = Shared<BoxFuture<'static, Outcome>>;

#[derive(Clone)]
struct Loaded {
    credential: Arc<AwsCredential>,
    /// From when on they are renewed in the background, and from when on they are not used any more.
    lasts: Option<(Instant, Instant)>,
}

impl Credentials {
    /// Finds out where keys come from, without waiting for them. Fails on a profile that makes no sense. Call inside
    /// the process's own runtime.
    pub(super) fn find(settings: Settings) -> Result<Self, OriginError> {
        Self::of(
            settings,
            Box::new(|settings| Source::find(settings, &Environment::of_process())),
        )
    }

    fn of(settings: Settings, find: Box<Find>) -> Result<Self, OriginError> {
        let state = State {
            source: find(&settings)?,
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
            if let Source::Fixed(credential) = &state.source {
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
                    drop(self.inner.start(&mut state, false));
                }
                return Ok(credential);
            }
            if let Some((_, error)) = failed {
                return Err(error);
            }
            self.inner.start(&mut state, false)
        };
        self.inner.wait(flight).await
    }

    /// Has the keys loaded from the beginning after the origin has refused `refused`. Gives whether there are others now.
    pub(super) async fn renew(&self, refused: &AwsCredential) -> Result<bool, OriginError> {
        loop {
            let (flight, was_under_way) = {
                let mut state = self.inner.state.lock();
                let current = match (&state.source, &state.keys) {
                    (Source::Fixed(credential), _) => Some(credential),
                    (_, keys) => keys.as_ref().map(|keys| &keys.credential),
                };
                if current.is_some_and(|current| !are_same(current, refused)) {
                    return Ok(true); // others were sooner
                }
                let now = Instant::now();
                if state.no_others.is_some_and(|at| now < at + FAILED_FOR) {
                    return Ok(false);
                }
                let was_under_way = state.flight.is_some();
                (self.inner.start(&mut state, true), was_under_way)
            };
            let found = self.inner.wait(flight).await?;
            if !are_same(&found, refused) {
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

fn are_same(a: &AwsCredential, b: &AwsCredential) -> bool {
    (&a.key_id, &a.secret_key, &a.token) == (&b.key_id, &b.secret_key, &b.token)
}

impl Inner {
    /// Begins to load, or joins those who wait for it. `anew` looks into the files again.
    fn start(self: &Arc<Self>, state: &mut State, anew: bool) -> Flight {
        if let Some(flight) = &state.flight {
            return flight.clone();
        }
        let inner = self.clone();
        let source = state.source.clone();
        let task = self.home.spawn(async move {
            let loaded = timeout(LOAD_DEADLINE, inner.load(source, anew));
            // A panic must not leave those who come later waiting for it.
            let loaded = match AssertUnwindSafe(loaded).catch_unwind().await {
                Ok(Ok(loaded)) => loaded,
                Ok(Err(_)) => Err(inner.none(&late(LOAD_DEADLINE))),
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
    async fn wait(&self, flight: Flight) -> Outcome {
        let limit = LOAD_DEADLINE + Duration::from_secs(1);
        let outcome = timeout(limit, flight).await;
        outcome.unwrap_or_else(|_| Err(self.none(&late(limit))))
    }

    async fn load(
        self: &Arc<Self>,
        source: Source,
        anew: bool,
    ) -> Result<(Source, Loaded), OriginError> {
        let source = if anew {
            let inner = self.clone();
            let find = move || (inner.find)(&inner.settings);
            let found = self.home.spawn_blocking(find).await;
            found.unwrap_or_else(|_| Err(self.none("loading them was interrupted")))?
        } else {
            source
        };
        let (credential, lasts) = match &source {
            Source::Fixed(credential) => (credential.clone(), None),
            Source::Helper(helper) => {
                let (keys, expires) = helper.run(&self.settings.name).await?;
                (trimmed(keys), expires.map(until))
            }
            Source::Nothing => return Err(self.none("no credentials were found")),
            Source::Service(service) => {
                let answer = timeout(SERVICE_DEADLINE, service.get_credential()).await;
                let credential = answer
                    .map_err(|_| {
                        self.none(&format!(
                            "the metadata service gave {}",
                            late(SERVICE_DEADLINE)
                        ))
                    })?
                    .map_err(|_| self.none("no credentials were found"))?;
                let now = Instant::now();
                let lasts = (now + SERVICE_RENEWED_AFTER, now + SERVICE_STALE_AFTER);
                (credential, Some(lasts))
            }
        };
        Ok((source, Loaded { credential, lasts }))
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

impl Source {
    /// The keys of a profile that was asked for, else those of the environment, else those of the default profile,
    /// else what object_store finds: web identity, container, instance.
    fn find(settings: &Settings, environment: &Environment) -> Result<Self, OriginError> {
        let origin = &settings.name;
        let named = settings.profile.as_deref();
        let variables = (
            environment.get("AWS_ACCESS_KEY_ID"),
            environment.get("AWS_SECRET_ACCESS_KEY"),
        );
        if let (None, (Some(access_key), Some(secret_key))) = (named, variables) {
            let keys = Keys {
                access_key: access_key.to_owned(),
                secret_key: secret_key.to_owned(),
                token: environment.get("AWS_SESSION_TOKEN").map(str::to_owned),
            };
            return Ok(Self::Fixed(trimmed(keys)));
        }
        let profile = profile::load(origin, named, environment)?;
        let found = profile.map(|profile| profile.keys(origin)).transpose()?;
        match (found.flatten(), named) {
            (Some(profile::Found::Keys(keys)), _) => {
                return Ok(Self::Fixed(trimmed(keys)));
            }
            (Some(profile::Found::Helper(helper)), _) => {
                return Ok(Self::Helper(Arc::new(helper)));
            }
            (None, Some(name)) => {
                return Err(OriginError::config(
                    origin.clone(),
                    format!("the profile {name:?} has no keys"),
                    "add aws_access_key_id and aws_secret_access_key, or use the environment",
                ));
            }
            (None, None) => {}
        }
        check_container(environment, origin)?;
        if !asks_a_service(environment) {
            return Ok(Self::Nothing);
        }
        let impatient = RetryConfig {
            max_retries: 1,
            retry_timeout: SERVICE_DEADLINE,
            ..RetryConfig::default()
        };
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(&settings.bucket)
            .with_region(&settings.region)
            .with_retry(impatient)
            .build()
            .map_err(|error| {
                OriginError::config(
                    origin.clone(),
                    error.to_string(),
                    "check the AWS_* variables",
                )
            })?;
        Ok(Self::Service(store.credentials().clone()))
    }
}

/// Refuses a container's token that no request can carry, or that is not where it is looked for.
fn check_container(environment: &Environment, origin: &Arc<str>) -> Result<(), OriginError> {
    const FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
    const TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
    if environment
        .get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        .is_none()
    {
        return Ok(());
    }
    let refused = |problem: &str| {
        let remedy = format!("write the token alone into a file and name that in {FILE}");
        Err(OriginError::config(origin.clone(), problem, remedy))
    };
    match environment.get(FILE) {
        // One that cannot be read is told by who reads it.
        Some(path) => match std::fs::read(path) {
            Ok(token) if HeaderValue::from_bytes(&token).is_err() => refused(&format!(
                "the file that {FILE} names has a line break or another character that no token has"
            )),
            _ => Ok(()),
        },
        None if environment.get(TOKEN).is_some() => refused(&format!("{TOKEN} is not supported")),
        None => Ok(()),
    }
}

/// Whether there is a service that may have keys: an instance's can be turned off.
fn asks_a_service(environment: &Environment) -> bool {
    let has = |name| environment.get(name).is_some();
    let instance = environment.get("AWS_EC2_METADATA_DISABLED");
    instance.is_none_or(|off| !off.trim().eq_ignore_ascii_case("true"))
        || has("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        || has("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        || has("AWS_WEB_IDENTITY_TOKEN_FILE")
}

/// Keys as requests are signed with: files and secrets of Kubernetes like to end in a line break.
fn trimmed(keys: Keys) -> Arc<AwsCredential> {
    let trim = |value: String| value.trim().to_owned();
    Arc::new(AwsCredential {
        key_id: trim(keys.access_key),
        secret_key: trim(keys.secret_key),
        token: keys.token.map(trim).filter(|token| !token.is_empty()),
    })
}

#[cfg(test)]
mod tests;
