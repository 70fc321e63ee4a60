//! What is refused before anything is made: a mount that would hide what it needs, and one that a live mount cannot become.

use std::path::Path;

use weir_fuse::runtime as mounts;
use weir_fuse::supervisor;
use weir_origin::OriginSpec;

use super::{explain, place};
use crate::args::MountArgs;
use crate::connect::SNAPSHOT_KEY;
use crate::exit::{Failure, Reason};
use crate::mounted::Source;

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
    // Credentials, profiles, certificates: a server that is started anew reads them again.
    for (name, value) in std::env::vars() {
        if name.starts_with("AWS_") && Path::new(&value).is_absolute() {
            visible(
                &format!("what {name} names,"),
                Path::new(&value),
                &format!("set {name} to another path"),
            )?;
        }
    }
    Ok(())
}

/// Refuses to hide the directory that is mounted.
pub(super) fn source(mountpoint: &Path, origin: &OriginSpec) -> Result<(), Failure> {
    let location = origin.location();
    let Some(dir) = location.strip_prefix("file://") else {
        return Ok(());
    };
    supervisor::check_visible(mountpoint, "its source", Path::new(dir), "another source")
        .map_err(|error| explain(&error))
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
