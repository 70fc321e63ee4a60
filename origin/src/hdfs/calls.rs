//! Calls to the NameNodes, each with a deadline, and with errors that say what to do.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hdfs_native::client::ListedEntry;
use hdfs_native::file::FileReader;
use hdfs_native::{ClientBuilder, HdfsError};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::dial::Dialer;
use super::failure::{self, Failed};
use super::login::{Login, Session};
use crate::error::OriginError;
use crate::sources::SourcePolicy;
use crate::spec::OriginSpec;
use crate::spec::hdfs::{AUTHENTICATION, NameNodes, RPC_TIMEOUT, SOCKET_TIMEOUT};
use crate::transport::contact::Contact;

/// Longest wait for one NameNode; then the next one is asked. A busy one answers within a second or two.
const NAMENODE_DEADLINE: Duration = Duration::from_secs(5);
/// Longest silence of a DataNode; then the next one is asked. A reader has raced another request long before.
const DATANODE_DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait for a call, with all that it tries.
const CALL_DEADLINE: Duration = Duration::from_secs(20);
/// A directory in which nobody can put a configuration: what a reader needs is in the spec.
const NO_CONFIGURATION: &str = "/dev/null";

/// The client of one cluster.
#[derive(Debug)]
pub(super) struct Calls {
    login: Login,
    dialer: Dialer,
    /// The cluster in messages.
    pub(super) describe: Arc<str>,
    /// What is known of the NameNodes.
    pub(super) contact: Contact,
}

impl Calls {
    pub(super) async fn new(
        spec: &OriginSpec,
        namenodes: NameNodes,
        sources: &SourcePolicy,
    ) -> Result<Self, OriginError> {
        let describe: Arc<str> = format!("hdfs://{}", namenodes.authority).into();
        let dialer = Dialer::new(sources.reach(spec)?);
        let named = sources.named(spec, &describe)?;
        let (dial, url) = (Arc::new(dialer.clone()), describe.clone());
        let (settings, user) = (settings(spec, &namenodes), spec.hdfs.user.clone());
        // Connections are kept, and must go on when the thread that made them does something else.
        let home = Handle::current();
        let builder = move || {
            let builder = ClientBuilder::new()
                .with_url(&*url)
                .with_config_dir(NO_CONFIGURATION)
                .with_config(settings.clone())
                .with_dial(dial.clone())
                .with_io_runtime(home.clone());
            match &user {
                Some(user) => builder.with_user(user),
                None => builder,
            }
        };
        let login = Login::new(Arc::new(builder), describe.clone(), named);
        Ok(Self {
            login: login.await?,
            dialer,
            describe,
            contact: Contact::default(),
        })
    }

    /// A path in messages. Paths start with a slash.
    pub(super) fn target(&self, path: &str) -> Arc<str> {
        format!("{}{path}", self.describe).into()
    }

    /// Entries of a directory behind a name, and whether more follow.
    pub(super) async fn list_page(
        &self,
        path: &str,
        after: &[u8],
        with_blocks: bool,
    ) -> Result<(Vec<ListedEntry>, bool), Missing> {
        let call = |session: Arc<Session>| async move {
            let client = &session.client;
            client.list_page(path, after, with_blocks).await
        };
        let (entries, remaining) = self.call(path, call).await?;
        Ok((entries, remaining > 0))
    }

    /// What is at a path.
    pub(super) async fn look(&self, path: &str) -> Result<ListedEntry, Missing> {
        let look = |session: Arc<Session>| async move { session.client.look(path).await };
        self.call(path, look).await
    }

    /// What is at a path, and a reader of exactly that if it is a file.
    pub(super) async fn open(
        &self,
        path: &str,
    ) -> Result<(ListedEntry, Option<FileReader>), Missing> {
        let open = |session: Arc<Session>| async move { session.client.open(path).await };
        self.call(path, open).await
    }

