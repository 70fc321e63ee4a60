//! `weir status`: workers, tiers, datasets, and the mounts of this machine.

use serde::Serialize;
use weir_core::id::split_name;
use weir_mount::runtime;
use weir_proto::v1;
use weir_trust::Dial;

use super::dataset::PlacementView;
use crate::args::{OutputFormat, StatusArgs};
use crate::connect::{self, CALL_DEADLINE, HTTP_KEY, SNAPSHOT_KEY, request};
use crate::exit::{Failure, Reason};
use crate::output::{self, Rows, percent, ratio, size};
use crate::process::runtime as tokio_runtime;
use crate::trust;

#[derive(Serialize)]
struct StatusView {
    masters: Vec<MasterView>,
    mounts: Vec<MountView>,
}

#[derive(Serialize)]
struct MasterView {
    address: String,
    epoch: u64,
    /// How its callers are known: `certificates`, `same user` or `insecure`.
    callers: Option<String>,
    workers: Vec<WorkerView>,
    /// Cordoned workers that are not in the cluster now.
    away: Vec<AwayView>,
    datasets: Vec<DatasetView>,
    /// Jobs that run.
    jobs: Vec<JobView>,
}

#[derive(Serialize)]
pub(super) struct WorkerView {
    pub(super) id: String,
    pub(super) node: String,
    zone: Option<String>,
    group: Option<String>,
    pool: Option<String>,
    data_address: String,
    /// `active`, `cordoned`, `draining` or `drained`.
    pub(super) state: &'static str,
    /// It is not in the cluster now: nothing else is known of it.
    pub(super) away: bool,
    /// Of a worker that is being drained: the job, and how far it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) drain: Option<DrainView>,
    callers: Option<String>,
    pub(super) last_seen_ms: u64,
    waiting_reads: u64,
    tiers: Vec<TierView>,
}

/// A cordoned worker that is not in the cluster now.
#[derive(Serialize)]
struct AwayView {
    id: String,
    state: &'static str,
}

/// A drain that is under way.
#[derive(Serialize)]
pub(super) struct DrainView {
    pub(super) job: u64,
    pub(super) done_bytes: u64,
    pub(super) total_bytes: u64,
}

#[derive(Serialize)]
struct TierView {
    tier: String,
    path: String,
    capacity_bytes: u64,
    used_bytes: u64,
    blocks: u64,
    /// The worst that was wrong with its device in the last ten minutes.
    trouble: Option<String>,
}

#[derive(Serialize)]
struct DatasetView {
    name: String,
    snapshot: u64,
    files: u64,
    bytes: u64,
    cached_bytes: u64,
    cached_ratio: Option<f64>,
    /// Bytes from a tier as a part of all bytes that workers served.
    hit_ratio: Option<f64>,
    memory_bytes: u64,
    ssd_bytes: u64,
    origin_bytes: u64,
    /// What each domain of a placement with several copies holds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    copies: Vec<CopyView>,
    /// Which workers hold it, and why.
    placement: Option<PlacementView>,
}

/// The copy of a dataset in one domain.
#[derive(Serialize)]
struct CopyView {
    domain: String,
    cached_bytes: u64,
}

/// A job that runs.
#[derive(Serialize)]
struct JobView {
    id: u64,
    /// `warm`, `evict` or `drain`.
    kind: &'static str,
    /// The dataset, or the worker of a drain.
    of: String,
    done_bytes: u64,
    total_bytes: u64,
}

#[derive(Serialize)]
struct MountView {
    mountpoint: String,
    source: String,
    snapshot: Option<String>,
    metrics: Option<String>,
    supervisor_pid: u32,
    server_pid: Option<u32>,
    holder_pid: Option<u32>,
}

