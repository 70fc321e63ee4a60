//! What a pod asks for: a dataset, perhaps one snapshot of it, and a directory in it.
//!
//! A persistent volume and an inline one say the same in the same attributes. Everything comes from who writes pods, so
//! nothing of it becomes part of a path before it was taken apart here.

use std::collections::HashMap;

use weir_core::id::check_namespace;
use weir_core::{DatasetName, DatasetRef, SnapshotId};

use crate::error::CsiError;

/// The attributes of a volume.
const ATTRIBUTES: [&str; 3] = ["dataset", "snapshot", "path"];
/// Begins what kubelet adds about the pod.
const POD: &str = "csi.storage.k8s.io/";
/// What a provisioner of Kubernetes adds to volumes that it makes.
const PROVISIONER: &str = "storage.kubernetes.io/";
/// Longest path in a dataset, and longest name in it, in bytes: those of the kernel.
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;
/// Longest dataset that is looked at, in bytes: two names, a number, and as much again for what is wrong with it.
const MAX_DATASET: usize = 512;
/// Longest id of a volume, in bytes.
const MAX_ID: usize = 256;

/// What a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The dataset.
    pub dataset: DatasetName,
    /// One snapshot of it; the newest when the pod's volume is made, without one.
    pub version: Option<u64>,
    /// The directory in it that becomes the volume, without a slash at either end; empty for all.
    pub path: String,
    /// Whether the pod itself defines it, and no claim.
    pub is_inline: bool,
    /// The pod.
    pub pod: Pod,
}

/// The pod that a volume is for, as kubelet tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What no other pod has, not even one of the same name.
    pub uid: String,
}

/// What is mounted somewhere, as the kernel's table of mounts tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The directory in it.
    pub path: String,
}

/// Checks a volume's id, which is only a name here.
pub(crate) fn check_id(id: &str) -> Result<(), CsiError> {
    if id.is_empty() {
        return Err(CsiError::Invalid("the volume has no id".to_owned()));
    }
    if id.len() > MAX_ID || id.chars().any(char::is_control) {
        return Err(CsiError::Invalid(format!(
            "the volume's id is longer than {MAX_ID} bytes or not printable"
        )));
    }
    Ok(())
}

/// The dataset of a persistent volume by its attributes, or by its id, which is `NAMESPACE/NAME` of those that the operator makes,
/// and `NAMESPACE/NAME#OTHER` of those for other namespaces. `None` if neither tells.
pub(crate) fn dataset_of(id: &str, attributes: &HashMap<String, String>) -> Option<DatasetName> {
    let named = attributes.get("dataset").map(|named| named.trim());
    let by_id = || id.split('#').next().unwrap_or_default();
    // A bare name is one of the pod's namespace, and here is no pod.
    let named = named
        .filter(|named| named.contains('/'))
        .unwrap_or_else(by_id);
    if !named.contains('/') || named.len() > MAX_DATASET {
        return None;
    }
    Some(named.parse::<DatasetRef>().ok()?.dataset)
}

