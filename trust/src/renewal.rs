//! A certificate that is asked for, kept in a directory, and asked for again before it ends.
//!
//! Processes look at the files again when they have changed, so nothing is restarted. While nobody signs, the certificate that is
//! there stays in use until it ends.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use rand::Rng;
use tokio::time::{Instant, sleep, timeout};

use crate::authority::{CA_CERT, Issued, read, trusted_in, write_authorities};
use crate::error::{SignError, TrustError};
use crate::identity::Identity;
use crate::request::Request;
use crate::subject::Peer;

/// The name in the certificate of whoever signs, which has the role `admin`: the operator's.
pub const SIGNER: &str = "weir-operator";
/// Longest wait for one answer.
const ASK_DEADLINE: Duration = Duration::from_secs(15);
/// Waits between two questions while there is no certificate: doubling, up to this.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const MAX_FIRST_WAIT: Duration = Duration::from_secs(10);
/// The same while there is one.
const RETRY: Duration = Duration::from_secs(5);
const MAX_RETRY: Duration = Duration::from_mins(10);
/// How often the authorities and the clock are looked at.
const LOOK: Duration = Duration::from_secs(30);

/// Whoever signs certificates.
pub trait Signer: Send + Sync + 'static {
    /// Signs a certificate for the key of a request.
    fn sign<'a>(&'a self, request: &'a [u8]) -> BoxFuture<'a, Result<Issued, SignError>>;

    /// The authorities that are to be trusted now, in PEM, where that is known without asking.
    fn authorities(&self) -> Option<String>;
}

/// How often a certificate was asked for since the process began.
#[derive(Debug, Default)]
pub struct Renewals {
    /// Certificates that were signed.
    pub signed: AtomicU64,
    /// Times that there was none.
    pub failed: AtomicU64,
}

/// A certificate in a directory that is renewed.
pub struct Renewal {
    dir: PathBuf,
    signer: Arc<dyn Signer>,
    renewals: Arc<Renewals>,
    /// When it is asked for next.
    due: SystemTime,
}

impl Renewal {
    /// Sees to it that there is a certificate: the one that is there, if it can be used, else one that is asked for.
    ///
    /// # Errors
    /// When there is none within `patience`, or it is refused.
    pub async fn start(
        dir: &Path,
        signer: Arc<dyn Signer>,
        patience: Duration,
    ) -> Result<Self, TrustError> {
        let mut renewal = Self {
            dir: dir.to_owned(),
            signer,
            renewals: Arc::default(),
            // One of an earlier process may be of another address than this one has.
            due: SystemTime::now(),
        };
        if !is_usable(dir) {
            let peer = renewal.first(patience).await?;
            renewal.due = due(&peer);
        }
        Ok(renewal)
    }

    async fn first(&self, patience: Duration) -> Result<Peer, TrustError> {
        let end = Instant::now() + patience;
        let mut wait = FIRST_WAIT;
        loop {
            let reason = match self.ask().await {
                Ok(peer) => return Ok(peer),
                Err(reason) => reason,
            };
            let pause = jittered(wait);
            if matches!(reason, SignError::Refused(_)) || Instant::now() + pause >= end {
                let dir = self.dir.clone();
                return Err(TrustError::Unsigned { dir, reason });
            }
            tracing::warn!(again_in = ?pause, "there is no certificate yet: {reason}");
            sleep(pause).await;
            wait = (wait * 2).min(MAX_FIRST_WAIT);
        }
    }

    /// How often it was asked for.
    pub fn renewals(&self) -> &Arc<Renewals> {
        &self.renewals
    }

