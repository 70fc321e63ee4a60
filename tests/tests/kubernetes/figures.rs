//! Figures for docs/testing.md, which are printed: nothing here fails because a machine is slow.

use std::path::{Path, PathBuf};
use std::time::Duration;

use weir_demo::ending::tell;
use weir_tests::memory_group::MemoryGroup;
use weir_tests::{content, write_tree};

use crate::Case;
use crate::kubernetes::installation::{Installation, NAMESPACE, NODES};
use crate::kubernetes::objects::{Origin, kubectl, of_all, wait_for};
use crate::kubernetes::volumes::{create, inline, of_claim, pod};

pub(crate) const CASES: &[Case] = &[
    (
        "a_volume_adds_to_the_start_of_a_pod",
        a_volume_adds_to_the_start_of_a_pod,
    ),
    ("epochs_through_a_claim", epochs_through_a_claim),
    ("memory_at_rest", memory_at_rest),
];

/// Pods of either kind.
const PODS: usize = 9;

/// Of pods with a volume of a known dataset, and such with an empty directory, in turns: until their command runs, which says so by
/// the clock of the machine. Kubelet itself looks only once a second what has become of a pod.
fn a_volume_adds_to_the_start_of_a_pod(weir: &Installation) {
    create(weir, "starts");
    let cluster = &weir.cluster;
    let uptime = |text: &str| {
        let seconds = text.split_whitespace().next().unwrap();
        Duration::from_secs_f64(seconds.parse().unwrap())
    };
    let start = |name: &str, volume: &str| {
        let pod = pod(weir, name, 1, volume, "cat /proc/uptime; exec sleep 3600");
        let begun = std::fs::read_to_string("/proc/uptime").unwrap();
        cluster.apply(&pod);
        let pod = format!("pod/{name}");
        let wait = ["wait", "--for=condition=Ready", &pod, "--timeout=60s"];
        cluster.kubectl(&wait).ok();
        uptime(&cluster.kubectl(&["logs", &pod]).ok()).saturating_sub(uptime(&begun))
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
        "a pod runs after {:?} (median of {PODS}) with an empty directory; a volume of Weir adds {:?} for the first pod of the node, {:?} for further ones",
        median(&empty),
        added(&first),
        added(&further)
    ));
    weir.weir(&["dataset", "delete", "default/starts"]).ok();
}

/// What epochs read: so many files of so many bytes in each of so many directories, and how often for one measurement with each limit.
struct Data {
    name: &'static str,
    directories: u64,
    files: u64,
    bytes: usize,
    times: [u64; 2],
}

const DATA: [Data; 2] = [
    Data {
        name: "big",
        directories: 1,
        files: 6,
        bytes: 32 << 20,
        times: [5, 50],
    },
    Data {
        name: "small",
        directories: 30,
        files: 100,
        bytes: 64 << 10,
        times: [12, 12],
    },
];

impl Data {
    fn size(&self) -> u64 {
        self.directories * self.files * self.bytes as u64
    }
}

