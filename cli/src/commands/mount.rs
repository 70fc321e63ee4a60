//! `weir mount`, and the supervisor that it starts.

mod identity;
pub(super) mod place;
mod refused;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use weir_core::{DatasetRef, Location};
use weir_mount::MountError;
use weir_mount::runtime::Reserved;
use weir_mount::supervisor::{self, Made, StartRequest};

use self::place::{cache_home, slug, state_dir};
use super::worker::ssd_tiers;
use crate::args::MountArgs;
use crate::exit::{Failure, Reason};
use crate::memory::{default_fill_memory, default_memory};
use crate::mounted::{MountConfig, Source};
use crate::output;
use crate::process::{init_logging, node_name, raise_descriptor_limit};
use crate::trust;

pub(crate) fn run(args: MountArgs) -> Result<(), Failure> {
    // The processes of the mount would find out, too, with none left to say so.
    raise_descriptor_limit()?;
    let node = match args.node.clone() {
        Some(node) => node,
        None => node_name()?,
    };
    let mut made = Made::default();
    let planned = plan(&args, &mut made).inspect_err(|_| made.remove())?;
    let _until_started = planned.reserved;
    let config = MountConfig {
        source: planned.source,
        state_dir: planned.state_dir,
        refresh: args.refresh,
        node,
        location: Location {
            zone: args.zone.clone().and_then(|zone| zone.0),
            group: args.group.clone().and_then(|group| group.0),
            ..Location::default()
        },
        uid: args
            .uid
            .unwrap_or_else(|| rustix::process::getuid().as_raw()),
        gid: args
            .gid
            .unwrap_or_else(|| rustix::process::getgid().as_raw()),
        file_mode: args.file_mode.0,
        dir_mode: args.dir_mode.0,
        http: args.http,
        read_ahead: args.read_ahead,
        allowed: args.sources.clone(),
        no_origin_fallback: args.no_origin_fallback,
        known_dir: args
            .known_dir
            .as_deref()
            .map(std::path::absolute)
            .transpose()?,
    };
    let json = serde_json::to_string(&config).map_err(anyhow::Error::from)?;
    let request = StartRequest {
        mountpoint: args.dir.clone(),
        source: args.source.clone(),
        identity: planned.identity,
        allow_other: args.allow_other,
        server_args: vec!["--config".to_owned(), json],
        made,
    };
    if args.foreground {
        init_logging();
        let text = format!("mounted {} at {}", args.source, args.dir.display());
        let ready = move || {
            if let Err(failure) = output::line(text) {
                tracing::warn!("{}", failure.message());
            }
        };
        return supervisor::run_foreground(request, ready).map_err(|error| explain(&error));
    }
    let started = supervisor::start(request, Duration::from_secs(args.timeout))
        .map_err(|error| explain(&error))?;
    let how = if started.took_over {
        "took over the mount of"
    } else {
        "mounted"
    };
    output::line(format_args!(
        "{how} {} at {}",
        args.source,
        args.dir.display()
    ))
}

/// `weir supervise`: the daemon behind a mount.
pub(crate) fn supervise() -> ExitCode {
    init_logging();
    supervisor::run()
}

/// The exit code that fits a failed mount.
pub(crate) fn explain(error: &MountError) -> Failure {
    let reason = match error {
        MountError::NotMounted { .. } => Reason::NotFound,
        MountError::Server { code, .. } => Reason::of_code(*code),
        MountError::Busy { .. } | MountError::OtherSource { .. } => Reason::Conflict,
        MountError::Hides { .. } => Reason::Usage,
        MountError::GivenUp { .. } => Reason::Interrupted,
        _ => Reason::Other,
    };
    Failure::new(reason, error)
}

/// What is mounted, and where its state is.
struct Plan {
    source: Source,
    /// What a live mount must be to be taken over.
    identity: String,
    state_dir: PathBuf,
    /// Until the mount is started.
    reserved: Option<Reserved>,
}

/// Checks what was asked for and makes the directories that it needs.
fn plan(args: &MountArgs, made: &mut Made) -> Result<Plan, Failure> {
    let cache = cache_home()?;
    refused::own_files(args, &cache)?;
    let plan = if args.source.contains("://") {
        embedded(args, &cache, made)
    } else {
        cluster(args, &cache, made)
    };
    let plan = plan?;
    refused::other_snapshot(args, &plan.source)?;
    make_mountpoint(&args.dir, made)?;
    Ok(plan)
}