    /// Renews it when a third of its life is left, and has the directory trust the authorities of the day. Does so for ever.
    pub async fn run(&self) -> Infallible {
        let (mut due_at, mut wait) = (self.due, RETRY);
        let mut not_before = Instant::now();
        loop {
            if SystemTime::now() >= due_at && Instant::now() >= not_before {
                match self.ask().await {
                    Ok(peer) => (due_at, wait) = (due(&peer), RETRY),
                    Err(reason) => {
                        let pause = jittered(wait);
                        tracing::warn!(again_in = ?pause, "the certificate is not renewed: {reason}");
                        not_before = Instant::now() + pause;
                        wait = (wait * 2).min(MAX_RETRY);
                    }
                }
            }
            if let Err(error) = self.trust() {
                tracing::warn!("the authorities stay as they are: {error}");
            }
            let left = due_at.duration_since(SystemTime::now());
            let left = left.unwrap_or_else(|_| not_before.duration_since(Instant::now()));
            sleep(left.clamp(Duration::from_millis(100), LOOK)).await;
        }
    }

    async fn ask(&self) -> Result<Peer, SignError> {
        let asked = async {
            let away = |error: TrustError| SignError::Away(error.to_string());
            let request = Request::new().map_err(away)?;
            let issued = timeout(ASK_DEADLINE, self.signer.sign(request.der())).await;
            let late = || SignError::Away(format!("no answer within {ASK_DEADLINE:?}"));
            let issued = issued.map_err(|_| late())??;
            request.keep(&issued, &self.dir).map_err(away)
        };
        let outcome = asked.await;
        let count = match &outcome {
            Ok(peer) => {
                tracing::info!(subject = %peer.subject, dir = %self.dir.display(), "a certificate was signed");
                &self.renewals.signed
            }
            Err(_) => &self.renewals.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
        outcome
    }

    /// Has the directory trust what is to be trusted now: an authority must be known everywhere before it signs.
    fn trust(&self) -> Result<(), TrustError> {
        let Some(authorities) = self.signer.authorities() else {
            return Ok(());
        };
        if authorities == read(&self.dir.join(CA_CERT))? {
            return Ok(());
        }
        // The certificate that is there must stay one that others take.
        Identity::would_trust(&self.dir, &authorities)?;
        write_authorities(&self.dir, &authorities)?;
        for authority in trusted_in(&self.dir)? {
            tracing::info!(name = authority.name, "an authority is trusted");
        }
        Ok(())
    }
}

/// When a certificate is renewed: when a third of its life is left, and not with all the others that were signed at the same time.
fn due(peer: &Peer) -> SystemTime {
    let life = peer.life();
    let before = life / 3 + (life / 10).mul_f64(rand::rng().random::<f64>());
    peer.expires.checked_sub(before).unwrap_or(peer.begins)
}

fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.5..1.0))
}