/// Limits of memory of who reads it, in bytes: one that the pages do not fit into, and one that they do.
const LIMITS: [u64; 2] = [96 << 20, 512 << 20];
/// The limit of the plugin, of the chart.
const PLUGIN_LIMIT: u64 = 4 << 30;
/// Measurements of each, for either order and each limit.
const ROUNDS: usize = 7;
/// Reads all files of DIR so many times, in pieces of 8 KiB, with one process for all of them that gives nothing to another one: to
/// start processes and to wake them up costs more in a container, whatever they read. Prints how long that took, in hundredths of a
/// second.
const EPOCHS: &str = "
read before rest </proc/uptime
for n in $(seq TIMES); do busybox tail -q -c +1 DIR/*/* >/dev/null; done
read after rest </proc/uptime
echo $(( ${after%.*}${after#*.} - ${before%.*}${before#*.} ))";

/// Of a pod, and of a process of its node with the same limit, in a group and with a mount of its own that have nothing to do with
/// Kubernetes, in turns. Whose pages come into memory first reads them slower than the other, so each of them is that once.
fn epochs_through_a_claim(weir: &Installation) {
    for data in &DATA {
        epochs_of(weir, data);
    }
}

fn epochs_of(weir: &Installation, data: &Data) {
    let (cluster, name) = (&weir.cluster, data.name);
    let path = |what: &str| cluster.scratch.path(&format!("{name}-{what}"));
    let (served, mountpoint) = (path("epochs"), path("mount"));
    let file = |n: u64| {
        let file = format!("{}/{n}.bin", n % data.directories);
        (file, content(n, data.bytes))
    };
    let files = (0..data.directories * data.files).map(file);
    write_tree(&served, &files.collect());
    let origin = Origin::start(weir, 9004, &served, &[]);
    cluster.apply(&of_all(name, &origin.endpoint()));
    wait_for(weir, "default", "Ready", &format!("dataset/{name}"));
    let dataset = format!("default/{name}");
    weir.weir(&["warm", &dataset, "--wait"]).ok();
    std::fs::create_dir(&mountpoint).unwrap();
    for (limit, times) in LIMITS.into_iter().zip(data.times) {
        let group = MemoryGroup::new(limit).unwrap();
        let program = path("limited");
        group.wrap(Path::new("busybox"), &program);
        let mut ratios = 1.0;
        for pod_is_first in [true, false] {
            let reader = (program.as_path(), mountpoint.as_path());
            let [pod, process, ratio] = epochs(weir, data, (limit, times), reader, pod_is_first);
            tell(format_args!(
                "{name} files, {} MiB, with a limit of {} MiB: {pod:.2} GB/s in a pod, {process:.2} GB/s beside Kubernetes, ratio {ratio:.2} (medians of {ROUNDS} pairs; {} first)",
                data.size() >> 20,
                limit >> 20,
                if pod_is_first {
                    "the pod"
                } else {
                    "the process"
                },
            ));
            ratios *= ratio;
        }
        tell(format_args!(
            "{name} files, with a limit of {} MiB, in both orders: ratio {:.2}",
            limit >> 20,
            f64::sqrt(ratios)
        ));
    }
    let dataset = format!("dataset/{name}");
    let delete = ["delete", &dataset, "--timeout=100s"];
    kubectl(weir, "default", &delete);
}

/// Medians of how fast a pod with this limit reads, and a process that `program` starts, from a mount of its own, in GB/s, and of
/// their ratio.
fn epochs(
    weir: &Installation,
    data: &Data,
    (limit, times): (u64, u64),
    (program, mountpoint): (&Path, &Path),
    pod_is_first: bool,
) -> [f64; 3] {
    let (cluster, name, at) = (&weir.cluster, data.name, mountpoint.to_str().unwrap());
    let dataset = format!("default/{name}");
    let mount = ["mount", &dataset, at, "--node", "node-1"];
    weir.weir(&mount).ok();
    let limited = format!(
        "    resources: {{requests: {{cpu: 500m}}, limits: {{memory: {limit}}}}}\n    volumeMounts:"
    );
    let reader = pod(weir, name, 1, &of_claim(name), "exec sleep 3600");
    let reader = reader.replace("metadata: {", "metadata: {labels: {case: epochs}, ");
    cluster.apply(&reader.replace("    volumeMounts:", &limited));
    wait_for(weir, "default", "Ready", &format!("pod/{name}"));
    let script = |dir: &str| {
        let script = EPOCHS.replace("DIR", dir);
        script.replace("TIMES", &times.to_string())
    };
    let speed = |output: String| {
        let hundredths: u64 = output.trim().parse().unwrap();
        (data.size() * times) as f64 / hundredths.max(1) as f64 / 1e7
    };
    let of_pod = || {
        let exec = ["exec", name, "--", "sh", "-ec", &script("/data")];
        speed(cluster.kubectl(&exec).ok())
    };
    let of_process = || {
        let command = [program.to_str().unwrap(), "sh", "-ec", &script(at)];
        speed(cluster.on(1, &command).ok())
    };
    let measure = || {
        let [pod, process] = if pod_is_first {
            let pod = of_pod();
            [pod, of_process()]
        } else {
            let process = of_process();
            [of_pod(), process]
        };
        [pod, process, pod / process]
    };
    measure(); // the first epoch is another thing
    let rounds: Vec<_> = (0..ROUNDS).map(|_| measure()).collect();
    let on = "--field-selector=spec.nodeName=node-1";
    let plugin = "--selector=app.kubernetes.io/component=plugin";
    let plugin = group_of(weir, NAMESPACE, &[plugin, on], PLUGIN_LIMIT);
    let pods = group_of(weir, "default", &["--selector=case=epochs"], limit);
    tell(format_args!(
        "pages of the pod {} MiB, of the plugin {} MiB",
        pages(&pods) >> 20,
        pages(&plugin) >> 20
    ));
    let binary = cluster.scratch.binary();
    let unmount = [binary.to_str().unwrap(), "unmount", at];
    cluster.exec(&unmount).ok();
    let pod = format!("pod/{name}");
    kubectl(weir, "default", &["delete", &pod, "--timeout=60s"]);
    [0, 1, 2].map(|column| {
        let mut numbers: Vec<f64> = rounds.iter().map(|round| round[column]).collect();
        numbers.sort_by(f64::total_cmp);
        numbers[ROUNDS / 2]
    })
}

/// The group that counts the memory of the only container of a pod that has this limit.
fn group_of(weir: &Installation, namespace: &str, which: &[&str], limit: u64) -> PathBuf {
    let uid = ["get", "pod", "-o", "jsonpath={.items[0].metadata.uid}"];
    let uid = kubectl(weir, namespace, &[&uid[..], which].concat());
    let find = format!(
        "grep -lx {limit} $(find /sys/fs/cgroup -path '*/pod{uid}/*/memory.limit_in_bytes' -o -path '*/pod{uid}/*/memory.max')"
    );
    let file = weir.cluster.on(1, &["sh", "-c", &find]).ok();
    let file = Path::new(file.lines().next().unwrap());
    file.parent().unwrap().to_owned()
}

/// Bytes of files in memory that count for a group.
fn pages(group: &Path) -> u64 {
    let text = std::fs::read_to_string(group.join("memory.stat")).unwrap();
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let pages = lines.find(|(name, _)| ["cache", "file"].contains(name));
    pages.unwrap().1.parse().unwrap()
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
