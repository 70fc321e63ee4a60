//! `weir mount`, and the supervisor that it starts.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use weir_core::DatasetRef;
use weir_fuse::mount::MountError;
use weir_fuse::runtime as mounts;
use weir_fuse::supervisor::{self, StartRequest};
use weir_origin::OriginSpec;

use super::worker::ssd_tiers;
use crate::args::MountArgs;
use crate::connect::STATE_DIR_KEY;
use crate::exit::{Failure, Reason};
use crate::mounted::{MountConfig, Source};
use crate::output;
use crate::process::{default_memory, init_logging, node_name};

/// Longest dataset name that is made from a URL, before its hash.
const MAX_SLUG: usize = 48;

pub(crate) fn run(args: MountArgs) -> Result<(), Failure> {
    make_mountpoint(&args.dir)?;
    let node = match args.node.clone() {
        Some(node) => node,
        None => node_name()?,
    };
    let (source, state_dir) = if args.source.contains("://") {
        embedded(&args)?
    } else {
        cluster(&args)?
    };
    let config = MountConfig {
        source,
        state_dir,
        refresh: args.refresh,
        node,
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
    };
    let json = serde_json::to_string(&config).map_err(anyhow::Error::from)?;
    let request = StartRequest {
        mountpoint: args.dir.clone(),
        source: args.source.clone(),
        allow_other: args.allow_other,
        server_args: vec!["--config".to_owned(), json],
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
        _ => Reason::Other,
    };
    Failure::new(reason, error)
}

/// Makes the directory when it is missing. One that exists is not looked at: it may be a mount.
fn make_mountpoint(dir: &Path) -> anyhow::Result<()> {
    match std::fs::create_dir(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("cannot make the mountpoint {}", dir.display()))
        }
    }
}

fn embedded(args: &MountArgs) -> Result<(Source, PathBuf), Failure> {
    let origin = super::dataset::origin_spec(&args.source, &args.origin)?;
    let name = slug(&origin);
    let dataset = match &args.dataset {
        Some(dataset) => dataset.clone(),
        None => DatasetRef {
            dataset: name.parse().map_err(anyhow::Error::from)?,
            version: None,
        },
    };
    let state_dir = free_slot(&cache_home()?.join(&name), &args.dir);
    let slot = state_dir.file_name().map(PathBuf::from).unwrap_or_default();
    let given = ssd_tiers(&args.cache.ssd, &state_dir.join("ssd"))?;
    let ssd = given.into_iter().map(|ssd| {
        // Several mounts may be given the same directory.
        let dir = if args.cache.ssd.is_empty() {
            ssd.dir
        } else {
            ssd.dir.join(&slot)
        };
        (dir, ssd.capacity)
    });
    let source = Source::Embedded {
        origin,
        dataset,
        memory: args.cache.mem.unwrap_or_else(default_memory),
        fill_memory: args.cache.fill_memory,
        ssd: ssd.collect(),
    };
    Ok((source, state_dir))
}

fn cluster(args: &MountArgs) -> Result<(Source, PathBuf), Failure> {
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
    let state_dir = free_slot(
        &cache_home()?.join(format!("{master}-{dataset}")),
        &args.dir,
    );
    Ok((Source::Cluster { master, dataset }, state_dir))
}

/// A dataset name made from a URL: what is readable of it, and a hash of the whole.
fn slug(origin: &OriginSpec) -> String {
    let readable: String = origin
        .url
        .split_once("://")
        .map_or("", |(_, rest)| rest)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let readable = readable.trim_matches('-');
    let readable = &readable[..readable.len().min(MAX_SLUG)];
    let whole = format!("{}/{}", origin.location(), origin.prefix());
    let hash = weir_core::OriginId::of_location(&whole).to_string();
    let start = if readable.is_empty() {
        "root"
    } else {
        readable
    };
    format!("{start}-{}", &hash[..8])
}

/// `$XDG_CACHE_HOME/weir`, or `~/.cache/weir`.
fn cache_home() -> Result<PathBuf, Failure> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("weir"))
        .ok_or_else(|| {
            Failure::new(
                Reason::Usage,
                "neither HOME nor XDG_CACHE_HOME is set; set one, the cache lives there",
            )
        })
}

/// `base`, or `base-2` and so on when live mounts elsewhere use it: a cache has one owner.
fn free_slot(base: &Path, mountpoint: &Path) -> PathBuf {
    let used: Vec<PathBuf> = mounts::list()
        .into_iter()
        .filter(|mount| !mounts::same_mountpoint(&mount.mountpoint, mountpoint))
        .filter_map(|mount| mount.properties.get(STATE_DIR_KEY).map(PathBuf::from))
        .collect();
    let mut slot = base.to_owned();
    let mut number = 1;
    while used.contains(&slot) {
        number += 1;
        let mut name = base.as_os_str().to_owned();
        name.push(format!("-{number}"));
        slot = PathBuf::from(name);
    }
    slot
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(url: &str, endpoint: Option<&str>) -> OriginSpec {
        OriginSpec {
            url: url.to_owned(),
            endpoint: endpoint.map(str::to_owned),
            region: None,
            addressing: weir_origin::Addressing::Auto,
            anonymous: false,
            profile: None,
        }
    }

    #[test]
    fn a_name_made_from_a_url_is_valid_and_differs_by_endpoint_and_prefix() {
        let names: std::collections::BTreeSet<String> = [
            spec("s3://bucket/train", None),
            spec("s3://bucket/trai", None),
            spec("s3://bucket/train", Some("http://127.0.0.1:9000")),
            spec("file:///data/é/x", None),
            spec("file:///", None),
        ]
        .iter()
        .map(slug)
        .collect();
        assert_eq!(names.len(), 5, "{names:?}");
        for name in names {
            assert!(name.parse::<weir_core::DatasetName>().is_ok(), "{name}");
        }
    }
}
