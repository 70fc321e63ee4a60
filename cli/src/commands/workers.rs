//! `weir worker list`, `get`, `cordon`, `uncordon` and `drain`.

use indicatif::HumanBytes;
use serde::Serialize;
use tonic::transport::Channel;
use weir_core::{ByteSize, WorkerId};
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;

use super::job::{self, state_of};
use super::status::{WorkerView, worker_view};
use crate::args::{DrainArgs, MasterRef, OutputFormat, WorkerCommand};
use crate::connect::{self, CALL_DEADLINE, request};
use crate::exit::{Failure, Reason};
use crate::output::{self, Rows, size};
use crate::process::runtime;

/// `weir worker COMMAND`.
pub(crate) fn run(command: WorkerCommand) -> Result<(), Failure> {
    runtime()?.block_on(async {
        match command {
            WorkerCommand::List { master } => list(&master).await,
            WorkerCommand::Get { id, master } => get(&id, &master).await,
            WorkerCommand::Cordon { id, master } => cordon(&id, false, &master).await,
            WorkerCommand::Uncordon { id, master } => cordon(&id, true, &master).await,
            WorkerCommand::Drain(args) => drain(&args).await,
        }
    })
}

/// Those of the cluster, then cordoned ones that are away.
async fn workers(master: &MasterRef) -> Result<Vec<WorkerView>, Failure> {
    let mut client = connect::master(&master.at, None).await?;
    let get = request(v1::GetStatusRequest::default(), CALL_DEADLINE);
    let status = client.get_status(get).await?.into_inner();
    let all = status.workers.into_iter().chain(status.away);
    Ok(all.map(worker_view).collect())
}

async fn list(master: &MasterRef) -> Result<(), Failure> {
    let workers = workers(master).await?;
    if master.output == OutputFormat::Json {
        return output::json(&workers);
    }
    let mut rows = Rows::new(&["worker", "node", "state", "used", "capacity", "last seen"]);
    for worker in &workers {
        let (used, capacity) = worker.space();
        let seen = format!("{:.1} s ago", worker.last_seen_ms as f64 / 1000.0);
        let of_member = |shown: String| if worker.away { "-".to_owned() } else { shown };
        rows.add([
            worker.id.clone(),
            of_member(worker.node.clone()),
            worker.state.to_owned(),
            of_member(size(used)),
            of_member(size(capacity)),
            if worker.away { "away".to_owned() } else { seen },
        ]);
    }
    rows.print()
}

async fn get(id: &WorkerId, master: &MasterRef) -> Result<(), Failure> {
    let mut workers = workers(master).await?.into_iter();
    let worker = workers.find(|worker| worker.id == id.as_str());
    let worker = worker.ok_or_else(|| {
        Failure::new(
            Reason::NotFound,
            format!(
                "there is no worker {id} in the cluster; `weir worker list` shows those that are"
            ),
        )
    })?;
    show(&worker, master)
}

fn show(worker: &WorkerView, master: &MasterRef) -> Result<(), Failure> {
    if master.output == OutputFormat::Json {
        return output::json(worker);
    }
    if !worker.away {
        let (used, capacity) = worker.space();
        output::line(format_args!(
            "worker {}: {}, {} of {} used",
            worker.id,
            worker.state,
            size(used),
            size(capacity)
        ))?;
    }
    worker.standing().map_or(Ok(()), output::line)
}

async fn cordon(id: &WorkerId, uncordon: bool, master: &MasterRef) -> Result<(), Failure> {
    let mut client = connect::master(&master.at, None).await?;
    let cordon = v1::CordonWorkerRequest {
        worker: id.to_string(),
        uncordon,
    };
    let status = client.cordon_worker(request(cordon, CALL_DEADLINE)).await?;
    show(&worker_view(status.into_inner()), master)
}

/// `weir worker drain -o json`.
#[derive(Serialize)]
struct DrainedView {
    job: u64,
    worker: String,
    state: &'static str,
    done_bytes: u64,
    total_bytes: u64,
    message: String,
}

async fn drain(args: &DrainArgs) -> Result<(), Failure> {
    let mut client = connect::master(&args.master.at, None).await?;
    if args.cancel {
        return cancel(&mut client, args).await;
    }
    let drain = v1::DrainWorkerRequest {
        worker: args.id.to_string(),
        bytes_per_second: args.rate.map_or(0, |rate| rate.0),
    };
    let started = client.drain_worker(request(drain, CALL_DEADLINE)).await?;
    let mut job = started.into_inner();
    if let Some(rate) = args.rate
        && rate.0 != job.bytes_per_second
    {
        let is = match job.bytes_per_second {
            0 => "the usual rate".to_owned(),
            rate => format!("{}/s", ByteSize(rate)),
        };
        output::note(format_args!(
            "weir: a drain of worker {0} is under way at {is}, and goes on so; to change that, end it with `weir worker drain {0} --cancel`",
            args.id
        ));
    }
    if args.wait {
        let goes_on = async |_: &mut MasterClient<Channel>, _: &v1::Job| {
            Ok(format!(
                "the drain goes on; `weir worker drain {} --cancel` ends it",
                args.id
            ))
        };
        job = job::follow(&mut client, job, &args.master, goes_on).await?;
    }
    finish(&job, &args.master)
}

async fn cancel(client: &mut MasterClient<Channel>, args: &DrainArgs) -> Result<(), Failure> {
    let workers = workers(&args.master).await?;
    let worker = workers.iter().find(|worker| worker.id == args.id.as_str());
    let drain = worker.and_then(|worker| worker.drain.as_ref());
    let drain = drain.ok_or_else(|| {
        Failure::new(
            Reason::NotFound,
            format!("worker {} is not being drained", args.id),
        )
    })?;
    let cancel = v1::CancelJobRequest { id: drain.job };
    let job = client.cancel_job(request(cancel, CALL_DEADLINE)).await?;
    tell(&job.into_inner(), &args.master)
}

fn tell(job: &v1::Job, master: &MasterRef) -> Result<(), Failure> {
    if master.output == OutputFormat::Json {
        return output::json(&DrainedView {
            job: job.id,
            worker: job.worker.clone(),
            state: state_of(job),
            done_bytes: job.done_bytes,
            total_bytes: job.total_bytes,
            message: job.message.clone(),
        });
    }
    output::line(format_args!(
        "drain of worker {} (job {}) {}: the others have {} of {}",
        job.worker,
        job.id,
        state_of(job),
        HumanBytes(job.done_bytes),
        HumanBytes(job.total_bytes),
    ))?;
    match job.state() {
        v1::JobState::Done => output::line("it can be stopped"),
        v1::JobState::Cancelled => output::line(format_args!(
            "it stays cordoned; `weir worker uncordon {}` gives it blocks again",
            job.worker
        )),
        _ => Ok(()),
    }
}

fn finish(job: &v1::Job, master: &MasterRef) -> Result<(), Failure> {
    tell(job, master)?;
    match job.state() {
        v1::JobState::Failed | v1::JobState::Cancelled => Err(Failure::new(
            Reason::Other,
            format!(
                "the drain of worker {} {}: {}",
                job.worker,
                state_of(job),
                job.message
            ),
        )),
        _ => Ok(()),
    }
}
