//! Having one Warmup done: a job of the master, started once, followed until it is done, and ended with its object.
//!
//! A job is known by its number and by when it was started, since a master that has lost its disk counts jobs anew. A job that is
//! gone is started again: what is cached already it skips.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType};
use weir_core::{ByteSize, DatasetName};
use weir_proto::v1;

use crate::context::Context;
use crate::durations::for_people;
use crate::error::OperatorError;
use crate::master::MasterError;
use crate::objects::{
    Conditions, Is, WARMUP_FINALIZER, Warmup, WarmupPhase, WarmupStatus, hold, let_go,
};
use crate::report;
use crate::view::percent;

const COMPLETE: &str = "Complete";

/// When one that runs is looked at again, and one that waits.
const RUNNING_AGAIN: Duration = Duration::from_secs(5);
const WAITING_AGAIN: Duration = Duration::from_secs(10);

/// What became of a look.
enum Found {
    /// It waits: a reason and a message.
    Waits(&'static str, String),
    Runs(v1::Job),
    Ended(v1::Job),
    /// It cannot be done.
    Refused(&'static str, String),
}

/// Looks at a Warmup once.
pub(crate) async fn look(object: &Warmup, context: &Context) -> Result<Action, OperatorError> {
    let api = Api::<Warmup>::namespaced(
        context.client.clone(),
        &object.namespace().unwrap_or_default(),
    );
    let before = object.status.clone().unwrap_or_default();
    if object.metadata.deletion_timestamp.is_some() {
        end(object, &before, context).await;
        let_go(&api, object, WARMUP_FINALIZER).await?;
        return Ok(Action::await_change());
    }
    if before.phase.is_some_and(WarmupPhase::is_over) {
        return Ok(Action::await_change());
    }
    hold(&api, object, WARMUP_FINALIZER).await?;
    let found = find(object, &before, context).await;
    let now = Timestamp::now();
    let status = status_of(object, before.clone(), &found, now);
    let is_news = reason(&status) != reason(&before);
    let news = is_news.then(|| event_of(object, &status, &found, now));
    let again = match &found {
        Found::Runs(_) => Action::requeue(RUNNING_AGAIN),
        Found::Waits(..) => Action::requeue(WAITING_AGAIN),
        Found::Ended(_) | Found::Refused(..) => Action::await_change(),
    };
    report::status(context, &api, object, &status).await?;
    report::events(context, object, news.into_iter().collect()).await;
    Ok(again)
}

/// Why a Warmup is as it is, in one word.
fn reason(status: &WarmupStatus) -> Option<&str> {
    let mut conditions = status.conditions.iter();
    let complete = conditions.find(|condition| condition.type_ == COMPLETE)?;
    Some(&complete.reason)
}

/// The dataset's name at the master.
fn dataset_of(object: &Warmup) -> Result<DatasetName, String> {
    let namespace = object.namespace().unwrap_or_default();
    let name = DatasetName::in_namespace(&namespace, &object.spec.dataset);
    name.map_err(|error| format!("spec.dataset: {error}"))
}

/// Finds the job, or starts it.
async fn find(object: &Warmup, before: &WarmupStatus, context: &Context) -> Found {
    let dataset = match dataset_of(object) {
        Ok(dataset) => dataset,
        Err(problem) => return Found::Refused("InvalidSpec", problem),
    };
    let job = match known_job(before, context).await {
        Ok(Some(job)) => job,
        Ok(None) => match context.master.start_job(request(object, &dataset)).await {
            Ok(job) => job,
            Err(error) => return waits_or_refused(error),
        },
        Err(error) => return waits_or_refused(error),
    };
    let goal = u64::try_from(object.spec.percent.unwrap_or(100)).unwrap_or(100);
    let done = percent(job.done_bytes, job.total_bytes).unwrap_or_default();
    match job.state() {
        v1::JobState::Running if done >= goal && job.total_bytes > 0 => {
            // It is enough. A job that does not hear of it fetches the rest, too.
            let _ = context.master.cancel_job(job.id).await;
            Found::Ended(v1::Job {
                state: v1::JobState::Done.into(),
                ..job
            })
        }
        v1::JobState::Running | v1::JobState::Unspecified => Found::Runs(job),
        v1::JobState::Done | v1::JobState::Failed | v1::JobState::Cancelled => Found::Ended(job),
    }
}

fn waits_or_refused(error: MasterError) -> Found {
    match error {
        MasterError::Away(why) => {
            let message = format!("the master does not answer: {why}; it is asked again");
            Found::Waits("MasterUnavailable", message)
        }
        MasterError::Refused { why, message } if why.is_lasting() => {
            Found::Refused(why.reason(), message)
        }
        // A Dataset may come, or get the path.
        MasterError::Refused { why, message } => Found::Waits(why.reason(), message),
    }
}

/// The job that was started, if the master still has it.
async fn known_job(
    before: &WarmupStatus,
    context: &Context,
) -> Result<Option<v1::Job>, MasterError> {
    let Some(id) = before.job.and_then(|id| u64::try_from(id).ok()) else {
        return Ok(None);
    };
    let job = context.master.get_job(id).await?;
    Ok(job.filter(|job| Some(job.started_ns) == before.job_started_ns))
}

fn request(object: &Warmup, dataset: &DatasetName) -> v1::StartJobRequest {
    let spec = &object.spec;
    v1::StartJobRequest {
        kind: v1::JobKind::Warm.into(),
        dataset: dataset.to_string(),
        paths: spec.paths.clone(),
        places: spec.places.clone(),
        copies: spec
            .copies
            .and_then(|copies| u32::try_from(copies).ok())
            .unwrap_or_default(),
    }
}

/// Ends the job of a Warmup that was deleted. One that cannot be ended goes on, which does no harm.
async fn end(object: &Warmup, before: &WarmupStatus, context: &Context) {
    if before.phase != Some(WarmupPhase::Running) {
        return;
    }
    let ended = async {
        if let Some(job) = known_job(before, context).await? {
            context.master.cancel_job(job.id).await?;
        }
        Ok::<_, MasterError>(())
    };
    if let Err(error) = ended.await {
        tracing::warn!(warmup = %object.name_any(), %error, "the job of a Warmup that was deleted goes on");
    }
}

/// The status that follows.
fn status_of(object: &Warmup, before: WarmupStatus, found: &Found, now: Timestamp) -> WarmupStatus {
    let generation = object.metadata.generation;
    let mut conditions = Conditions::new(&before.conditions, generation, now);
    let mut status = WarmupStatus {
        observed_generation: generation,
        message: None,
        conditions: Vec::new(),
        ..before
    };
    let (is, reason, message) = match found {
        Found::Waits(reason, message) => {
            status.phase = Some(WarmupPhase::Pending);
            (Is::False, *reason, message.clone())
        }
        Found::Refused(reason, message) => {
            status.phase = Some(WarmupPhase::Failed);
            (Is::False, *reason, message.clone())
        }
        Found::Runs(job) => {
            tell(&mut status, job, now);
            status.phase = Some(WarmupPhase::Running);
            (Is::False, "Running", String::new())
        }
        Found::Ended(job) => {
            tell(&mut status, job, now);
            status.eta = None;
            let (phase, is, reason) = match job.state() {
                v1::JobState::Done if job.failed_files == 0 => {
                    (WarmupPhase::Done, Is::True, "Done")
                }
                v1::JobState::Cancelled => (WarmupPhase::Failed, Is::False, "Cancelled"),
                _ => (WarmupPhase::Failed, Is::False, "Failed"),
            };
            status.phase = Some(phase);
            let message = match (job.message.is_empty(), job.state()) {
                (false, _) => job.message.clone(),
                (true, v1::JobState::Cancelled) => {
                    "somebody cancelled the job at the master; make another Warmup".to_owned()
                }
                (true, _) => String::new(),
            };
            (is, reason, message)
        }
    };
    if status.phase.is_some_and(WarmupPhase::is_over) && status.finished.is_none() {
        status.finished = Some(Time(now));
    }
    status.message = Some(message.clone()).filter(|message| !message.is_empty());
    conditions.set(COMPLETE, is, reason, message);
    status.conditions = conditions.into_vec();
    status
}

/// What is told of a Warmup that waits now, has begun, or has ended.
fn event_of(object: &Warmup, status: &WarmupStatus, found: &Found, now: Timestamp) -> Event {
    let said = status.message.clone().unwrap_or_default();
    let (type_, note) = match found {
        Found::Waits(..) => (EventType::Normal, said),
        Found::Runs(job) => {
            let (size, snapshot) = (ByteSize(job.total_bytes), job.version);
            let dataset = &object.spec.dataset;
            let note = format!("{size} of snapshot {snapshot} of {dataset} are being cached");
            (EventType::Normal, note)
        }
        Found::Ended(job) if status.phase == Some(WarmupPhase::Done) => {
            let [cached, total, fetched] =
                [job.done_bytes, job.total_bytes, job.fetched_bytes].map(ByteSize);
            let took = for_people(run_time(job, now));
            let note = format!(
                "{cached} of {total} are cached after {took}, {fetched} of them came from the origin"
            );
            (EventType::Normal, note)
        }
        Found::Ended(job) if job.failed_files > 0 => {
            let note = format!(
                "files that could not be fetched: {}; {said}",
                job.failed_files
            );
            (EventType::Warning, note)
        }
        Found::Ended(_) | Found::Refused(..) => (EventType::Warning, said),
    };
    Event {
        type_,
        reason: reason(status).unwrap_or_default().to_owned(),
        note: Some(note),
        action: COMPLETE.to_owned(),
        secondary: None,
    }
}

/// How long a job runs by now.
fn run_time(job: &v1::Job, now: Timestamp) -> Duration {
    let ran = now.as_nanosecond() - i128::from(job.started_ns);
    Duration::from_nanos(u64::try_from(ran).unwrap_or_default())
}

/// Tells how far a job is.
fn tell(status: &mut WarmupStatus, job: &v1::Job, now: Timestamp) {
    let number = |value: u64| Some(i64::try_from(value).unwrap_or(i64::MAX));
    status.job = number(job.id);
    status.job_started_ns = Some(job.started_ns);
    status.snapshot = number(job.version);
    status.total_bytes = number(job.total_bytes);
    status.done_bytes = number(job.done_bytes);
    status.fetched_bytes = number(job.fetched_bytes);
    status.failed_files = number(job.failed_files).filter(|count| *count > 0);
    let done = percent(job.done_bytes, job.total_bytes);
    status.progress = done.map(|done| format!("{done}%"));
    let ran = run_time(job, now).as_secs_f64();
    (status.rate, status.eta) = (None, None);
    if job.fetched_bytes > 0 && ran >= 1.0 {
        let rate = job.fetched_bytes as f64 / ran;
        status.rate = Some(format!("{}/s", ByteSize(rate as u64)));
        let left = job.total_bytes.saturating_sub(job.done_bytes) as f64;
        let left = Duration::from_secs((left / rate).min(1e9) as u64);
        status.eta = Some(for_people(left));
    }
}

#[cfg(test)]
mod tests;