/// Whether a directory holds a certificate that others take.
fn is_usable(dir: &Path) -> bool {
    Identity::load(dir).is_ok_and(|identity| !identity.peer().time_left().is_zero())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use parking_lot::Mutex;

    use super::*;
    use crate::authority::{Authority, Validity};
    use crate::requested::RequestedKey;
    use crate::subject::{Role, Subject};

    const PATIENCE: Duration = Duration::from_mins(1);

    /// Signs when it is not told to fail.
    struct Desk {
        ca: PathBuf,
        fails: Mutex<Option<SignError>>,
        asked: AtomicUsize,
    }

    impl Signer for Desk {
        fn sign<'a>(&'a self, request: &'a [u8]) -> BoxFuture<'a, Result<Issued, SignError>> {
            Box::pin(async move {
                self.asked.fetch_add(1, Ordering::Relaxed);
                if let Some(error) = self.fails.lock().clone() {
                    return Err(error);
                }
                let validity = Validity {
                    issued: Duration::from_hours(24),
                    ..Validity::default()
                };
                let authority = Authority::open(&self.ca, validity).unwrap();
                let key = RequestedKey::read(request).unwrap();
                let subject = Subject::new(Role::Worker, "w".parse().unwrap());
                Ok(authority.sign(&key, &subject, &[]).unwrap())
            })
        }

        fn authorities(&self) -> Option<String> {
            read(&self.ca.join(CA_CERT)).ok()
        }
    }

    struct World {
        dir: tempfile::TempDir,
        desk: Arc<Desk>,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let ca = dir.path().join("ca");
            Authority::init(&ca, Validity::default()).unwrap();
            let desk = Arc::new(Desk {
                ca,
                fails: Mutex::new(None),
                asked: AtomicUsize::new(0),
            });
            Self { dir, desk }
        }

        fn certs(&self) -> PathBuf {
            self.dir.path().join("certs")
        }

        fn asked(&self) -> usize {
            self.desk.asked.load(Ordering::Relaxed)
        }

        async fn start(&self) -> Result<Renewal, TrustError> {
            Renewal::start(&self.certs(), self.desk.clone(), PATIENCE).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_signs_may_come_later_and_a_refusal_is_told_at_once() {
        let world = World::new();
        *world.desk.fails.lock() = Some(SignError::Away("not there".to_owned()));
        let desk = world.desk.clone();
        let comes = async {
            sleep(PATIENCE / 2).await;
            *desk.fails.lock() = None;
        };
        let (renewal, ()) = tokio::join!(world.start(), comes);
        let renewal = renewal.unwrap();
        assert_eq!(renewal.renewals.signed.load(Ordering::Relaxed), 1);
        let left = renewal.due.duration_since(SystemTime::now()).unwrap();
        let third = Duration::from_hours(16);
        assert!(
            left < third && left + Duration::from_hours(4) > third,
            "{left:?}"
        );

        let refused = World::new();
        *refused.desk.fails.lock() = Some(SignError::Refused("not you".to_owned()));
        let error = refused.start().await.err().unwrap();
        assert!(error.to_string().ends_with("not you"), "{error}");
        assert_eq!(refused.asked(), 1);

        let away = World::new();
        *away.desk.fails.lock() = Some(SignError::Away("not there".to_owned()));
        let began = Instant::now();
        let error = away.start().await.err().unwrap();
        assert!(error.to_string().ends_with("not there"), "{error}");
        assert!(began.elapsed() <= PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_there_is_used_while_nobody_signs() {
        let world = World::new();
        world.start().await.unwrap();
        let before = Identity::load(&world.certs()).unwrap();
        *world.desk.fails.lock() = Some(SignError::Away("not there".to_owned()));
        let asked = world.asked();
        let renewal = world.start().await.unwrap();
        assert_eq!(world.asked(), asked, "nobody waits for an answer");
        let waiting = async {
            while world.asked() < asked + 3 {
                sleep(LOOK).await;
            }
            assert_eq!(
                Identity::load(&world.certs()).unwrap().peer(),
                before.peer()
            );
            *world.desk.fails.lock() = None;
            while renewal.renewals.signed.load(Ordering::Relaxed) == 0 {
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            never = renewal.run() => match never {},
            () = waiting => {}
        }
        // Between two looks it may have asked twice.
        assert!(renewal.renewals.failed.load(Ordering::Relaxed) >= 3);
        Identity::load(&world.certs()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_authority_is_trusted_before_it_signs_and_one_that_breaks_trust_is_not() {
        let world = World::new();
        let renewal = world.start().await.unwrap();
        let (ca, certs) = (world.desk.ca.clone(), world.certs());
        let trusts = |count: usize| {
            let certs = certs.clone();
            async move {
                while trusted_in(&certs).unwrap().len() != count {
                    sleep(LOOK).await;
                }
            }
        };
        let changes = async {
            // As a Secret is changed: first the authorities, later the key.
            let old_key = read(&ca.join("ca.key")).unwrap();
            Authority::rotate(&ca, Validity::default()).unwrap();
            std::fs::write(ca.join("ca.key"), old_key).unwrap();
            trusts(2).await;
            Authority::open(&ca, Validity::default()).unwrap();
            // One that knows nothing of the authority before would make the certificate that is there useless.
            let other = world.dir.path().join("other");
            Authority::init(&other, Validity::default()).unwrap();
            std::fs::copy(other.join(CA_CERT), ca.join(CA_CERT)).unwrap();
            sleep(LOOK * 3).await;
            assert_eq!(trusted_in(&certs).unwrap().len(), 2);
        };
        tokio::select! {
            never = renewal.run() => match never {},
            () = changes => {}
        }
        let error = Authority::open(&ca, Validity::default()).err().unwrap();
        assert!(error.to_string().contains("key of no authority"), "{error}");
    }
}
