//! Taking gates away: when the data is there, or when a pod has waited long enough.

use std::collections::HashSet;
use std::fmt::Write;

use futures::StreamExt;
use http::{Method, header};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::events::{Event, EventType};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::{Duration, Instant, timeout};
use weir_core::DatasetName;

use super::table::{Found, Gated, MAX_WAITING, Table};
use super::wait::gate_of;
use super::warming::{Share, Warming};
use crate::context::Context;
use crate::durations::for_people;
use crate::holder::Holders;
use crate::json_patch::JsonPatch;
use crate::listings::wait_after;
use crate::metrics::Lifted;
use crate::objects::GATED_LABEL;
use crate::placing::Placed;

/// Calls of the apiserver at once, and the longest wait for one.
const CONCURRENT: usize = 16;
const CALL: Duration = Duration::from_secs(5);
/// Longest wait for the master: what was not chosen now is chosen later, and others must not wait.
const CHOICE: Duration = Duration::from_secs(1);
/// Jobs that are remembered because their snapshots were chosen.
const MAX_JOBS: usize = 16_384;
/// Longest pause before a gate is tried again that could not be taken away.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// Pods of which something is found out in one look.
const MAX_NEW: usize = 1000;
/// Datasets that a message names.
const MAX_NAMED: usize = 3;

/// Why pods may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Their data is there.
    Ready,
    /// They have waited for as long as they asked for at most.
    TimedOut,
    /// There is nothing that they wait for.
    Nothing,
    /// Too many others wait.
    Crowded,
}

impl Why {
    /// As a label of metrics, and the reason of an event.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Ready => ("ready", "DataReady"),
            Self::TimedOut => ("timeout", "DataWaitTimedOut"),
            Self::Nothing => ("nothing", "NothingToWaitFor"),
            Self::Crowded => ("crowded", "TooManyPodsWait"),
        }
    }
}

/// Takes gates away.
pub(super) struct Lifting<'a> {
    context: &'a Context,
    holders: Holders,
    jobs: Mutex<HashSet<String>>,
}

impl<'a> Lifting<'a> {
    pub(super) fn new(context: &'a Context) -> Self {
        Self {
            context,
            holders: Holders::new(context.client.clone()),
            jobs: Mutex::default(),
        }
    }

    /// Looks once at all that wait.
    pub(super) async fn look(&mut self, table: &Mutex<Table>, warming: &Warming) {
        self.find_out(table).await;
        let wanted = table.lock().wanted();
        warming.see(&self.context.view, &wanted);
        let now = Timestamp::now();
        let groups = table.lock().groups(now);
        let (mut ready, mut count) = (Vec::new(), 0);
        for group in groups {
            count += group.len();
            let judged = if count > MAX_WAITING {
                let note = format!("more than {MAX_WAITING} pods wait for data; it runs at once");
                Some((Why::Crowded, note))
            } else {
                judge(&group, |name| warming.share(name), now)
            };
            if let Some((why, note)) = judged {
                ready.extend(group.into_iter().map(|gated| (gated, why, note.clone())));
            }
        }
        let now = Instant::now();
        ready.retain(|(gated, ..)| gated.again.is_none_or(|again| again <= now));
        futures::stream::iter(ready)
            .for_each_concurrent(CONCURRENT, async |(gated, why, note)| {
                self.lift(table, &gated, why, &note).await;
            })
            .await;
    }

    /// Finds out whose new pods are, and what they read.
    async fn find_out(&self, table: &Mutex<Table>) {
        let new = table.lock().unknown(MAX_NEW);
        futures::stream::iter(new)
            .for_each_concurrent(CONCURRENT, async |gated| {
                let placing = &self.context.placing;
                let found = Found {
                    holder: self.holders.of_pod(&gated.meta).await,
                    datasets: placing.datasets_of(&gated.pod, &gated.namespace),
                };
                if found.datasets.is_empty() && !placing.is_ready() {
                    return; // it is not known yet
                }
                self.choose_snapshots(&found).await;
                if let (Some(wait), false) = (gated.wait, found.datasets.is_empty()) {
                    let note = format!(
                        "it waits until {}% of {} is cached, and for {} at most",
                        wait.percent,
                        names(&found.datasets),
                        for_people(wait.timeout),
                    );
                    self.tell(&gated, "WaitsForData", EventType::Normal, note)
                        .await;
                }
                if let Some(gated) = table.lock().get_mut(&gated.uid) {
                    gated.found = Some(found);
                }
            })
            .await;
    }