impl Volume {
    /// Reads the attributes of a volume, and what kubelet tells of its pod beside them.
    pub fn of_attributes(attributes: &HashMap<String, String>) -> Result<Self, CsiError> {
        for name in attributes.keys() {
            let known = ATTRIBUTES.contains(&name.as_str())
                || name.starts_with(POD)
                || name.starts_with(PROVISIONER);
            if !known {
                return Err(unknown(name));
            }
        }
        let of = |name: &str| {
            let value = attributes.get(name).map(|value| value.trim());
            value.filter(|value| !value.is_empty())
        };
        let namespace = of("csi.storage.k8s.io/pod.namespace").ok_or_else(|| {
            CsiError::Invalid(
                "kubelet does not say which pod the volume is for; set podInfoOnMount: true in the CSIDriver csi.weir.io"
                    .to_owned(),
            )
        })?;
        check_namespace(namespace).map_err(|error| CsiError::Invalid(error.to_string()))?;
        let named = of("dataset").ok_or_else(|| {
            CsiError::Invalid(
                "the volume names no dataset; write volumeAttributes: {dataset: NAME}".to_owned(),
            )
        })?;
        if named.len() > MAX_DATASET {
            return Err(CsiError::Invalid(format!(
                "volumeAttributes.dataset has {} bytes, and no dataset's name is as long; write dataset: NAME",
                named.len()
            )));
        }
        // A bare name is one of the pod's own namespace, as everywhere in Kubernetes.
        let qualified = match named.split_once('/') {
            Some(_) => named.to_owned(),
            None => format!("{namespace}/{named}"),
        };
        let named: DatasetRef = qualified
            .parse()
            .map_err(|error| CsiError::Invalid(format!("volumeAttributes.dataset: {error}")))?;
        let version = match (of("snapshot"), named.version) {
            (None, version) => version,
            (Some(text), of_name) => {
                let number = text.parse::<u64>().ok().filter(|number| *number > 0);
                let number = number.ok_or_else(|| {
                    CsiError::Invalid(
                        "volumeAttributes.snapshot is not a snapshot's number; write for instance \"3\", or leave it out for the newest"
                            .to_owned(),
                    )
                })?;
                if of_name.is_some_and(|of_name| of_name != number) {
                    return Err(CsiError::Invalid(
                        "volumeAttributes.dataset and volumeAttributes.snapshot name two snapshots; leave one of them out"
                            .to_owned(),
                    ));
                }
                Some(number)
            }
        };
        Ok(Self {
            dataset: named.dataset,
            version,
            path: inside(of("path").unwrap_or_default())?,
            is_inline: of("csi.storage.k8s.io/ephemeral") == Some("true"),
            pod: Pod {
                namespace: namespace.to_owned(),
                name: of("csi.storage.k8s.io/pod.name")
                    .unwrap_or_default()
                    .to_owned(),
                uid: of("csi.storage.k8s.io/pod.uid")
                    .unwrap_or_default()
                    .to_owned(),
            },
        })
    }

    /// Whether what is mounted is what this asks for. Without a number every snapshot is: a pod keeps the one that it has.
    pub fn is(&self, shown: &Shown) -> bool {
        self.dataset == shown.snapshot.dataset
            && self.path == shown.path
            && self
                .version
                .is_none_or(|version| version == shown.snapshot.version)
    }
}

fn unknown(name: &str) -> CsiError {
    let name: String = name.chars().take(64).collect();
    let hint = weir_core::dataset::did_you_mean(&name, ATTRIBUTES);
    CsiError::Invalid(format!("volumeAttributes knows no {name:?}{hint}"))
}

/// The one form of a path inside a dataset.
fn inside(path: &str) -> Result<String, CsiError> {
    let wrong = |why: &str| CsiError::Invalid(format!("volumeAttributes.path {why}"));
    if path.len() > MAX_PATH {
        return Err(wrong("is longer than 4095 bytes"));
    }
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    for part in &parts {
        if *part == ".." {
            return Err(wrong(
                "has .. in it; write the path from the dataset's root",
            ));
        }
        if part.len() > MAX_NAME || part.chars().any(char::is_control) {
            return Err(wrong("has a name in it that no file has"));
        }
    }
    Ok(parts.join("/"))
}

