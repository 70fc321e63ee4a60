//! `weir warm` and `weir evict`.

use std::io::IsTerminal;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use tonic::transport::Channel;
use weir_core::placement::places::Place;
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;

use crate::args::{EvictArgs, MasterRef, OutputFormat, WarmArgs};
use crate::connect::{self, CALL_DEADLINE, request};
use crate::exit::{Failure, Reason};
use crate::output;
use crate::process::runtime;

/// Time between two looks at a job.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Time between two lines of progress when the output is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// `weir warm`.
pub(crate) fn warm(args: &WarmArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let start = v1::StartJobRequest {
            kind: v1::JobKind::Warm.into(),
            dataset: args.name.to_string(),
            paths: args.paths.clone(),
            places: args.within.iter().map(Place::to_string).collect(),
            copies: args.copies.map_or(0, NonZeroU32::get),
        };
        let places = (start.places.clone(), start.copies);
        let (mut client, job) = self::start(start, &args.master).await?;
        if (&job.places, job.copies) != (&places.0, places.1) {
            stop(&mut client, &job).await?;
            return Err(Failure::new(
                Reason::Refused,
                "the master is of an earlier version, which warms all copies; leave out --in and --copies, or run a newer one",
            ));
        }
        let job = if args.wait {
            follow(&mut client, job, &args.master, stop).await?
        } else {
            job
        };
        finish(&job, &args.master)
    })
}

/// `weir evict`; always waits, since dropping blocks is quick.
pub(crate) fn evict(args: &EvictArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let start = v1::StartJobRequest {
            kind: v1::JobKind::Evict.into(),
            dataset: args.name.to_string(),
            paths: args.paths.clone(),
            ..v1::StartJobRequest::default()
        };
        let (mut client, mut job) = self::start(start, &args.master).await?;
        while job.state() == v1::JobState::Running {
            tokio::time::sleep(POLL_INTERVAL).await;
            job = look(&mut client, job.id).await?;
        }
        finish(&job, &args.master)
    })
}

async fn start(
    start: v1::StartJobRequest,
    master: &MasterRef,
) -> Result<(MasterClient<Channel>, v1::Job), Failure> {
    let mut client = connect::master(&master.at, Some(&start.dataset)).await?;
    let job = client.start_job(request(start, CALL_DEADLINE)).await?;
    Ok((client, job.into_inner()))
}

async fn look(client: &mut MasterClient<Channel>, id: u64) -> Result<v1::Job, Failure> {
    let get = request(v1::GetJobRequest { id }, CALL_DEADLINE);
    Ok(client.get_job(get).await?.into_inner())
}

/// Shows progress until the job has ended. At Ctrl-C it does what `interrupted` does, and fails with what that says.
pub(super) async fn follow(
    client: &mut MasterClient<Channel>,
    mut job: v1::Job,
    master: &MasterRef,
    interrupted: impl AsyncFnOnce(&mut MasterClient<Channel>, &v1::Job) -> Result<String, Failure>,
) -> Result<v1::Job, Failure> {
    let progress = Progress::new(&job, master.output == OutputFormat::Json);
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    while job.state() == v1::JobState::Running {
        progress.show(&job);
        tokio::select! {
            () = tokio::time::sleep(POLL_INTERVAL) => {}
            _ = &mut interrupt => {
                let said = interrupted(client, &job).await;
                progress.end();
                return Err(Failure::new(Reason::Interrupted, said?));
            }
        }
        job = look(client, job.id).await?;
    }
    progress.show(&job);
    progress.end();
    Ok(job)
}

/// Ends a warm job.
async fn stop(client: &mut MasterClient<Channel>, job: &v1::Job) -> Result<String, Failure> {
    let cancel = v1::CancelJobRequest { id: job.id };
    client.cancel_job(request(cancel, CALL_DEADLINE)).await?;
    Ok(format!(
        "stopped; what is cached stays, and `weir warm {} --wait` goes on from there",
        job.dataset
    ))
}