pub(crate) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let view = tokio_runtime()?.block_on(collect(args))?;
    if args.master.output == OutputFormat::Json {
        return output::json(&view);
    }
    for master in &view.masters {
        print_master(master)?;
    }
    if !view.mounts.is_empty() {
        let mut rows = Rows::new(&["mount", "source", "snapshot", "metrics", "server pid"]);
        for mount in &view.mounts {
            rows.add([
                mount.mountpoint.clone(),
                mount.source.clone(),
                mount.snapshot.clone().unwrap_or_else(|| "-".into()),
                mount.metrics.clone().unwrap_or_else(|| "-".into()),
                mount
                    .server_pid
                    .map_or("restarting".into(), |pid| pid.to_string()),
            ]);
        }
        rows.print()?;
    }
    Ok(())
}

async fn collect(args: &StatusArgs) -> Result<StatusView, Failure> {
    let given = args.master.at.address();
    let dial = match given {
        Some(_) => trust::dial(&args.master.at.certs)?,
        None => Dial::default(),
    };
    let addresses = match given {
        Some(address) => vec![address.to_owned()],
        None => connect::embedded_mounts()
            .into_iter()
            .map(|(_, address)| address)
            .collect(),
    };
    let mut mounts: Vec<MountView> = runtime::list()
        .into_iter()
        .map(|mount| MountView {
            mountpoint: mount.mountpoint.display().to_string(),
            source: mount.source,
            snapshot: mount.properties.get(SNAPSHOT_KEY).cloned(),
            metrics: mount
                .properties
                .get(HTTP_KEY)
                .map(|address| format!("http://{address}/metrics")),
            supervisor_pid: mount.supervisor_pid,
            server_pid: mount.server_pid,
            holder_pid: mount.holder_pid,
        })
        .collect();
    if addresses.is_empty() && mounts.is_empty() {
        return Err(Failure::new(
            Reason::NotFound,
            "nothing is mounted on this machine and no master is given; use --master HOST:PORT or WEIR_MASTER",
        ));
    }
    if let Some(namespace) = &args.namespace {
        // What a mount shows whose server is being started again is not known.
        mounts.retain(|mount| {
            let snapshot = mount.snapshot.as_deref();
            snapshot.is_none_or(|snapshot| split_name(snapshot).0 == namespace)
        });
    }
    let mut masters = Vec::new();
    for address in addresses {
        match status_of(&address, &dial, args.namespace.as_deref()).await {
            Ok(status) => masters.push(master_view(address, status)),
            Err(failure) if given.is_some() => return Err(failure),
            // The mount's server is being started again; what is known without it is still worth showing.
            Err(failure) => output::note(format_args!("weir: {}", failure.message())),
        }
    }
    Ok(StatusView { masters, mounts })
}

async fn status_of(
    address: &str,
    dial: &Dial,
    namespace: Option<&str>,
) -> Result<v1::Status, Failure> {
    let mut client = connect::call(address, dial).await?;
    let get = v1::GetStatusRequest {
        namespace: namespace.unwrap_or_default().to_owned(),
    };
    let got = client.get_status(request(get, CALL_DEADLINE)).await?;
    let mut status = got.into_inner();
    if let Some(namespace) = namespace {
        // Masters of earlier versions tell of all.
        let is_of = |dataset: &v1::DatasetStatus| split_name(&dataset.name).0 == namespace;
        status.datasets.retain(is_of);
    }
    Ok(status)
}

/// What a worker or a master says of itself; one of an earlier version says nothing.
fn said(callers: String) -> Option<String> {
    Some(callers).filter(|callers| !callers.is_empty())
}

fn shown(callers: Option<&str>) -> &str {
    callers.unwrap_or("unknown")
}

