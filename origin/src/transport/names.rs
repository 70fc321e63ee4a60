//! Name lookups with a deadline.
//!
//! The system's resolver has none: with a name server that is silent it takes half a minute, on a thread of its own.
//! Here one lookup of a name is under way at a time, however many connections wait for it, and where the name was
//! known before, those addresses do after a moment. That there is no such name is told apart from all other failures.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared};
use http::Uri;
use hyper_util::client::legacy::connect::dns::Name;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tower_service::Service;

use crate::sources::Reach;

/// Longest wait for a name; shorter than that for a connection, so that the message tells what was slow.
const DEADLINE: Duration = Duration::from_secs(4);
/// Wait for a name whose addresses are known from before.
const KNOWN_DEADLINE: Duration = Duration::from_secs(1);
/// Names that are remembered: those of the service, of a proxy, and of where redirects lead.
const MAX_NAMES: usize = 64;

type Lookup = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;
type Flight = Shared<BoxFuture<'static, Outcome>>;
type Outcome = Result<Vec<SocketAddr>, Failed>;

/// The names of one origin.
#[derive(Clone)]
pub(crate) struct Names {
    lookup: Arc<Lookup>,
    table: Arc<Mutex<HashMap<String, Entry>>>,
}

#[derive(Default)]
struct Entry {
    known: Option<Vec<SocketAddr>>,
    flight: Option<Flight>,
}

/// What glibc and musl say of a name that does not exist, or has no address (EAI_NONAME, EAI_NODATA). Rust gives the
/// words alone, and sets no locale that would translate them. That a name server cannot answer is said otherwise.
const MISSING: [&str; 4] = [
    "Name or service not known",
    "No address associated with hostname",
    "Name does not resolve",
    "Name has no usable address",
];

/// The name servers know no such host.
#[derive(Debug, thiserror::Error)]
#[error("there is no host {0:?}")]
pub(crate) struct NoSuchHost(pub(crate) Arc<str>);

/// Why a name was not found, for all who asked.
#[derive(Clone)]
struct Failed {
    kind: io::ErrorKind,
    code: Option<i32>,
    text: String,
}

impl Failed {
    /// The error of a lookup of `name`.
    fn explain(self, name: &str) -> io::Error {
        if MISSING.iter().any(|words| self.text.ends_with(words)) {
            io::Error::new(io::ErrorKind::NotFound, NoSuchHost(name.into()))
        } else {
            self.into()
        }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self {
            kind: error.kind(),
            code: error.raw_os_error(),
            text: error.to_string(),
        }
    }
}

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        match failed.code {
            Some(code) => Self::from_raw_os_error(code),
            None => Self::new(failed.kind, failed.text),
        }
    }
}

impl Names {
    /// Names as the system finds them.
    pub(crate) fn of_system() -> Self {
        Self::new(|name| Ok((name, 0).to_socket_addrs()?.collect()))
    }

    pub(crate) fn new(
        lookup: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            lookup: Arc::new(lookup),
            table: Arc::default(),
        }
    }

    pub(crate) async fn resolve(&self, name: String) -> io::Result<Vec<SocketAddr>> {
        let (flight, known) = self.ask(&name);
        let Some(known) = known else {
            let late = || {
                let text = format!("the name {name} was not found within {DEADLINE:?}");
                io::Error::new(io::ErrorKind::TimedOut, text)
            };
            let found = timeout(DEADLINE, flight).await.map_err(|_| late())?;
            return found.map_err(|failed| failed.explain(&name));
        };
        if let Ok(Ok(found)) = timeout(KNOWN_DEADLINE, flight).await {
            return Ok(found);
        }
        tracing::debug!(%name, "the name was not found again, its last addresses are taken");
        Ok(known)
    }

    /// Joins the lookup of a name, or begins it. Gives its last addresses, too.
    fn ask(&self, name: &str) -> (Flight, Option<Vec<SocketAddr>>) {
        let mut table = self.table.lock();
        if table.len() >= MAX_NAMES && !table.contains_key(name) {
            table.retain(|_, entry| entry.flight.is_some());
        }
        let entry = table.entry(name.to_owned()).or_default();
        if let Some(flight) = &entry.flight {
            return (flight.clone(), entry.known.clone());
        }
        let (send, receive) = oneshot::channel();
        let (names, wanted) = (self.clone(), name.to_owned());
        // Not a thread of a runtime, whose end would wait for it.
        let started = std::thread::Builder::new()
            .name("weir-names".to_owned())
            .spawn(move || {
                let outcome = (names.lookup)(&wanted).map_err(Failed::from);
                if let Some(entry) = names.table.lock().get_mut(&wanted) {
                    entry.flight = None;
                    if let Ok(found) = &outcome {
                        entry.known = Some(found.clone());
                    }
                }
                let _ = send.send(outcome);
            });
        let flight = async move {
            started?;
            let ended = || io::Error::other("the lookup ended without an answer");
            receive.await.unwrap_or_else(|_| Err(ended().into()))
        };
        let flight = flight.boxed().shared();
        entry.flight = Some(flight.clone());
        (flight, entry.known.clone())
    }
}

