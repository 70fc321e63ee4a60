//! Which of several operators acts: the one that has the Lease.
//!
//! A holder that has not renewed the Lease for [`RENEW_DEADLINE`] stops acting; others wait [`LEASE`] from when they saw it renewed
//! last, by their own clocks. The first is shorter, so two never act at once. Each change of the Lease names the version that it
//! changes, and the apiserver refuses all but one.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How long a Lease holds that is not renewed.
pub(crate) const LEASE: Duration = Duration::from_secs(15);
/// How long its holder acts without having renewed it.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is renewed, and how often those look who wait for it.
const RENEW: Duration = Duration::from_secs(3);
/// How long nobody has the Lease after it was set aside, and who has it instead.
pub(crate) const SET_ASIDE: Duration = Duration::from_mins(1);
const NOBODY: &str = "retired";
const SET_ASIDE_TRIES: u32 = 10;
/// Longest wait for one call.
const CALL: Duration = Duration::from_secs(3);

/// One who wants the Lease.
#[derive(Clone)]
pub(crate) struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
}

/// What a candidate saw of the Lease last.
#[derive(Default)]
struct Watched {
    version: Option<String>,
    since: Option<Instant>,
}

/// The Lease is held, until `lost` is cancelled.
pub(crate) struct Held {
    candidate: Candidate,
    /// Cancelled when this process must not act any more.
    pub(crate) lost: CancellationToken,
    renewing: tokio::task::JoinHandle<()>,
}