/// A worker as its master knows it.
pub(super) fn worker_view(worker: v1::WorkerStatus) -> WorkerView {
    let info = worker.worker.clone().unwrap_or_default();
    WorkerView {
        id: info.id,
        node: info.node,
        zone: said(info.zone),
        group: said(info.group),
        pool: said(info.pool),
        data_address: info.data_address,
        state: match worker.state() {
            v1::WorkerState::Unspecified => "active",
            v1::WorkerState::Cordoned => "cordoned",
            v1::WorkerState::Draining => "draining",
            v1::WorkerState::Drained => "drained",
        },
        away: worker.away,
        drain: (worker.drain_job > 0).then_some(DrainView {
            job: worker.drain_job,
            done_bytes: worker.drained_bytes,
            total_bytes: worker.drain_total_bytes,
        }),
        callers: said(worker.callers),
        last_seen_ms: worker.last_seen_ms,
        waiting_reads: worker.waiting_reads,
        tiers: worker
            .tiers
            .into_iter()
            .map(|tier| TierView {
                tier: tier.tier,
                path: tier.path,
                capacity_bytes: tier.capacity_bytes,
                used_bytes: tier.used_bytes,
                blocks: tier.blocks,
                trouble: said(tier.trouble),
            })
            .collect(),
    }
}

impl WorkerView {
    /// Bytes that it holds in all tiers, and that it could.
    pub(super) fn space(&self) -> (u64, u64) {
        let tiers = self.tiers.iter();
        tiers.fold((0, 0), |(used, capacity), tier| {
            (used + tier.used_bytes, capacity + tier.capacity_bytes)
        })
    }

    /// What people are told of a worker that is not as the others.
    pub(super) fn standing(&self) -> Option<String> {
        let id = &self.id;
        if self.away {
            return Some(match self.state {
                "active" => format!("worker {id} is away; it owns blocks when it comes back"),
                state => format!(
                    "worker {id} is away, and {state} when it comes back; `weir worker uncordon {id}` ends that"
                ),
            });
        }
        match (self.state, &self.drain) {
            ("draining", Some(drain)) => Some(format!(
                "worker {id} is being drained: the others have {} of {}",
                size(drain.done_bytes),
                size(drain.total_bytes)
            )),
            ("cordoned", _) => Some(format!(
                "worker {id} is cordoned: it gets no blocks, and serves those that it holds"
            )),
            ("drained", _) => Some(format!(
                "worker {id} is drained: the others have its blocks, and it can be stopped"
            )),
            _ => None,
        }
    }
}

fn master_view(address: String, status: v1::Status) -> MasterView {
    let workers = status.workers.into_iter().map(worker_view);
    let away = status.away.into_iter().map(worker_view);
    let away = away.map(|WorkerView { id, state, .. }| AwayView { id, state });
    let datasets = status.datasets.into_iter().map(|dataset| {
        let reads = dataset.reads.unwrap_or_default();
        let cached = reads.memory_bytes + reads.ssd_bytes;
        let copies = dataset.copies.into_iter().map(|copy| CopyView {
            domain: copy.name,
            cached_bytes: copy.cached_bytes,
        });
        DatasetView {
            name: dataset.name,
            snapshot: dataset.version,
            files: dataset.files,
            bytes: dataset.bytes,
            cached_bytes: dataset.cached_bytes,
            cached_ratio: ratio(dataset.cached_bytes, dataset.bytes),
            hit_ratio: ratio(cached, cached + reads.origin_bytes),
            memory_bytes: reads.memory_bytes,
            ssd_bytes: reads.ssd_bytes,
            origin_bytes: reads.origin_bytes,
            copies: copies.collect(),
            placement: dataset
                .placement
                .map(|placement| PlacementView::new(placement, dataset.placement_reason)),
        }
    });
    let jobs = status.jobs.into_iter().map(|job| JobView {
        id: job.id,
        kind: match job.kind() {
            v1::JobKind::Evict => "evict",
            v1::JobKind::Drain => "drain",
            v1::JobKind::Warm | v1::JobKind::Unspecified => "warm",
        },
        of: if job.worker.is_empty() {
            job.dataset
        } else {
            job.worker
        },
        done_bytes: job.done_bytes,
        total_bytes: job.total_bytes,
    });
    MasterView {
        address,
        epoch: status.epoch,
        callers: said(status.callers),
        workers: workers.collect(),
        away: away.collect(),
        datasets: datasets.collect(),
        jobs: jobs.collect(),
    }
}