/// Looks names up for connections to one service, and gives those of their addresses that may be connected to. What the
/// name servers say later does not matter: it is checked as well.
#[derive(Clone)]
pub(crate) struct Guarded {
    pub(crate) names: Names,
    /// What may be connected to, for which address of the service; `None` for a proxy.
    pub(crate) reach: Option<(Reach, Uri)>,
}

impl Service<Name> for Guarded {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let Self { names, reach } = self.clone();
        async move {
            let mut found = names.resolve(name.to_string()).await?;
            if let Some((reach, uri)) = reach {
                let denied = |error| io::Error::new(io::ErrorKind::PermissionDenied, error);
                found = reach.admit(&uri, found).map_err(denied)?;
            }
            Ok(found.into_iter())
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;

    use super::*;

    type Answer = io::Result<Vec<SocketAddr>>;

    /// Names that a test answers, one lookup after the other, and the names that were asked for.
    fn answered_by_hand() -> (Names, Sender<Answer>, Receiver<String>) {
        let (answer, answers) = channel();
        let (ask, asked) = channel();
        let answers = Mutex::new(answers);
        let names = Names::new(move |name| {
            ask.send(name.to_owned()).unwrap();
            answers.lock().recv().unwrap()
        });
        (names, answer, asked)
    }

    fn address(last: u8) -> Vec<SocketAddr> {
        vec![SocketAddr::from(([10, 0, 0, last], 0))]
    }

    #[tokio::test]
    async fn many_who_ask_for_a_name_share_a_lookup() {
        let (names, answer, asked) = answered_by_hand();
        let all: Vec<_> = (0..100).map(|_| names.ask("host").0).collect();
        answer.send(Ok(address(1))).unwrap();
        for outcome in futures::future::join_all(all).await {
            assert_eq!(outcome.ok().unwrap(), address(1));
        }
        assert_eq!(asked.try_iter().count(), 1);
    }

    #[tokio::test]
    async fn a_name_server_that_is_silent_costs_a_known_name_a_moment_and_another_its_deadline() {
        let (names, answer, _asked) = answered_by_hand();
        answer.send(Ok(address(1))).unwrap();
        assert_eq!(names.resolve("host".to_owned()).await.unwrap(), address(1));
        let start = Instant::now();
        let known = names.resolve("host".to_owned());
        let other = names.resolve("other".to_owned());
        let (known, other) = tokio::join!(known, other);
        assert_eq!(known.unwrap(), address(1));
        let error = other.unwrap_err();
        assert!(start.elapsed() < 4 * DEADLINE);
        assert!(error.to_string().contains("other"), "{error}");
        // The lookups go on, and what they find is for the next.
        answer.send(Ok(address(2))).unwrap();
        answer.send(Ok(address(2))).unwrap();
        for name in ["host", "other"] {
            let flight = names.table.lock()[name].flight.clone();
            if let Some(flight) = flight {
                assert!(flight.await.is_ok());
            }
            assert_eq!(names.table.lock()[name].known, Some(address(2)));
        }
    }

    #[tokio::test]
    async fn an_error_keeps_its_code_and_a_known_name_goes_on() {
        let (names, answer, _asked) = answered_by_hand();
        let full = || io::Error::from_raw_os_error(libc::EMFILE);
        answer.send(Err(full())).unwrap();
        let error = names.resolve("host".to_owned()).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        answer.send(Ok(address(1))).unwrap();
        names.resolve("host".to_owned()).await.unwrap();
        answer.send(Err(io::Error::other("no such name"))).unwrap();
        assert_eq!(names.resolve("host".to_owned()).await.unwrap(), address(1));
    }

    #[tokio::test]
    async fn that_there_is_no_such_name_is_told_from_what_passes() {
        let resolve = async |said: &'static str| {
            let names = Names::new(move |_| Err(io::Error::other(said)));
            let error = names.resolve("host".to_owned()).await.unwrap_err();
            error
                .get_ref()
                .is_some_and(<dyn std::error::Error + Send + Sync>::is::<NoSuchHost>)
        };
        let said = "failed to lookup address information: ";
        for (words, missing) in [
            ("Name or service not known", true),
            ("No address associated with hostname", true),
            ("Name does not resolve", true),
            ("Temporary failure in name resolution", false),
            ("Try again", false),
        ] {
            assert_eq!(
                resolve(format!("{said}{words}").leak()).await,
                missing,
                "{words}"
            );
        }
        // No name server needs to be asked: a part of a name has 63 characters at most.
        let name = format!("{}.example", "x".repeat(64));
        let error = Names::of_system().resolve(name).await.unwrap_err();
        assert!(error.to_string().contains("there is no host"), "{error}");
    }

    #[tokio::test]
    async fn the_table_is_bounded() {
        let names = Names::new(|_| Ok(address(1)));
        for number in 0..3 * MAX_NAMES {
            names.resolve(format!("host-{number}")).await.unwrap();
        }
        assert!(names.table.lock().len() <= MAX_NAMES);
    }

    #[tokio::test]
    async fn the_system_finds_this_machine() {
        let found = Names::of_system().resolve("localhost".to_owned()).await;
        assert!(
            found
                .unwrap()
                .into_iter()
                .any(|address| address.ip().is_loopback())
        );
    }
}