impl Candidate {
    /// A candidate for the Lease `name`. `identity` is its own, and no other's, not even after a restart.
    pub(crate) fn new(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
        }
    }

    /// Waits for the Lease. Gives `None` when `stop` came first.
    pub(crate) async fn acquire(&self, stop: &CancellationToken) -> Option<Held> {
        let mut watched = Watched::default();
        let mut told = false;
        loop {
            let now = Instant::now();
            match timeout(CALL, self.try_acquire(&mut watched)).await {
                Ok(Ok(true)) => return Some(self.hold(now)),
                Ok(Ok(false)) if !told => {
                    told = true;
                    tracing::info!(lease = %self.name, "another operator leads; this one waits");
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(lease = %self.name, %error, "the Lease cannot be had");
                }
                Err(_) => tracing::warn!(lease = %self.name, "the apiserver does not answer"),
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(RENEW) => {}
            }
        }
    }

    /// Takes or renews the Lease if that can be done now.
    async fn try_acquire(&self, watched: &mut Watched) -> Result<bool, kube::Error> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            return Ok(self.write(None).await?.is_some());
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if !holder.is_empty() && holder != self.identity {
            let version = lease.metadata.resource_version.clone();
            if watched.since.is_none() || watched.version != version {
                watched.version = version;
                watched.since = Some(Instant::now());
                return Ok(false);
            }
            // What the holder says of itself, as far as it is no shorter than what this one would hold it for.
            let seconds = spec.lease_duration_seconds.unwrap_or_default();
            let said = Duration::from_secs(u64::try_from(seconds).unwrap_or_default().min(300));
            if watched
                .since
                .is_some_and(|since| since.elapsed() < said.max(LEASE))
            {
                return Ok(false);
            }
        }
        Ok(self.write(Some(&lease)).await?.is_some())
    }

    /// Writes the Lease with this candidate as its holder; `None` if somebody else was faster, which is no error.
    async fn write(&self, before: Option<&Lease>) -> Result<Option<Lease>, kube::Error> {
        let (wanted, params) = (self.lease(before), PostParams::default());
        let written = match before {
            None => self.api.create(&params, &wanted).await,
            Some(_) => self.api.replace(&self.name, &params, &wanted).await,
        };
        match written {
            Ok(lease) => Ok(Some(lease)),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The Lease with this candidate as its holder.
    fn lease(&self, before: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let spec = before
            .and_then(|before| before.spec.clone())
            .unwrap_or_default();
        let is_renewed = spec.holder_identity.as_ref() == Some(&self.identity);
        let metadata = before.map_or_else(
            || ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            |before| before.metadata.clone(),
        );
        let transitions = spec.lease_transitions.unwrap_or_default();
        Lease {
            metadata,
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(LEASE.as_secs() as i32),
                acquire_time: if is_renewed {
                    spec.acquire_time
                } else {
                    Some(now.clone())
                },
                renew_time: Some(now),
                lease_transitions: Some(transitions + i32::from(!is_renewed && before.is_some())),
                ..LeaseSpec::default()
            }),
        }
    }

    fn hold(&self, renewed: Instant) -> Held {
        let lost = CancellationToken::new();
        let (candidate, told) = (self.clone(), lost.clone());
        // However the task ends, even before it began.
        let ending = lost.clone().drop_guard();
        let renewing = tokio::spawn(async move {
            let _ending = ending;
            candidate.renew(renewed, &told).await;
        });
        Held {
            candidate: self.clone(),
            lost,
            renewing,
        }
    }

    /// Renews the Lease until it is lost.
    async fn renew(&self, mut renewed: Instant, lost: &CancellationToken) {
        let mut ours = None;
        loop {
            tokio::select! {
                () = lost.cancelled() => return,
                () = tokio::time::sleep(RENEW) => {}
            }
            let now = Instant::now();
            match timeout(CALL, self.try_renew(&mut ours)).await {
                Ok(Ok(true)) => renewed = now,
                Ok(Ok(false)) => {
                    tracing::error!(lease = %self.name, "another operator has taken the Lease");
                    return;
                }
                Ok(Err(error)) => {
                    tracing::warn!(lease = %self.name, %error, "the Lease is not renewed");
                }
                Err(_) => tracing::warn!(lease = %self.name, "the apiserver does not answer"),
            }
            // The next try may take so long again.
            if renewed.elapsed() + CALL > RENEW_DEADLINE {
                tracing::error!(lease = %self.name, "the Lease could not be renewed in time");
                return;
            }
        }
    }

    /// Renews it; false if somebody else has it. `ours` is what it was when this one has written it last: as long as nobody else has
    /// changed it since, one request is enough.
    async fn try_renew(&self, ours: &mut Option<Lease>) -> Result<bool, kube::Error> {
        if let Some(before) = ours.take() {
            let renewed = self.lease(Some(&before));
            let params = PostParams::default();
            match self.api.replace(&self.name, &params, &renewed).await {
                Ok(lease) => {
                    *ours = Some(lease);
                    return Ok(true);
                }
                // Changed, or deleted. Whose it is now is looked at.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => return Err(error),
            }
        }
        let before = self.api.get_opt(&self.name).await?;
        let spec = before.as_ref().and_then(|lease| lease.spec.as_ref());
        let holder = spec.and_then(|spec| spec.holder_identity.as_ref());
        if holder.is_some_and(|holder| *holder != self.identity) {
            return Ok(false);
        }
        *ours = self.write(before.as_ref()).await?;
        Ok(ours.is_some())
    }

    /// Gives the Lease back, so that another one needs not wait.
    async fn release(&self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            return Ok(());
        };
        let Some(spec) = &mut lease.spec else {
            return Ok(());
        };
        if spec.holder_identity.as_ref() != Some(&self.identity) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        self.api
            .replace(&self.name, &PostParams::default(), &lease)
            .await?;
        Ok(())
    }
}

impl Held {
    /// Gives the Lease back. Nothing may act under it any more.
    pub(crate) async fn release(self) {
        self.lost.cancel();
        let _ = self.renewing.await;
        match timeout(CALL, self.candidate.release()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the Lease was not given back"),
            Err(_) => tracing::warn!("the Lease was not given back: the apiserver does not answer"),
        }
    }
}