impl Shown {
    /// What a mount of Weir shows, by its source and its root in the kernel's table. `None` of one that is no snapshot of a
    /// dataset.
    pub fn of_mount(source: &str, root: &std::path::Path) -> Option<Self> {
        let named: DatasetRef = source.strip_prefix("weir:")?.parse().ok()?;
        Some(Self {
            snapshot: SnapshotId {
                dataset: named.dataset,
                version: named.version?,
            },
            path: root.to_str()?.trim_matches('/').to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn attributes(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        let mut all: HashMap<String, String> = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        all.entry("csi.storage.k8s.io/pod.namespace".to_owned())
            .or_insert_with(|| "team-a".to_owned());
        all
    }

    fn read(pairs: &[(&str, &str)]) -> Result<Volume, CsiError> {
        Volume::of_attributes(&attributes(pairs))
    }

    #[test]
    fn a_name_without_a_namespace_is_one_of_the_pods_own() {
        let own = read(&[("dataset", "imagenet")]).unwrap();
        assert_eq!(own.dataset.as_str(), "team-a/imagenet");
        assert_eq!((own.version, own.path.as_str()), (None, ""));
        let other = read(&[("dataset", "team-b/imagenet@3"), ("path", "/train//a/./b/")]).unwrap();
        assert_eq!(other.dataset.as_str(), "team-b/imagenet");
        assert_eq!((other.version, other.path.as_str()), (Some(3), "train/a/b"));
        let numbered = read(&[("dataset", "default/x"), ("snapshot", "7"), ("path", "")]).unwrap();
        assert_eq!(
            (numbered.dataset.as_str(), numbered.version),
            ("x", Some(7))
        );
        assert_eq!(
            read(&[("dataset", "x@7"), ("snapshot", "7")])
                .unwrap()
                .version,
            Some(7)
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_to_write() {
        for (pairs, said) in [
            (&[][..], "names no dataset"),
            (&[("dataset", "a/b/c")], "not valid"),
            (&[("dataset", "../x")], "not valid"),
            (&[("dataset", "x@0")], "NAME@NUMBER"),
            (
                &[("dataset", "x"), ("snapshot", "latest")],
                "leave it out for the newest",
            ),
            (
                &[("dataset", "x@1"), ("snapshot", "2")],
                "leave one of them out",
            ),
            (&[("dataset", "x"), ("path", "a/../../etc")], "has .. in it"),
            (&[("dataset", "x"), ("path", "a\nb")], "no file has"),
            (&[("datset", "x")], "dataset"),
            (
                &[
                    ("dataset", "x"),
                    ("csi.storage.k8s.io/pod.namespace", "a b"),
                ],
                "namespace",
            ),
            (
                &[("dataset", "x"), ("csi.storage.k8s.io/pod.namespace", "")],
                "podInfoOnMount",
            ),
        ] {
            let error = read(pairs).unwrap_err().to_string();
            assert!(error.contains(said), "{pairs:?}: {error}");
            assert!(error.len() < 600 && !error.contains('\n'), "{error}");
        }
        for long in ["x".repeat(1 << 20), format!("x@{}", "9".repeat(1 << 20))] {
            let error = read(&[("dataset", &long)]).unwrap_err().to_string();
            assert!(error.contains("bytes") && error.len() < 600, "{error}");
        }
        let long = "x/".repeat(3000);
        assert!(read(&[("dataset", "x"), ("path", &long)]).is_err());
        let name = "x".repeat(300);
        assert!(read(&[("dataset", "x"), ("path", &name)]).is_err());
        for id in ["", "a\0b", &"x".repeat(257)] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        assert!(check_id("../../etc").is_ok(), "an id is only a name");
    }

    #[test]
    fn a_persistent_volumes_dataset_is_known_by_its_attributes_or_its_id() {
        let of = |id: &str, named: &str| {
            let named =
                [("dataset", named)].map(|(name, value)| (name.to_owned(), value.to_owned()));
            let dataset = dataset_of(id, &named.into());
            dataset.map(|dataset| dataset.to_string())
        };
        for (id, named, dataset) in [
            ("any", "team-a/x", Some("team-a/x")),
            ("any", " team-a/x@3 ", Some("team-a/x")),
            ("team-a/x", "", Some("team-a/x")),
            ("team-a/x#team-b", "x", Some("team-a/x")),
            ("default/x", "", Some("x")),
            ("fake-vol-id", "x", None),
            ("../../etc", "", None),
            ("a/b/c", "", None),
            ("", "", None),
        ] {
            assert_eq!(of(id, named).as_deref(), dataset, "{id} {named}");
        }
        assert_eq!(of(&format!("a/{}", "x".repeat(1 << 20)), ""), None);
    }

    #[test]
    fn what_is_mounted_is_known_by_the_kernels_table() {
        let volume = read(&[("dataset", "team-a/x"), ("path", "train")]).unwrap();
        let at = |source: &str, root: &str| Shown::of_mount(source, Path::new(root));
        let shown = at("weir:team-a/x@3", "/train").unwrap();
        assert!(volume.is(&shown));
        assert!(
            !Volume {
                version: Some(4),
                ..volume.clone()
            }
            .is(&shown)
        );
        assert!(!volume.is(&at("weir:team-a/x@3", "/").unwrap()));
        assert!(!volume.is(&at("weir:x@3", "/train").unwrap()));
        for none in ["weir:team-a/x", "weir:s3://bucket/x@3", "team-a/x@3", ""] {
            assert_eq!(at(none, "/"), None, "{none}");
        }
    }
}