impl DatasetView {
    /// Copies that lack what another has.
    fn lacking(&self) -> impl Iterator<Item = &CopyView> {
        let lacks = |copy: &&CopyView| copy.cached_bytes < self.cached_bytes;
        self.copies.iter().filter(lacks)
    }
}

/// Columns for places are there where a worker names one.
fn print_workers(workers: &[WorkerView]) -> Result<(), Failure> {
    type Place = fn(&WorkerView) -> &Option<String>;
    let places: [(&str, Place); 3] = [
        ("zone", |worker| &worker.zone),
        ("group", |worker| &worker.group),
        ("pool", |worker| &worker.pool),
    ];
    let mut places = Vec::from(places);
    places.retain(|(_, of)| workers.iter().any(|worker| of(worker).is_some()));
    let mut header = vec!["worker", "node"];
    header.extend(places.iter().map(|(name, _)| *name));
    header.extend(["callers", "tier", "used", "capacity", "blocks", "path"]);
    let mut rows = Rows::new(&header);
    for worker in workers {
        for tier in worker.tiers.iter().filter(|t| t.capacity_bytes > 0) {
            let mut row = vec![worker.id.clone(), worker.node.clone()];
            let place = |of: &Place| of(worker).clone().unwrap_or_else(|| "-".to_owned());
            row.extend(places.iter().map(|(_, of)| place(of)));
            row.extend([
                shown(worker.callers.as_deref()).to_owned(),
                tier.tier.clone(),
                size(tier.used_bytes),
                size(tier.capacity_bytes),
                tier.blocks.to_string(),
                tier.path.clone(),
            ]);
            rows.add(row);
        }
    }
    rows.print()
}

fn print_master(master: &MasterView) -> Result<(), Failure> {
    output::line(format_args!(
        "master {} (cluster map epoch {}, callers: {})",
        master.address,
        master.epoch,
        shown(master.callers.as_deref())
    ))?;
    print_workers(&master.workers)?;
    for standing in master.workers.iter().filter_map(WorkerView::standing) {
        output::line(standing)?;
    }
    for worker in &master.away {
        output::line(format_args!(
            "worker {} is {}, and away",
            worker.id, worker.state
        ))?;
    }
    for worker in &master.workers {
        for tier in &worker.tiers {
            if let Some(trouble) = &tier.trouble {
                output::line(format_args!(
                    "worker {}: {} {trouble}",
                    worker.id, tier.path
                ))?;
            }
        }
    }
    for worker in master.workers.iter().filter(|w| w.waiting_reads > 0) {
        output::line(format_args!(
            "worker {}: {} reads wait for an origin that fails or is silent",
            worker.id, worker.waiting_reads
        ))?;
    }
    let header = [
        "dataset",
        "snapshot",
        "files",
        "size",
        "cached",
        "cached %",
        "hit ratio",
        "held by",
    ];
    let mut rows = Rows::new(&header);
    for dataset in &master.datasets {
        let placement = dataset.placement.as_ref().map(ToString::to_string);
        let hits = dataset.memory_bytes + dataset.ssd_bytes;
        rows.add([
            dataset.name.clone(),
            dataset.snapshot.to_string(),
            dataset.files.to_string(),
            size(dataset.bytes),
            size(dataset.cached_bytes),
            percent(dataset.cached_bytes, dataset.bytes),
            percent(hits, hits + dataset.origin_bytes),
            placement.unwrap_or_else(|| "all workers".to_owned()),
        ]);
    }
    rows.print()?;
    for dataset in &master.datasets {
        for copy in dataset.lacking() {
            output::line(format_args!(
                "dataset {}: the copy in {} has {} of {} that are cached",
                dataset.name,
                copy.domain,
                size(copy.cached_bytes),
                size(dataset.cached_bytes)
            ))?;
        }
    }
    // What a drain has done stands beside its worker.
    for job in master.jobs.iter().filter(|job| job.kind != "drain") {
        output::line(format_args!(
            "job {}: {} of {}, {} of {}",
            job.id,
            job.kind,
            job.of,
            size(job.done_bytes),
            size(job.total_bytes)
        ))?;
    }
    Ok(())
}