    /// Has all pods of a job see the snapshots that are warmed now. A master that is away chooses when the first is mounted.
    async fn choose_snapshots(&self, found: &Found) {
        let Some(holder) = found.holder.as_ref().filter(|holder| holder.has_an_end()) else {
            return;
        };
        let job = holder.to_string();
        {
            let mut jobs = self.jobs.lock();
            if jobs.len() >= MAX_JOBS {
                jobs.clear();
            }
            if !jobs.insert(job.clone()) {
                return; // another pod of it was before
            }
        }
        for dataset in &found.datasets {
            let chosen = self.context.master.choose_snapshot(dataset, &job);
            if !matches!(timeout(CHOICE, chosen).await, Ok(Ok(_))) {
                tracing::debug!(%holder, %dataset, "the master did not choose a snapshot yet");
                return;
            }
        }
    }

    /// Takes the gate of one pod away.
    async fn lift(&self, table: &Mutex<Table>, gated: &Gated, why: Why, note: &str) {
        let mut outcome = self.patch(gated, true).await;
        if outcome.as_ref().is_err_and(is_refused) {
            tracing::warn!(pod = %gated.name, namespace = %gated.namespace, error = ?outcome, "the terms of a pod were refused; it goes without");
            outcome = self.patch(gated, false).await;
        }
        let metrics = &self.context.metrics;
        match outcome {
            Ok(()) => {
                table.lock().forget(&gated.uid);
                let (result, reason) = why.words();
                metrics.lifted.get_or_create(&Lifted { result }).inc();
                let waited = gated.waited(Timestamp::now());
                metrics.gated_seconds.observe(waited.as_secs_f64());
                let kind = if why == Why::TimedOut || why == Why::Crowded {
                    EventType::Warning
                } else {
                    EventType::Normal
                };
                self.tell(gated, reason, kind, note.to_owned()).await;
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                table.lock().forget(&gated.uid);
            }
            Err(error) => {
                // Somebody else changed it: it is seen as it is now in a moment.
                let is_conflict = matches!(&error, kube::Error::Api(status) if status.code == 409);
                let mut table = table.lock();
                let Some(gated) = table.get_mut(&gated.uid) else {
                    return;
                };
                gated.failures = gated.failures.saturating_add(1);
                let wait = if is_conflict {
                    Duration::from_secs(1)
                } else {
                    metrics
                        .lifted
                        .get_or_create(&Lifted { result: "failed" })
                        .inc();
                    wait_after(gated.failures).min(LONGEST_WAIT)
                };
                gated.again = Some(Instant::now() + wait);
                tracing::warn!(pod = %gated.name, namespace = %gated.namespace, %error, again_in = ?wait, "a gate could not be taken away");
            }
        }
    }