/// Takes the Lease from whoever has it, for nobody. Who has had it stops acting within [`LEASE`], and nobody gets it for
/// [`SET_ASIDE`].
pub(crate) async fn set_aside(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<(), kube::Error> {
    let nobody = Candidate::new(client.clone(), namespace, name, NOBODY.to_owned());
    let mut tries = 0;
    loop {
        let before = nobody.api.get_opt(name).await?;
        let mut lease = nobody.lease(before.as_ref());
        if let Some(spec) = &mut lease.spec {
            spec.lease_duration_seconds = Some(SET_ASIDE.as_secs() as i32);
        }
        let params = PostParams::default();
        let written = match before {
            None => nobody.api.create(&params, &lease).await,
            Some(_) => nobody.api.replace(name, &params, &lease).await,
        };
        tries += 1;
        match written {
            // Its holder has renewed it at this moment, and does so every few seconds.
            Err(kube::Error::Api(status)) if status.code == 409 && tries < SET_ASIDE_TRIES => {}
            written => return written.map(drop),
        }
    }
}

/// An identity that no other process has.
pub(crate) fn identity(pod: &str) -> String {
    use std::hash::{BuildHasher, RandomState};
    format!(
        "{pod}_{:016x}",
        RandomState::new().hash_one(std::process::id())
    )
}

/// Makes sure that what is shared by all candidates stays so.
const _: () = assert!(RENEW_DEADLINE.as_secs() < LEASE.as_secs());
const _: () = assert!(LEASE.as_secs() < SET_ASIDE.as_secs());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeApi;

    #[tokio::test(start_paused = true)]
    async fn one_leads_at_a_time_and_the_next_when_that_is_over() {
        let (client, _api) = FakeApi::start();
        let candidate =
            |name: &str| Candidate::new(client.clone(), "weir-system", "l", name.to_owned());
        let stop = CancellationToken::new();
        let first = candidate("a").acquire(&stop).await.unwrap();
        let other = candidate("b");
        let waits = tokio::time::timeout(10 * LEASE, other.acquire(&stop)).await;
        assert!(waits.is_err(), "the first one renews it");
        assert!(!first.lost.is_cancelled());
        first.release().await;
        let began = Instant::now();
        let second = other.acquire(&stop).await.unwrap();
        assert!(began.elapsed() < LEASE, "it was given back");
        // One that does not renew it any more loses it.
        second.renewing.abort();
        let third = candidate("c").acquire(&stop).await.unwrap();
        assert!(second.lost.is_cancelled());
        assert!(!third.lost.is_cancelled());
        stop.cancel();
        assert!(candidate("d").acquire(&stop).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_renewed_by_one_request_until_somebody_else_changes_it() {
        let (client, api) = FakeApi::start();
        let path = "/apis/coordination.k8s.io/v1/namespaces/weir-system/leases/l";
        let candidate = Candidate::new(client, "weir-system", "l", "a".to_owned());
        let (mut ours, holder) = (None, || {
            api.get(path).unwrap()["spec"]["holderIdentity"].clone()
        });
        assert!(candidate.try_renew(&mut ours).await.unwrap(), "it is made");
        api.refuse(&format!("GET {path}"), 500);
        for _ in 0..3 {
            assert!(candidate.try_renew(&mut ours).await.unwrap(), "no look");
        }
        api.refuse(&format!("GET {path}"), 0);
        // Somebody wrote a note on it.
        let lease = api.get(path).unwrap();
        api.put(path, lease);
        assert!(candidate.try_renew(&mut ours).await.unwrap());
        api.remove(path);
        assert!(candidate.try_renew(&mut ours).await.unwrap());
        assert_eq!(holder(), "a");
        let mut lease = api.get(path).unwrap();
        lease["spec"]["holderIdentity"] = serde_json::json!("b");
        api.put(path, lease);
        assert!(!candidate.try_renew(&mut ours).await.unwrap());
        assert_eq!(holder(), "b", "it is left to its holder");
        assert!(!candidate.try_renew(&mut ours).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_renew_it_stops_before_others_begin() {
        let (client, api) = FakeApi::start();
        let path = "/apis/coordination.k8s.io/v1/namespaces/weir-system/leases/l";
        let stop = CancellationToken::new();
        let held = Candidate::new(client, "weir-system", "l", "a".to_owned());
        let held = held.acquire(&stop).await.unwrap();
        api.refuse(path, 500);
        let began = Instant::now();
        held.lost.cancelled().await;
        assert!(began.elapsed() < LEASE);
    }
}