/// Makes the directory when it is missing.
fn make_mountpoint(dir: &Path, made: &mut Made) -> anyhow::Result<()> {
    made.directory(dir)
        .with_context(|| format!("cannot make the mountpoint {}", dir.display()))
}

fn make_state(dir: &Path, made: &mut Made) -> anyhow::Result<()> {
    made.state(dir)
        .with_context(|| format!("cannot make {}", dir.display()))
}

fn embedded(args: &MountArgs, cache: &Path, made: &mut Made) -> Result<Plan, Failure> {
    if args.no_origin_fallback {
        return Err(Failure::new(
            Reason::Usage,
            "a mount with its own cache reads its origin itself; --no-origin-fallback is for a dataset of a cluster, with --master",
        ));
    }
    if args.known_dir.is_some() {
        return Err(Failure::new(
            Reason::Usage,
            "a mount with its own cache asks no master; --known-dir is for a dataset of a cluster, with --master",
        ));
    }
    let origin = super::dataset::origin_spec(&args.source, &args.origin)?;
    refused::source(&args.dir, &origin)?;
    let name = slug(&origin);
    let dataset = match &args.dataset {
        Some(dataset) => dataset.clone(),
        None => DatasetRef {
            dataset: name.parse().map_err(anyhow::Error::from)?,
            version: None,
        },
    };
    let (state_dir, reserved) = state_dir(&cache.join(&name), &args.dir);
    make_state(&state_dir, made)?;
    let slot = state_dir.file_name().map(PathBuf::from).unwrap_or_default();
    let mut ssd = Vec::new();
    for tier in ssd_tiers(&args.cache, &state_dir.join("ssd"))? {
        // Several mounts may be given the same directory.
        let dir = if args.cache.ssd.is_empty() {
            tier.dir
        } else {
            tier.dir.join(&slot)
        };
        make_state(&dir, made)?;
        ssd.push((dir, tier.capacity));
    }
    Ok(Plan {
        identity: identity::of_origin(&origin, &dataset),
        source: Source::Embedded {
            origin,
            dataset,
            memory: args.cache.mem.unwrap_or_else(default_memory),
            fill_memory: args.cache.fill_memory.unwrap_or_else(default_fill_memory),
            ssd,
            evict_idle: args.cache.evict_idle(),
            ssd_free: args.cache.ssd_free,
        },
        state_dir,
        reserved,
    })
}

/// The directory that somebody names who wrote a path instead of a URL: no dataset's name begins so.
fn directory(source: &str) -> Option<PathBuf> {
    let is_path = source.starts_with(['/', '.']);
    let dir = std::path::absolute(source).ok().filter(|_| is_path)?;
    // A `..` stays as it was written; the real path has none.
    Some(std::fs::canonicalize(&dir).unwrap_or(dir))
}

fn cluster(args: &MountArgs, cache: &Path, made: &mut Made) -> Result<Plan, Failure> {
    if let Some(dir) = directory(&args.source) {
        return Err(Failure::new(
            Reason::Usage,
            format!(
                "{} is no dataset's name; to mount that directory write file://{}",
                args.source,
                dir.display()
            ),
        ));
    }
    let dataset: DatasetRef = args.source.parse().map_err(|error| {
        Failure::new(
            Reason::Usage,
            format!("{error}; or give a URL such as s3://bucket/prefix"),
        )
    })?;
    let Some(master) = args.master.clone() else {
        return Err(Failure::new(
            Reason::Usage,
            format!(
                "{} is a dataset's name and needs a master: use --master HOST:PORT or WEIR_MASTER, or mount a URL such as s3://bucket/prefix",
                args.source
            ),
        ));
    };
    let certs = args.certs.dir().map(std::path::absolute).transpose()?;
    refused::source_of_dataset(&args.dir, &master, &trust::dial(&args.certs)?, &dataset)?;
    // A dataset's name may have a slash.
    let name = format!("{master}-{dataset}").replace('/', "+");
    let (state_dir, reserved) = state_dir(&cache.join(name), &args.dir);
    make_state(&state_dir, made)?;
    Ok(Plan {
        identity: identity::of_dataset(&master, &dataset),
        source: Source::Cluster {
            master,
            dataset,
            certs,
        },
        state_dir,
        reserved,
    })
}
