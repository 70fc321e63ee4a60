//! What is being warmed for pods that wait: one job of the master for each dataset, whoever waits for it.
//!
//! A job that was started is never ended from here: what is missing is read next, and somebody else may wait for the same job.

use std::collections::{BTreeMap, HashMap};

use futures::StreamExt;
use parking_lot::Mutex;
use tokio::time::Instant;
use weir_core::DatasetName;
use weir_proto::v1;

use crate::context::Context;
use crate::listings::wait_after;
use crate::master::MasterError;
use crate::view::{Seen, View, percent, percent_cached};

/// Datasets of which the master is asked at once.
const CONCURRENT: usize = 16;

/// How far a dataset is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// Cached by now, in percent, rounded down.
    pub(super) percent: u64,
    /// Why it does not get on; empty while it does.
    pub(super) trouble: String,
}

/// The datasets that are warmed.
#[derive(Debug, Default)]
pub(super) struct Warming(Mutex<HashMap<DatasetName, Warmed>>);

#[derive(Clone, Debug, Default)]
struct Warmed {
    share: Share,
    /// The job's number and moment; both are another's after the master lost its disk.
    job: Option<(u64, i64)>,
    failures: u32,
    /// When another job may be started.
    again: Option<Instant>,
}

impl Warming {
    /// How far a dataset is, as it was seen last.
    pub(super) fn share(&self, name: &DatasetName) -> Share {
        let warmed = self.0.lock();
        warmed
            .get(name)
            .map(|warmed| warmed.share.clone())
            .unwrap_or_default()
    }

    /// Takes what is known already of those that are new.
    pub(super) fn see(&self, view: &View, wanted: &BTreeMap<DatasetName, u64>) {
        let mut warmed = self.0.lock();
        for name in wanted.keys() {
            warmed.entry(name.clone()).or_insert_with(|| Warmed {
                share: cached(view, name),
                ..Warmed::default()
            });
        }
    }

    /// Asks how far those are of which a share is wanted, and has those warmed that lack some of it.
    pub(super) async fn look(&self, context: &Context, wanted: &BTreeMap<DatasetName, u64>) {
        self.0.lock().retain(|name, _| wanted.contains_key(name));
        futures::stream::iter(wanted)
            .for_each_concurrent(CONCURRENT, async |(name, share)| {
                let before = self.0.lock().get(name).cloned().unwrap_or_default();
                let now = before.look(context, name, *share).await;
                self.0.lock().insert(name.clone(), now);
            })
            .await;
    }
}

impl Warmed {
    async fn look(mut self, context: &Context, name: &DatasetName, wanted: u64) -> Self {
        let before = std::mem::replace(&mut self.share, cached(&context.view, name));
        let cached = self.share.percent;
        if cached >= wanted || !self.share.trouble.is_empty() {
            return self;
        }
        match self.job(context, name).await {
            Ok(Some(job)) => self.follow(&job, cached),
            Ok(None) => self.share.trouble = before.trouble,
            Err(error) => {
                self.failed();
                self.share.trouble = match error {
                    MasterError::Away(why) => format!("the master does not answer: {why}"),
                    MasterError::Refused { message, .. } => message,
                };
            }
        }
        self
    }

    fn failed(&mut self) {
        self.job = None;
        self.failures = self.failures.saturating_add(1);
        self.again = Some(Instant::now() + wait_after(self.failures));
    }

    /// The job that was started, or a new one if it may be; none while that must wait.
    async fn job(
        &mut self,
        context: &Context,
        name: &DatasetName,
    ) -> Result<Option<v1::Job>, MasterError> {
        if let Some((id, started)) = self.job {
            let job = context.master.get_job(id).await?;
            if let Some(job) = job.filter(|job| job.started_ns == started) {
                return Ok(Some(job));
            }
        }
        if self.again.is_some_and(|again| Instant::now() < again) {
            return Ok(None);
        }
        let request = v1::StartJobRequest {
            kind: v1::JobKind::Warm.into(),
            dataset: name.to_string(),
            ..v1::StartJobRequest::default()
        };
        let job = context.master.start_job(request).await?;
        self.job = Some((job.id, job.started_ns));
        Ok(Some(job))
    }

    /// Takes a job's word for how far it is.
    fn follow(&mut self, job: &v1::Job, cached: u64) {
        let done = percent(job.done_bytes, job.total_bytes).unwrap_or(100);
        match job.state() {
            v1::JobState::Done if job.failed_files == 0 => {
                self.share.percent = 100;
                self.failures = 0;
            }
            v1::JobState::Running | v1::JobState::Unspecified => {
                self.share.percent = cached.max(done);
            }
            v1::JobState::Done | v1::JobState::Failed | v1::JobState::Cancelled => {
                self.share.percent = cached.max(done);
                self.failed();
                self.share.trouble = match (job.state(), job.message.as_str()) {
                    (v1::JobState::Cancelled, _) => "somebody cancelled its job".to_owned(),
                    (_, "") => format!("{} files could not be fetched", job.failed_files),
                    (_, message) => message.to_owned(),
                };
            }
        }
    }
}

/// How much of a dataset is cached, as the master said last.
fn cached(view: &View, name: &DatasetName) -> Share {
    let (percent, trouble) = match view.get(name) {
        Seen::Away(why) => (0, format!("the master does not answer: {why}")),
        Seen::Absent => (0, "the master does not know it yet".to_owned()),
        // Of nothing all is cached.
        Seen::Present(known) => (percent_cached(&known.status).unwrap_or(100), String::new()),
    };
    Share { percent, trouble }
}