    /// Takes gate and label away, and perhaps writes where the pod should run.
    async fn patch(&self, gated: &Gated, with_terms: bool) -> Result<(), kube::Error> {
        let pod = &gated.pod;
        let mut patch = JsonPatch::default();
        // Refused if it was changed since: what is there then is not known.
        let version = &pod["metadata"]["resourceVersion"];
        patch.add("/metadata/resourceVersion", version.clone());
        if let Some(index) = gate_of(pod) {
            patch.remove(&format!("/spec/schedulingGates/{index}"));
        }
        if pod["metadata"]["labels"][GATED_LABEL].is_string() {
            patch.unset("labels", GATED_LABEL);
        }
        if with_terms
            && let Placed::Changes(terms) = self.context.placing.place(pod, &gated.namespace).await
        {
            patch.extend(terms);
        }
        let request = http::Request::builder()
            .method(Method::PATCH)
            .uri(format!(
                "/api/v1/namespaces/{}/pods/{}",
                gated.namespace, gated.name
            ))
            .header(header::CONTENT_TYPE, "application/json-patch+json")
            .body(patch.into_value().to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        let sent = timeout(CALL, self.context.client.request::<Value>(request)).await;
        sent.map_err(|late| kube::Error::Service(Box::new(late)))??;
        Ok(())
    }

    /// Tells of a pod. Nothing depends on it.
    async fn tell(&self, gated: &Gated, reason: &str, type_: EventType, note: String) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: "WaitForData".to_owned(),
            secondary: None,
        };
        let pod = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(gated.namespace.clone()),
            name: Some(gated.name.clone()),
            uid: Some(gated.uid.clone()),
            ..ObjectReference::default()
        };
        let told = timeout(CALL, self.context.recorder.publish(&event, &pod)).await;
        if !matches!(told, Ok(Ok(()))) {
            tracing::debug!(pod = %gated.name, "an event was not taken");
        }
    }
}

/// Whether the apiserver does not want the pod to be so, whenever it is asked.
fn is_refused(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422))
}

/// Whether pods that go together may go now, and why.
pub(super) fn judge(
    group: &[Gated],
    share: impl Fn(&DatasetName) -> Share,
    now: Timestamp,
) -> Option<(Why, String)> {
    let mut wanted: Vec<(&DatasetName, u64)> = Vec::new();
    for gated in group {
        let (Some(found), Some(wait)) = (&gated.found, gated.wait) else {
            continue;
        };
        wanted.extend(found.datasets.iter().map(|name| (name, wait.percent)));
    }
    wanted.sort_unstable();
    // Of each the largest share, which is the last one.
    wanted.reverse();
    wanted.dedup_by_key(|(name, _)| *name);
    wanted.reverse();
    if group.iter().any(|gated| gated.found.is_none()) {
        let note = "nobody could tell in time what it reads; it runs nevertheless";
        return Some((Why::TimedOut, note.to_owned()));
    }
    if wanted.is_empty() {
        return Some((
            Why::Nothing,
            "it reads no dataset that it could wait for".to_owned(),
        ));
    }
    let seen: Vec<(&DatasetName, u64, Share)> = wanted
        .into_iter()
        .map(|(name, percent)| (name, percent, share(name)))
        .collect();
    let is_there = seen
        .iter()
        .all(|(_, wanted, share)| share.percent >= *wanted);
    let mut told = String::new();
    for (index, (name, _, share)) in seen.iter().take(MAX_NAMED).enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let _ = write!(told, "{comma}{}% of {name}", share.percent);
    }
    if seen.len() > MAX_NAMED {
        let _ = write!(
            told,
            " and what it wants of {} more",
            seen.len() - MAX_NAMED
        );
    }
    if is_there {
        return Some((Why::Ready, format!("{told} is cached")));
    }
    let waits = group.iter().filter(|gated| gated.wait.is_some());
    let is_late = waits.clone().any(|gated| gated.left(now).is_zero());
    if !is_late {
        return None;
    }
    let longest = waits.map(|gated| gated.waited(now)).max();
    let trouble = seen.iter().find(|(.., share)| !share.trouble.is_empty());
    let trouble = trouble.map_or_else(String::new, |(name, _, share)| {
        format!("; {name}: {}", share.trouble)
    });
    Some((
        Why::TimedOut,
        format!(
            "{told} was cached after {}{trouble}; it runs nevertheless",
            for_people(longest.unwrap_or_default()),
        ),
    ))
}

fn names(datasets: &[DatasetName]) -> String {
    let named: Vec<&str> = datasets
        .iter()
        .take(MAX_NAMED)
        .map(DatasetName::as_str)
        .collect();
    let more = match datasets.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", named.join(", "))
}

#[cfg(test)]
mod tests;