/// A bar on a terminal, a line now and then elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    started: Instant,
    last_line: std::cell::Cell<Option<Instant>>,
}

impl Progress {
    fn new(job: &v1::Job, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(job.total_bytes);
            let template = "{bar:30} {bytes}/{total_bytes} {msg} {bytes_per_sec} ETA {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        Self {
            bar,
            quiet,
            started: Instant::now(),
            last_line: std::cell::Cell::new(None),
        }
    }

    fn show(&self, job: &v1::Job) {
        if let Some(bar) = &self.bar {
            bar.set_length(job.total_bytes);
            bar.set_position(job.done_bytes);
            if job.total_files > 0 {
                bar.set_message(format!("{}/{} files", job.done_files, job.total_files));
            }
            return;
        }
        let ended = job.state() != v1::JobState::Running;
        let due = self
            .last_line
            .get()
            .is_none_or(|at| at.elapsed() >= LINE_INTERVAL);
        if self.quiet || !(due || ended) {
            return;
        }
        self.last_line.set(Some(Instant::now()));
        let rate = job.done_bytes as f64 / self.started.elapsed().as_secs_f64().max(0.001);
        let left = job.total_bytes.saturating_sub(job.done_bytes) as f64;
        let eta = if rate > 0.0 {
            HumanDuration(Duration::from_secs_f64((left / rate).min(1e9))).to_string()
        } else {
            "unknown".to_owned()
        };
        let files = if job.total_files > 0 {
            format!("{} of {} files, ", job.done_files, job.total_files)
        } else {
            String::new()
        };
        output::note(format_args!(
            "{} of {}, {files}{}/s, ETA {eta}",
            HumanBytes(job.done_bytes),
            HumanBytes(job.total_bytes),
            HumanBytes(rate as u64),
        ));
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}

#[derive(serde::Serialize)]
struct JobView {
    id: u64,
    state: &'static str,
    dataset: String,
    snapshot: u64,
    total_files: u64,
    total_bytes: u64,
    done_files: u64,
    done_bytes: u64,
    fetched_bytes: u64,
    failed_files: u64,
    message: String,
}

/// How a job stands.
pub(super) fn state_of(job: &v1::Job) -> &'static str {
    match job.state() {
        v1::JobState::Running => "running",
        v1::JobState::Done => "done",
        v1::JobState::Failed => "failed",
        v1::JobState::Cancelled => "cancelled",
        v1::JobState::Unspecified => "unknown",
    }
}

fn finish(job: &v1::Job, master: &MasterRef) -> Result<(), Failure> {
    let state = state_of(job);
    if master.output == OutputFormat::Json {
        output::json(&JobView {
            id: job.id,
            state,
            dataset: job.dataset.clone(),
            snapshot: job.version,
            total_files: job.total_files,
            total_bytes: job.total_bytes,
            done_files: job.done_files,
            done_bytes: job.done_bytes,
            fetched_bytes: job.fetched_bytes,
            failed_files: job.failed_files,
            message: job.message.clone(),
        })?;
    } else {
        output::line(format_args!(
            "job {} {state}: {}@{}, {} of {} files, {} of {}, {} from the origin",
            job.id,
            job.dataset,
            job.version,
            job.done_files,
            job.total_files,
            HumanBytes(job.done_bytes),
            HumanBytes(job.total_bytes),
            HumanBytes(job.fetched_bytes),
        ))?;
    }
    match job.state() {
        v1::JobState::Failed | v1::JobState::Cancelled => Err(Failure::new(
            Reason::Other,
            format!("job {} {state}: {}", job.id, job.message),
        )),
        _ if job.failed_files > 0 => Err(Failure::new(
            Reason::Other,
            format!(
                "{} {} could not be cached whole; the first: {}",
                job.failed_files,
                if job.failed_files == 1 {
                    "file"
                } else {
                    "files"
                },
                job.message
            ),
        )),
        _ => Ok(()),
    }
}
