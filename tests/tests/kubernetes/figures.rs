//! Figures for docs/testing.md, which are printed: nothing here fails because a machine is slow.

use std::time::{Duration, Instant};

use crate::Case;
use crate::kubernetes::installation::{Installation, NODES};
use crate::kubernetes::volumes::{create, inline, pod};
use weir_demo::ending::tell;

pub(crate) const CASES: &[Case] = &[
    (
        "a_volume_adds_to_the_start_of_a_pod",
        a_volume_adds_to_the_start_of_a_pod,
    ),
    ("memory_at_rest", memory_at_rest),
];

/// Pods of either kind.
const PODS: usize = 9;

/// Of pods with a volume of a known dataset, and such with an empty directory, in turns: until they are ready.
fn a_volume_adds_to_the_start_of_a_pod(weir: &Installation) {
    create(weir, "starts");
    let cluster = &weir.cluster;
    let start = |name: &str, volume: &str| {
        let pod = pod(weir, name, 1, volume, "sleep 3600");
        let begun = Instant::now();
        cluster.apply(&pod);
        let pod = format!("pod/{name}");
        let wait = ["wait", "--for=condition=Ready", &pod, "--timeout=60s"];
        cluster.kubectl(&wait).ok();
        begun.elapsed()
    };
    let stop = |name: &str| {
        let delete = ["delete", "pod", name, "--timeout=60s"];
        cluster.kubectl(&delete).ok();
    };
    let volume = inline("dataset: starts");
    let (mut empty, mut first, mut further) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PODS {
        empty.push(start("empty", "emptyDir: {}"));
        // The first pod of a node has the dataset mounted, and a second one shares the mount.
        first.push(start("first", &volume));
        further.push(start("further", &volume));
        for name in ["empty", "first", "further"] {
            stop(name);
        }
    }
    for times in [&mut empty, &mut first, &mut further] {
        times.sort();
    }
    let median = |times: &[Duration]| times[times.len() / 2];
    let added = |times: &[Duration]| median(times).saturating_sub(median(&empty));
    tell(format_args!(
        "a pod starts in {:?} (median of {PODS}) with an empty directory; a volume of Weir adds {:?} for the first pod of the node, {:?} for further ones",
        median(&empty),
        added(&first),
        added(&further)
    ));
    weir.weir(&["dataset", "delete", "default/starts"]).ok();
}

/// Proportional set sizes of Weir's processes while nothing is read and nothing is mounted.
fn memory_at_rest(_: &Installation) {
    for (part, words) in [
        ("master", &["weir", "master"][..]),
        ("worker", &["weir", "worker"]),
        ("node plugin", &["weir", "csi", "--master"]),
        ("holder", &["weir", "csi", "holder"]),
        ("operator", &["weir", "operator"]),
    ] {
        let mut bytes = 0;
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let read = |name: &str| std::fs::read_to_string(entry.path().join(name));
            let Ok(line) = read("cmdline") else { continue };
            let mut arguments = line.split('\0');
            let is_meant = words.iter().all(|word| {
                let argument = arguments.next().unwrap_or_default();
                argument
                    .rsplit('/')
                    .next()
                    .is_some_and(|last| last.starts_with(word))
            });
            let in_lab = read("cgroup").is_ok_and(|groups| groups.contains("/weir-lab-"));
            if is_meant && in_lab {
                let sizes = read("smaps_rollup").unwrap_or_default();
                let pss = sizes.lines().find_map(|line| line.strip_prefix("Pss:"));
                let pss = pss.and_then(|pss| pss.trim().strip_suffix(" kB"));
                bytes += pss
                    .and_then(|pss| pss.trim().parse::<u64>().ok())
                    .unwrap_or(0)
                    << 10;
            }
        }
        let each = if matches!(part, "master" | "operator") {
            1
        } else {
            NODES as u64
        };
        tell(format_args!("{part}: {} MiB", (bytes / each) >> 20));
        assert!(bytes > 0, "no process of the {part} was found");
    }
}
