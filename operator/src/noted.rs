//! What pods are told of Datasets that cannot be mounted, or are not to be.
//!
//! A node plugin may not read Datasets. It asks the master, which knows only those that were listed once; so it is told of the others,
//! as soon as something is known of one, and of all again and again, since it keeps that in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use weir_core::DatasetName;
use weir_proto::v1;

use crate::master::Master;

/// How often all is told again.
const AGAIN: Duration = Duration::from_secs(10);
/// Longest wait of a look at an object for the master to hear of it. What it did not hear is told again.
const PATIENCE: Duration = Duration::from_secs(2);
/// Datasets of one message.
const AT_ONCE: usize = 512;

/// What was told.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    known: Mutex<BTreeMap<String, v1::DatasetCondition>>,
}

impl Noted {
    /// Tells that a dataset is being deleted.
    pub(crate) async fn deleting(&self, master: &dyn Master, name: &DatasetName) {
        let condition = v1::DatasetCondition {
            dataset: name.to_string(),
            deleting: true,
            ..v1::DatasetCondition::default()
        };
        self.note(master, condition).await;
    }

    /// Tells why a dataset cannot be mounted.
    pub(crate) async fn trouble(
        &self,
        master: &dyn Master,
        name: &DatasetName,
        (reason, message): (&str, &str),
    ) {
        let condition = v1::DatasetCondition {
            dataset: name.to_string(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            deleting: false,
        };
        self.note(master, condition).await;
    }

    /// Takes back what was told of a dataset: it can be mounted, or is gone.
    pub(crate) async fn fine(&self, master: &dyn Master, name: &DatasetName) {
        if self.known.lock().remove(name.as_str()).is_some() {
            let condition = v1::DatasetCondition {
                dataset: name.to_string(),
                ..v1::DatasetCondition::default()
            };
            tell(master, vec![condition]).await;
        }
    }

    async fn note(&self, master: &dyn Master, condition: v1::DatasetCondition) {
        let name = condition.dataset.clone();
        let before = self.known.lock().insert(name, condition.clone());
        if before.as_ref() != Some(&condition) {
            tell(master, vec![condition]).await;
        }
    }

    /// Tells all again and again until `stop`.
    pub(crate) async fn keep(&self, master: &dyn Master, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
            let all: Vec<_> = self.known.lock().values().cloned().collect();
            for some in all.chunks(AT_ONCE) {
                tell(master, some.to_vec()).await;
            }
        }
    }
}

async fn tell(master: &dyn Master, conditions: Vec<v1::DatasetCondition>) {
    match timeout(PATIENCE, master.note_conditions(conditions)).await {
        Ok(Ok(())) => {}
        // It may be one of before this.
        Ok(Err(error)) => tracing::debug!(%error, "the master does not hear of Datasets"),
        Err(_) => tracing::debug!("the master does not hear of Datasets: it does not answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeMaster;

    #[tokio::test(start_paused = true)]
    async fn a_master_that_was_away_is_told_again_and_one_that_knows_is_told_once() {
        let (noted, master) = (Noted::default(), FakeMaster::default());
        let name: DatasetName = "team-a/x".parse().unwrap();
        let told = || master.calls().len();
        master.go_away(true);
        let trouble = ("AccessDenied", "access denied (403)");
        noted.trouble(&master, &name, trouble).await;
        assert_eq!(master.noted("team-a/x").reason, "");
        master.go_away(false);
        let stop = CancellationToken::new();
        let soon = tokio::time::timeout(AGAIN + PATIENCE, noted.keep(&master, &stop));
        assert!(soon.await.is_err(), "it goes on until it is stopped");
        assert_eq!(master.noted("team-a/x").reason, "AccessDenied");
        let before = told();
        noted.trouble(&master, &name, trouble).await;
        assert_eq!(told(), before);
        noted.fine(&master, &name).await;
        noted.fine(&master, &name).await;
        assert_eq!(told(), before + 1);
        assert_eq!(master.noted("team-a/x").reason, "");
    }
}
