//! What is refused before anything is made: a mount that would hide what it needs, and one that a live mount cannot become.

use std::path::{Path, PathBuf};
use std::time::Duration;

use weir_core::DatasetRef;
use weir_mount::runtime as mounts;
use weir_mount::supervisor;
use weir_origin::OriginSpec;
use weir_proto::v1;
use weir_trust::Dial;

use super::{explain, place};
use crate::args::MountArgs;
use crate::connect::{self, SNAPSHOT_KEY, request};
use crate::exit::{Failure, Reason};
use crate::mounted::Source;
use crate::process::runtime;

/// Longest wait for a master that says what a dataset is made of. Without an answer the mount is tried.
const MASTER_DEADLINE: Duration = Duration::from_secs(3);

/// Refuses to hide the mount's cache, its runtime directory, or what its variables name.
pub(super) fn own_files(args: &MountArgs, cache: &Path) -> Result<(), Failure> {
    let visible = |what: &str, path: &Path, remedy: &str| {
        supervisor::check_visible(&args.dir, what, path, remedy).map_err(|error| explain(&error))
    };
    visible(
        "the cache directory",
        cache,
        "set XDG_CACHE_HOME to another directory",
    )?;
    visible(
        "the runtime directory",
        &mounts::base(),
        "set WEIR_RUNTIME_DIR to another directory",
    )?;
    for ssd in &args.cache.ssd {
        visible("the directory of an SSD tier", &ssd.dir, "another --ssd")?;
    }
    if let Some(certs) = args.certs.dir() {
        visible("the mount's certificate", certs, "another --certs")?;
    }
    // Credentials, profiles, certificates: a server that is started anew reads them again.
    for (name, value) in std::env::vars_os() {
        let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) else {
            continue;
        };
        let path = match (value.strip_prefix("~/"), std::env::home_dir()) {
            (Some(below), Some(home)) => home.join(below),
            _ => PathBuf::from(&value),
        };
        if name.starts_with("AWS_") && path.is_absolute() {
            visible(
                &format!("what {name} names,"),
                &path,
                &format!("set {name} to another path"),
            )?;
        }
    }
    Ok(())
}

/// Refuses to hide the directory that is mounted.
pub(super) fn source(mountpoint: &Path, origin: &OriginSpec) -> Result<(), Failure> {
    match directory(origin) {
        None => Ok(()),
        Some(dir) => hides(mountpoint, &dir),
    }
}

fn hides(mountpoint: &Path, dir: &str) -> Result<(), Failure> {
    supervisor::check_visible(mountpoint, "its source", Path::new(dir), "another source")
        .map_err(|error| explain(&error))
}

fn directory(origin: &OriginSpec) -> Option<String> {
    let location = origin.location();
    Some(location.strip_prefix("file://")?.to_owned())
}

/// Refuses to hide a directory of a cluster's dataset on a machine that has it: its worker, or the mount itself, may read
/// it there. On a machine where nothing lies there the mount hides nothing.
pub(super) fn source_of_dataset(
    mountpoint: &Path,
    master: &str,
    dial: &Dial,
    dataset: &DatasetRef,
) -> Result<(), Failure> {
    if place::live(mountpoint).is_some() {
        return Ok(());
    }
    let get = v1::GetDatasetRequest {
        name: dataset.dataset.to_string(),
    };
    let runtime = runtime()?;
    let known = runtime.block_on(async {
        let mut client = connect::lazy(master, dial)?;
        let known = client.get_dataset(request(get, MASTER_DEADLINE)).await;
        Ok::<_, Failure>(known)
    });
    runtime.shutdown_background();
    // Why there is no answer is told by the mount's server, which asks, too.
    let mounts = known?.map_or_else(|_| Vec::new(), |known| known.into_inner().mounts);
    let urls = mounts.iter().filter_map(|mount| mount.origin.as_ref());
    let origins = urls.filter_map(|origin| OriginSpec::parse(&origin.url).ok());
    for dir in origins.filter_map(|origin| directory(&origin)) {
        let is_here = || std::fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some());
        let hidden = hides(mountpoint, &dir);
        if hidden.is_err() && is_here() {
            return hidden;
        }
    }
    Ok(())
}

/// Refuses what would need another snapshot than the one that a live mount shows: what the kernel has cached of it stays.
pub(super) fn other_snapshot(args: &MountArgs, source: &Source) -> Result<(), Failure> {
    let Some(live) = place::live(&args.dir) else {
        return Ok(());
    };
    let (Source::Embedded { dataset, .. } | Source::Cluster { dataset, .. }) = source;
    let shown = live.properties.get(SNAPSHOT_KEY);
    let wanted = if args.refresh {
        "a new listing".to_owned()
    } else if dataset.version.is_some() && shown != Some(&dataset.to_string()) {
        dataset.to_string()
    } else {
        return Ok(());
    };
    let shown = shown.map_or("a snapshot", String::as_str);
    let at = args.dir.display();
    Err(Failure::new(
        Reason::Conflict,
        format!(
            "{at} shows {shown}, and a live mount keeps its snapshot: `weir unmount {at}` first to mount {wanted}"
        ),
    ))
}
