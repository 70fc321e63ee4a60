//! Credentials that sources name, as the master gives them.
//!
//! They are asked for anew whenever somebody wants them, at most once at a time for each name, and only memory holds them:
//! a process that is started while the master is away reads what is cached, and nothing from such a source. One that runs
//! goes on with those that it has.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use weir_core::{CredentialName, DatasetName};
use weir_origin::{Credential, CredentialError, CredentialSource};
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;

/// Longest wait for the master's answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait for others who ask for the same credentials, and then for the answer: two answers and some time.
const DEADLINE: Duration = Duration::from_secs(12);
/// Credentials that are known at once. Datasets name them, and those of a worker's are the master's to bound.
const MAX_KNOWN: usize = 10_000;

/// Asks the master for credentials.
pub struct MasterCredentials {
    fetch: Box<Fetch>,
    /// The dataset that is mounted, if this is a mount.
    dataset: Option<DatasetName>,
    known: Mutex<HashMap<CredentialName, Arc<tokio::sync::Mutex<Slot>>>>,
}

/// One question to the master.
type Fetch = dyn Fn(
        Request<v1::FetchCredentialRequest>,
    ) -> BoxFuture<'static, Result<v1::FetchCredentialReply, Status>>
    + Send
    + Sync;

impl std::fmt::Debug for MasterCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MasterCredentials")
            .field("dataset", &self.dataset)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Slot {
    given: Option<(Arc<Credential>, u64)>,
    /// When the master was asked last, and what came of it.
    last: Option<(Instant, Result<Arc<Credential>, CredentialError>)>,
}

impl MasterCredentials {
    /// For a worker; `master` connects when it is used.
    pub fn for_worker(master: MasterClient<Channel>) -> Arc<Self> {
        Self::of(master, None)
    }

    /// For a mount of this dataset.
    pub fn for_mount(master: MasterClient<Channel>, dataset: DatasetName) -> Arc<Self> {
        Self::of(master, Some(dataset))
    }

    fn of(master: MasterClient<Channel>, dataset: Option<DatasetName>) -> Arc<Self> {
        let fetch = move |request| {
            let mut master = master.clone();
            async move { Ok(master.fetch_credential(request).await?.into_inner()) }.boxed()
        };
        Arc::new(Self::with(Box::new(fetch), dataset))
    }

    fn with(fetch: Box<Fetch>, dataset: Option<DatasetName>) -> Self {
        Self {
            fetch,
            dataset,
            known: Mutex::default(),
        }
    }

    fn slot(&self, name: &CredentialName) -> Option<Arc<tokio::sync::Mutex<Slot>>> {
        let mut known = self.known.lock();
        if known.len() >= MAX_KNOWN && !known.contains_key(name) {
            return None;
        }
        Some(known.entry(name.clone()).or_default().clone())
    }

    async fn ask(&self, name: &CredentialName, slot: &mut Slot) -> Answer {
        let mut request = Request::new(v1::FetchCredentialRequest {
            name: name.to_string(),
            dataset: self
                .dataset
                .as_ref()
                .map(DatasetName::to_string)
                .unwrap_or_default(),
            known_revision: slot.given.as_ref().map_or(0, |(_, revision)| *revision),
        });
        request.set_timeout(ANSWER_DEADLINE);
        let answer = timeout(ANSWER_DEADLINE, (self.fetch)(request)).await;
        let late = |_| Status::deadline_exceeded(format!("no answer within {ANSWER_DEADLINE:?}"));
        let reply = match answer.map_err(late) {
            Ok(Ok(reply)) => reply,
            Ok(Err(status)) | Err(status) => return without(slot, &status),
        };
        let Some(message) = reply.credential else {
            return match &slot.given {
                Some((credential, revision)) if *revision == reply.revision => {
                    Ok(credential.clone())
                }
                _ => Err(unavailable("the master's answer has none")),
            };
        };
        let credential =
            Credential::of_message(message).ok_or_else(|| CredentialError::Denied {
                problem: "they are of a kind that this version does not know".to_owned(),
                remedy: "run the master's version".to_owned(),
            })?;
        let credential = Arc::new(credential);
        slot.given = Some((credential.clone(), reply.revision));
        Ok(credential)
    }
}

/// What an answer means that gives none.
fn without(slot: &mut Slot, status: &Status) -> Answer {
    let denied = |problem: &str, remedy: &str| {
        Err(CredentialError::Denied {
            problem: problem.to_owned(),
            remedy: remedy.to_owned(),
        })
    };
    match status.code() {
        // They may be this process's no more.
        Code::PermissionDenied | Code::Unauthenticated => {
            slot.given = None;
            denied(
                status.message(),
                "check whether the dataset still uses them, and who may have them (docs/credentials.md)",
            )
        }
        Code::NotFound => {
            slot.given = None;
            denied(
                "the master keeps none",
                "make them with `weir credentials set`",
            )
        }
        Code::FailedPrecondition => denied(status.message(), "see the master's log"),
        Code::Unimplemented => denied(
            "the master is of a version that keeps none",
            "run a newer master",
        ),
        _ => match &slot.given {
            Some((credential, _)) => Ok(credential.clone()),
            None => Err(unavailable(status.message())),
        },
    }
}

