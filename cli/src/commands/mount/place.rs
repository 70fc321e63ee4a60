//! Where a mount keeps its state, and the name of the dataset that is made of a URL.

use std::path::{Path, PathBuf};

use weir_mount::runtime::{self as mounts, MountInfo, Reserved};
use weir_origin::OriginSpec;

use crate::connect::STATE_DIR_KEY;
use crate::exit::{Failure, Reason};

/// Longest dataset name that is made from a URL, before its hash.
const MAX_SLUG: usize = 48;

/// A dataset name made from a URL: what is readable of it, and a hash of the whole.
pub(super) fn slug(origin: &OriginSpec) -> String {
    let readable: String = origin
        .url
        .split_once("://")
        .map_or("", |(_, rest)| rest)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let readable = readable.trim_matches('-');
    let readable = &readable[..readable.len().min(MAX_SLUG)];
    let index = origin.index_query();
    let whole = format!("{}/{}{index}", origin.location(), origin.prefix());
    let hash = weir_core::OriginId::of_location(&whole).to_string();
    let start = if readable.is_empty() {
        "root"
    } else {
        readable
    };
    format!("{start}-{}", &hash[..8])
}

/// `$XDG_CACHE_HOME/weir`, or `~/.cache/weir`.
pub(crate) fn cache_home() -> Result<PathBuf, Failure> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| {
            absolute("HOME")
                .or_else(home)
                .map(|home| home.join(".cache"))
        })
        .map(|cache| cache.join("weir"))
        .ok_or_else(|| {
            Failure::new(
                Reason::Usage,
                "neither HOME nor XDG_CACHE_HOME is set; set one, the cache lives there",
            )
        })
}

/// The user's home: mounts at boot are made by processes without HOME.
fn home() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| home.is_absolute())
}

/// The live mount at `mountpoint`, if there is one.
pub(super) fn live(mountpoint: &Path) -> Option<MountInfo> {
    mounts::list()
        .into_iter()
        .find(|mount| is_at(mount, mountpoint))
}

fn is_at(mount: &MountInfo, mountpoint: &Path) -> bool {
    !mount.detached && mounts::same_mountpoint(&mount.mountpoint, mountpoint)
}

/// Where the mount at `mountpoint` keeps its state: where the live one there does; else `base`, or `base-2` and so on
/// when mounts elsewhere use that, since a cache has one owner: live ones, and those that are being started, which is what
/// is reserved beside.
pub(super) fn state_dir(base: &Path, mountpoint: &Path) -> (PathBuf, Option<Reserved>) {
    let mut live = mounts::list();
    let here = live.iter().position(|mount| is_at(mount, mountpoint));
    let here = here.map(|at| live.swap_remove(at));
    let dir = |mount: MountInfo| mount.properties.get(STATE_DIR_KEY).map(PathBuf::from);
    if let Some(dir) = here.and_then(dir) {
        return (dir, None);
    }
    let used: Vec<PathBuf> = live.into_iter().filter_map(dir).collect();
    let mut slot = base.to_owned();
    let mut number = 1;
    loop {
        if !used.contains(&slot) {
            match mounts::reserve(&slot) {
                Ok(Some(reserved)) => return (slot, Some(reserved)),
                Ok(None) => {}
                // Then the one that comes second is told that another mount uses the directory.
                Err(_) => return (slot, None),
            }
        }
        number += 1;
        let mut name = base.as_os_str().to_owned();
        name.push(format!("-{number}"));
        slot = PathBuf::from(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(url: &str, endpoint: Option<&str>) -> OriginSpec {
        OriginSpec {
            hdfs: weir_origin::HdfsOptions::default(),
            url: url.to_owned(),
            endpoint: endpoint.map(str::to_owned),
            region: None,
            addressing: weir_origin::Addressing::Auto,
            anonymous: false,
            profile: None,
            patience_seconds: None,
            credentials: None,
        }
    }

    #[test]
    fn a_name_made_from_a_url_is_valid_and_differs_by_endpoint_and_prefix() {
        let long = format!("https://host/{}/?index=", "d".repeat(60));
        let names: std::collections::BTreeSet<String> = [
            spec(&format!("{long}a"), None),
            spec(&format!("{long}b"), None),
            spec("s3://bucket/train", None),
            spec("s3://bucket/trai", None),
            spec("s3://bucket/train", Some("http://127.0.0.1:9000")),
            spec("file:///data/é/x", None),
            spec("file:///", None),
        ]
        .iter()
        .map(slug)
        .collect();
        assert_eq!(names.len(), 7, "{names:?}");
        for name in names {
            assert!(name.parse::<weir_core::DatasetName>().is_ok(), "{name}");
        }
    }
}
