//! Tiers give back what others take of a node's disk, before kubelet ends pods for it.

use std::time::{Duration, Instant};

use serde_json::Value;
use weir_demo::ending::tell;
use weir_tests::{BUCKET, content, wait_until};

use crate::Case;
use crate::kubernetes::installation::{Installation, NODES};
use crate::kubernetes::objects::{Origin, kubectl};
use crate::kubernetes::pools::{standing, use_nodes};
use crate::kubernetes::upgrade::{IMAGE, NEXT};

pub(crate) const CASES: &[Case] = &[(
    "tiers_shrink_before_the_disk_of_their_node_is_short",
    tiers_shrink_before_the_disk_of_their_node_is_short,
)];

/// The node that joins, and its disk, which holds images, pods and a tier.
const NODE: usize = NODES + 1;
const DISK: &str = "3G";
/// Of the disk, in percent: what the tier leaves to others, and what kubelet wants free before it ends pods (its default for images).
const LEFT_FREE: u64 = 20;
const PRESSURE: u64 = 15;
/// More than fits on the disk.
const FILES: u64 = 84;
const FILE: usize = 32 << 20;
/// What others write in all, in steps a second apart: half a percent of the disk a second, of a terabyte 5 GB/s.
const STEPS: usize = 30;
const STEP: u64 = 16 << 20;

const SOON: Duration = Duration::from_mins(2);

/// The disk of the node that has one.
struct Disk<'a> {
    weir: &'a Installation,
    total: u64,
}

impl<'a> Disk<'a> {
    fn of(weir: &'a Installation) -> Self {
        let mut disk = Self { weir, total: 0 };
        disk.total = disk.bytes("%b");
        disk
    }

    /// So many bytes, of blocks as stat(1) counts them.
    fn bytes(&self, which: &str) -> u64 {
        let format = format!("{which} %S");
        let stat = ["stat", "-f", "-c", &format, "/var/lib/kubelet"];
        let said = self.weir.cluster.on(NODE, &stat).ok();
        let numbers = said.split_whitespace();
        numbers
            .map(|number| number.parse::<u64>().unwrap())
            .product()
    }

    /// What is free of it, in percent.
    fn free(&self) -> u64 {
        self.bytes("%a") * 100 / self.total
    }

    /// The size of what kubelet measures to end pods by.
    fn of_kubelet(&self) -> u64 {
        let summary = format!("/api/v1/nodes/node-{NODE}/proxy/stats/summary");
        let summary = self.weir.cluster.kubectl(&["get", "--raw", &summary]).ok();
        let summary: Value = serde_json::from_str(&summary).unwrap();
        summary["node"]["fs"]["capacityBytes"].as_u64().unwrap()
    }

    fn write(&self, number: usize) {
        let file = format!("of=/var/lib/kubelet/others-{number}");
        let size = format!("bs={STEP}");
        let write = ["dd", "if=/dev/zero", &file, &size, "count=1", "conv=fsync"];
        self.weir.cluster.on(NODE, &write).ok();
    }
}

fn tiers_shrink_before_the_disk_of_their_node_is_short(weir: &Installation) {
    let cluster = &weir.cluster;
    // The installation's workers stay where they are.
    for node in 1..=NODES {
        let label = ["label", "node", &format!("node-{node}"), "disk=shared"];
        cluster.kubectl(&label).ok();
    }
    use_nodes(weir, "{\"disk\": \"shared\"}");
    cluster.lab(&["node", DISK]).ok();
    let tag = ["ctr", "-n", "k8s.io", "images", "tag", IMAGE, NEXT];
    cluster.on(NODE, &tag).ok();
    let node = format!("node-{NODE}");
    cluster.apply(&format!(
        "apiVersion: weir.io/v1alpha1
kind: CachePool
metadata: {{name: room}}
spec:
  pool: room
  replicas: 1
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  tiers: {{memory: 32MiB, free: {LEFT_FREE}%, ssd: [{{size: 3GiB}}]}}
  resources: {{requests: {{cpu: 50m, memory: 128Mi}}}}
"
    ));
    wait_until("the node has a worker", SOON, || {
        standing(weir, &node) == "active"
    });
    let disk = Disk::of(weir);
    assert_eq!(disk.of_kubelet(), disk.total);

    let served = cluster.scratch.path("room");
    std::fs::create_dir(&served).unwrap();
    let file = content(0, FILE);
    for number in 0..FILES {
        std::fs::write(served.join(format!("{number}.bin")), &file).unwrap();
    }
    let origin = Origin::start(weir, 9006, &served, &[]);
    let url = format!("s3://{BUCKET}/");
    let create = ["dataset", "create", "default/room", &url, "--anonymous"];
    let endpoint = origin.endpoint();
    let from = ["--endpoint", &endpoint, "--pool", "room"];
    weir.weir(&[&create[..], &from].concat()).ok();
    weir.weir(&["warm", "default/room"]).ok();
    wait_until("the tier is full", SOON, || disk.free() <= LEFT_FREE + 2);

    let (mut lowest, begun) = (100, Instant::now());
    for step in 0..STEPS {
        disk.write(step);
        lowest = lowest.min(disk.free());
        let next = begun + Duration::from_secs(step as u64 + 1);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let took = begun.elapsed();
    wait_until("there is room again", SOON, || disk.free() >= LEFT_FREE);
    // What kubelet says of the node while it ends pods.
    let which = "--field-selector=reason=EvictionThresholdMet";
    let events = kubectl(weir, "default", &["get", "events", which, "-o", "name"]);
    tell(format_args!(
        "others took {} % of a disk in {took:.0?}: {lowest} % of it were free at least, of {LEFT_FREE} % that the tier leaves; kubelet ends pods below {PRESSURE} %",
        STEPS as u64 * STEP * 100 / disk.total
    ));
    assert!(
        lowest >= PRESSURE && events.is_empty(),
        "{lowest} %, {events}"
    );

    weir.weir(&["dataset", "delete", "default/room"]).ok();
    let delete = ["delete", "cachepool", "room", "--timeout=60s"];
    cluster.kubectl(&delete).ok();
    use_nodes(weir, "null");
}