type Answer = Result<Arc<Credential>, CredentialError>;

fn unavailable(detail: &str) -> CredentialError {
    CredentialError::Unavailable(format!("the master gives none ({detail})"))
}

#[async_trait]
impl CredentialSource for MasterCredentials {
    async fn credential(&self, name: &CredentialName) -> Answer {
        let came = Instant::now();
        let slot = self.slot(name);
        let slot = slot.ok_or_else(|| unavailable("too many are known here"))?;
        let answer = timeout(DEADLINE, async {
            let mut slot = slot.lock().await;
            if let Some((asked, answer)) = &slot.last
                && *asked >= came
            {
                return answer.clone(); // somebody asked meanwhile
            }
            let asked = Instant::now();
            let answer = self.ask(name, &mut slot).await;
            slot.last = Some((asked, answer.clone()));
            answer
        });
        answer
            .await
            .unwrap_or_else(|_| Err(unavailable("it does not answer")))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use weir_origin::{CredentialKind, Keys};

    use super::*;

    fn keys(secret: &str) -> Credential {
        Credential {
            kind: CredentialKind::Keys(Keys {
                access_key: "AK".to_owned(),
                secret_key: secret.to_owned(),
                token: None,
            }),
            endpoints: Vec::new(),
        }
    }

    /// A master whose answers the test chooses.
    #[derive(Default)]
    struct Master {
        asked: AtomicU64,
        /// The credentials' revision and secret, or why there are none.
        answer: Mutex<Option<Result<(u64, &'static str), Code>>>,
    }

    impl Master {
        fn answers(&self, answer: Result<(u64, &'static str), Code>) {
            *self.answer.lock() = Some(answer);
        }

        fn source(self: &Arc<Self>) -> MasterCredentials {
            let master = self.clone();
            let fetch = move |request: Request<v1::FetchCredentialRequest>| {
                let (request, master) = (request.into_inner(), master.clone());
                async move {
                    master.asked.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let Some(answer) = *master.answer.lock() else {
                        return std::future::pending().await;
                    };
                    let (revision, secret) = answer.map_err(|code| Status::new(code, "no"))?;
                    let is_new = request.known_revision != revision;
                    Ok(v1::FetchCredentialReply {
                        credential: is_new.then(|| v1::Credential::from(&keys(secret))),
                        revision,
                    })
                }
                .boxed()
            };
            MasterCredentials::with(Box::new(fetch), None)
        }
    }

    fn name() -> CredentialName {
        "team".parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_at_once_ask_the_master_twice_at_most() {
        let master = Arc::new(Master::default());
        master.answers(Ok((1, "one")));
        let source = master.source();
        let all = futures::future::join_all(
            (0..100).map(|_| async { source.credential(&name()).await.unwrap() }),
        );
        for found in all.await {
            assert_eq!(*found, keys("one"));
        }
        // Whoever came after the first question was sent waits for the second.
        assert!(master.asked.load(Ordering::SeqCst) <= 2);
        // What is replaced is seen by who asks next.
        master.answers(Ok((2, "two")));
        assert_eq!(*source.credential(&name()).await.unwrap(), keys("two"));
        assert_eq!(*source.credential(&name()).await.unwrap(), keys("two"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_master_that_is_away_takes_nothing_back_and_one_that_refuses_does() {
        let master = Arc::new(Master::default());
        let source = master.source();
        let asked = Instant::now();
        let error = source.credential(&name()).await.unwrap_err();
        assert!(matches!(error, CredentialError::Unavailable(_)), "{error}");
        assert!(asked.elapsed() <= weir_origin::CREDENTIAL_DEADLINE);
        master.answers(Ok((1, "one")));
        source.credential(&name()).await.unwrap();
        for code in [
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::ResourceExhausted,
        ] {
            master.answers(Err(code));
            assert_eq!(
                *source.credential(&name()).await.unwrap(),
                keys("one"),
                "{code}"
            );
        }
        for code in [Code::PermissionDenied, Code::NotFound] {
            master.answers(Ok((1, "one")));
            source.credential(&name()).await.unwrap();
            master.answers(Err(code));
            let error = source.credential(&name()).await.unwrap_err();
            assert!(matches!(error, CredentialError::Denied { .. }), "{error}");
            master.answers(Err(Code::Unavailable));
            source.credential(&name()).await.unwrap_err();
        }
    }
}