    async fn call<T, F>(&self, path: &str, call: impl Fn(Arc<Session>) -> F) -> Result<T, Missing>
    where
        F: Future<Output = Result<T, HdfsError>>,
    {
        let mut sessions = self.login.of_call();
        loop {
            let session = sessions.session().await.map_err(Missing::Error)?;
            let failed = match timeout(CALL_DEADLINE, call(session)).await {
                Ok(Ok(answer)) => {
                    self.contact.set_answered();
                    return Ok(answer);
                }
                Ok(Err(error)) if failure::is_missing(&error) => {
                    self.contact.set_answered();
                    return Err(Missing::Path);
                }
                Ok(Err(error)) => {
                    if let HdfsError::RPCError(..) | HdfsError::FatalRPCError(..) = error {
                        self.contact.set_there();
                    }
                    Failed::Client(error)
                }
                Err(_) => Failed::Silent(CALL_DEADLINE),
            };
            let error = self.explain(failed, path);
            if !sessions.renew(&error).await.map_err(Missing::Error)? {
                return Err(Missing::Error(sessions.explain(error)));
            }
        }
    }

    /// What a failure at a path means.
    pub(super) fn explain(&self, failed: Failed, path: &str) -> OriginError {
        failure::explain(failed, self.target(path), self.dialer.take_refused())
    }
}

/// Why there is no answer: nothing is at the path, or an error.
pub(super) enum Missing {
    Path,
    Error(OriginError),
}

/// The options of the spec, and ours: each NameNode is tried once, since patience is not the client's matter. The next one
/// must have its turn before the whole call ends, however long the cluster's own clients wait.
fn settings(spec: &OriginSpec, namenodes: &NameNodes) -> BTreeMap<String, String> {
    let count = u32::try_from(namenodes.addresses.len().max(1)).unwrap_or(u32::MAX);
    let others = count - 1;
    let wait = spec.hdfs.deadline(RPC_TIMEOUT).unwrap_or(NAMENODE_DEADLINE);
    let wait = wait.min(CALL_DEADLINE.mul_f32(0.9) / count);
    let silence = spec.hdfs.deadline(SOCKET_TIMEOUT);
    let silence = silence.unwrap_or(DATANODE_DEADLINE);
    let ours = [
        (RPC_TIMEOUT, wait.as_millis().to_string()),
        (SOCKET_TIMEOUT, silence.as_millis().to_string()),
        ("dfs.client.failover.max.attempts", others.to_string()),
        ("dfs.client.failover.sleep.base.millis", "50".to_owned()),
        ("dfs.client.failover.sleep.max.millis", "200".to_owned()),
    ];
    let mut settings = spec.hdfs.config.clone();
    settings.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    // The client knows it in small letters alone.
    if let Some(value) = settings.get_mut(AUTHENTICATION) {
        value.make_ascii_lowercase();
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_namenode_has_its_turn_within_a_call_whatever_the_options_say() {
        let settings = |timeout: &str, count: usize| {
            let mut spec = OriginSpec::parse("hdfs://nn/d").unwrap();
            for (name, value) in [(RPC_TIMEOUT, timeout), (AUTHENTICATION, "SIMPLE")] {
                spec.hdfs.config.insert(name.to_owned(), value.to_owned());
            }
            let namenodes = NameNodes {
                authority: "ns".to_owned(),
                addresses: vec!["nn:8020".to_owned(); count],
                is_service: true,
            };
            settings(&spec, &namenodes)
        };
        for (timeout, count, waits) in [
            ("2000", 2, 2000),
            ("0", 2, 5000),
            ("60s", 1, 5000),
            ("120000", 1, 18_000),
            ("120000", 2, 9000),
            ("120000", 3, 6000),
        ] {
            let settings = settings(timeout, count);
            let waited: u64 = settings[RPC_TIMEOUT].parse().unwrap();
            assert!(waited.abs_diff(waits) < 5, "{timeout}, {count}: {waited}");
            assert_eq!(settings[AUTHENTICATION], "simple");
            assert_eq!(
                settings["dfs.client.failover.max.attempts"],
                (count - 1).to_string()
            );
        }
    }
}
