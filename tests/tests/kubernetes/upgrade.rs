//! Everything of Weir is replaced by another image while a pod reads what nobody has cached.

use std::time::Duration;

use weir_demo::ending::tell;
use weir_tests::{content, wait_until, write_tree};

use crate::Case;
use crate::kubernetes::cluster::root;
use crate::kubernetes::faults::{Reader, wait_for_holders, wait_for_workers};
use crate::kubernetes::installation::{Installation, NAMESPACE, NODES};
use crate::kubernetes::objects::{Origin, kubectl};
use crate::kubernetes::volumes::create_from;

pub(crate) const CASES: &[Case] = &[(
    "everything_is_upgraded_under_cold_reads",
    everything_is_upgraded_under_cold_reads,
)];

/// Files of the dataset: more than a pod reads meanwhile, so that none was read before.
const FILES: u64 = 30_000;
const FILE: usize = 12_000;
/// Longest upgrade.
const UPGRADE: Duration = Duration::from_mins(4);
/// The image that is installed, and the one that comes.
pub(crate) const IMAGE: &str = "lab.local/weir:test";
pub(crate) const NEXT: &str = "lab.local/weir:next";

fn everything_is_upgraded_under_cold_reads(weir: &Installation) {
    let cluster = &weir.cluster;
    for node in 1..=NODES {
        let tag = ["ctr", "-n", "k8s.io", "images", "tag", IMAGE, NEXT];
        cluster.on(node, &tag).ok();
    }
    let served = cluster.scratch.path("cold");
    let file = |n: u64| (format!("{}/{n}.bin", n % 30), content(n, FILE));
    write_tree(&served, &(0..FILES).map(file).collect());
    let origin = Origin::start(weir, 9005, &served, &[]);
    create_from(weir, "cold", &origin.endpoint());
    let reader = Reader::of(weir, "cold", 1, &served);
    wait_for_holders(weir);

    let chart = root().join("deploy/helm/weir");
    let upgrade = ["helm", "upgrade", "weir", chart.to_str().unwrap()];
    let how = ["--namespace", NAMESPACE, "--reuse-values"];
    let tag = ["--set", "image.tag=next", "--wait", "--timeout=200s"];
    cluster.exec(&[&upgrade[..], &how, &tag].concat()).ok();
    wait_until("all pods are of the next image", UPGRADE, || {
        let images = "jsonpath={.items[*].spec.containers[*].image}";
        let images = kubectl(weir, NAMESPACE, &["get", "pods", "-o", images]);
        images.split_whitespace().all(|image| image == NEXT)
    });
    wait_for_workers(weir);
    wait_for_holders(weir);
    let (read, _) = reader.seen();
    assert!(read < FILES, "it has read all files before that");
    let most = reader.end();
    tell(format_args!(
        "upgraded while {read} files were read for the first time, longest read {most:?}"
    ));
}
