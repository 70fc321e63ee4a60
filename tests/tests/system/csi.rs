//! The node plugin of Kubernetes without Kubernetes: kubelet's calls over the socket, and real mounts of a small cluster.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::Channel;
use tonic::{Code, Status};
use weir_csi::proto::csi::identity_client::IdentityClient;
use weir_csi::proto::csi::node_client::NodeClient;
use weir_csi::proto::csi::volume_capability::{
    AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode,
};
use weir_csi::proto::csi::{
    GetPluginInfoRequest, NodeGetInfoRequest, NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodeUnpublishVolumeRequest,
    VolumeCapability,
};
use weir_csi::proto::registration::InfoRequest;
use weir_csi::proto::registration::registration_client::RegistrationClient;
use weir_mount::table;
use weir_tests::{Cluster, Lab, Process, Readers, content, free_port, loopback, wait_until};
use weir_trust::{Dial, Role};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "kubelet_finds_the_driver_and_a_second_one_is_refused",
        kubelet_finds_the_driver_and_a_second_one_is_refused,
    ),
    (
        "pods_read_a_dataset_and_nothing_of_it_is_left",
        pods_read_a_dataset_and_nothing_of_it_is_left,
    ),
    (
        "calls_at_once_and_out_of_order_make_one_mount",
        calls_at_once_and_out_of_order_make_one_mount,
    ),
    (
        "volumes_outlive_the_plugin_and_are_known_after_it",
        volumes_outlive_the_plugin_and_are_known_after_it,
    ),
    (
        "volumes_that_nobody_serves_are_mounted_anew",
        volumes_that_nobody_serves_are_mounted_anew,
    ),
    (
        "the_death_of_either_pod_fails_no_read",
        the_death_of_either_pod_fails_no_read,
    ),
    (
        "a_server_that_is_stopped_in_a_pod_is_replaced_soon",
        a_server_that_is_stopped_in_a_pod_is_replaced_soon,
    ),
    (
        "a_newer_plugin_takes_over_while_volumes_are_read",
        a_newer_plugin_takes_over_while_volumes_are_read,
    ),
    (
        "volumes_whose_pods_both_died_are_mounted_anew",
        volumes_whose_pods_both_died_are_mounted_anew,
    ),
    (
        "what_cannot_be_mounted_is_said_in_one_sentence",
        what_cannot_be_mounted_is_said_in_one_sentence,
    ),
];

/// Longest wait for what the plugin does by itself.
const SOON: Duration = Duration::from_secs(40);
/// Longest read that the death of a pod may cause.
const LONGEST: Duration = Duration::from_secs(1);
/// Longest read that a stopped server may cause: half a second until that is seen, on a busy machine.
const WATCHDOG: Duration = Duration::from_secs(2);
/// Longest call.
const CALL_DEADLINE: Duration = Duration::from_mins(2);

/// A node: kubelet's directory, the plugin, and kubelet's end of its socket.
struct Node<'a> {
    lab: &'a Lab,
    cluster: &'a Cluster<'a>,
    http: u16,
    plugin: Option<Process>,
    holder_http: u16,
    /// The other pod.
    holder: Option<Process>,
    /// Whether there are two, each with processes that only it sees.
    in_pods: bool,
    runtime: tokio::runtime::Runtime,
}

/// The cluster's dataset `team-a/x`.
fn fill(lab: &Lab, cluster: &Cluster<'_>) -> Arc<BTreeMap<String, Vec<u8>>> {
    let files = (0..40).map(|n| {
        (
            format!("train/d{}/f{n}", n % 4),
            content(n, 9_000 * n as usize),
        )
    });
    let files: BTreeMap<String, Vec<u8>> = files.collect();
    lab.put_all(&files);
    cluster.create_dataset("team-a/x");
    Arc::new(files)
}

impl<'a> Node<'a> {
    fn start(lab: &'a Lab, cluster: &'a Cluster<'a>) -> Self {
        let mut node = Self::new(lab, cluster);
        node.start_plugin();
        node
    }

    /// With the plugin and its holder in pods of their own: all processes of one die with its first.
    fn start_in_pods(lab: &'a Lab, cluster: &'a Cluster<'a>) -> Self {
        let mut node = Self::new(lab, cluster);
        node.in_pods = true;
        node.start_holder();
        node.start_plugin();
        node
    }

    fn new(lab: &'a Lab, cluster: &'a Cluster<'a>) -> Self {
        std::fs::create_dir_all(lab.path("kubelet/pods")).unwrap();
        Self {
            lab,
            cluster,
            http: free_port(),
            plugin: None,
            holder_http: free_port(),
            holder: None,
            in_pods: false,
            runtime: tokio::runtime::Runtime::new().unwrap(),
        }
    }

    /// A command whose processes are those of a pod. One without rights may neither mount nor unmount.
    fn in_pod(&self, args: &[&str], has_rights: bool) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--"]);
        if !has_rights {
            command.args(["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"]);
        }
        command.arg(self.lab.binary()).args(args);
        self.lab.set_environment(&mut command);
        command
    }

    fn start_holder(&mut self) {
        let (dir, http) = (
            self.lab.path("peers"),
            loopback(self.holder_http).to_string(),
        );
        let dir = dir.to_str().unwrap();
        let args = ["csi", "holder", "--peer-dir", dir, "--http", &http];
        let log = self.lab.path("holder.log");
        let http = loopback(self.holder_http);
        self.holder = Some(Process::start(self.in_pod(&args, false), log, http));
    }

    /// Waits until both pods hold all mounts.
    #[track_caller]
    fn wait_until_held_twice(&self) {
        self.lab.weir(["csi", "ready", "--wait", "40"]).ok();
    }

    fn command(&self, http: u16, take_over: bool) -> Command {
        let path = |name: &str| self.lab.path(name).display().to_string();
        let endpoint = format!("unix://{}", path("csi.sock"));
        let (http, master) = (loopback(http).to_string(), self.cluster.address());
        let [registry, kubelet, state] = ["registry", "kubelet", "csi-state"].map(path);
        let peers = path("peers");
        let mut args = vec![
            "csi",
            "--endpoint",
            &endpoint,
            "--registration-dir",
            &registry,
            "--kubelet-dir",
            &kubelet,
            "--dir",
            &state,
            "--node-id",
            "node-0",
            "--group",
            "rack-7",
            "--master",
            &master,
            "--http",
            &http,
        ];
        if self.in_pods {
            args.extend(["--peer-dir", &peers]);
        }
        if take_over {
            args.push("--take-over");
        }
        args.extend(["--", "--allow-endpoint", "127.0.0.1"]);
        if self.in_pods {
            self.in_pod(&args, true)
        } else {
            self.lab.command(args)
        }
    }

    fn start_plugin(&mut self) {
        let log = self.lab.path("csi.log");
        let started = Process::start(self.command(self.http, false), log, loopback(self.http));
        self.plugin = Some(started);
        let socket = self.lab.path("csi.sock");
        wait_until("the plugin listens", SOON, || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    fn plugin(&self) -> &Process {
        self.plugin.as_ref().unwrap()
    }

    /// Kills the plugin, and in a pod all its processes.
    fn kill_plugin(&mut self) {
        self.plugin.take().unwrap().kill();
        let socket = self.lab.path("csi.sock");
        wait_until("the plugin is dead", SOON, || {
            std::os::unix::net::UnixStream::connect(&socket).is_err()
        });
    }

    fn channel(&self, socket: &str) -> Channel {
        let _inside = self.runtime.enter();
        let address = format!("unix:{}", self.lab.path(socket).display());
        let connect = Duration::from_secs(5);
        Dial::default()
            .channel(&address, Role::Master, connect)
            .unwrap()
    }

    fn target(&self, name: &str) -> PathBuf {
        self.lab.path("kubelet").join("pods").join(name)
    }

    fn publish(&self, name: &str, attributes: &[(&str, &str)]) -> Result<(), Status> {
        let request = request(&self.target(name), attributes, Mode::MultiNodeReaderOnly);
        self.ask(request)
    }

    fn ask(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        let mut client = NodeClient::new(self.channel("csi.sock"));
        let call = client.node_publish_volume(within(request));
        self.runtime.block_on(call).map(drop)
    }

    fn unpublish(&self, name: &str) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: name.to_owned(),
            target_path: self.target(name).display().to_string(),
        };
        let mut client = NodeClient::new(self.channel("csi.sock"));
        let call = client.node_unpublish_volume(within(request));
        self.runtime.block_on(call).map(drop)
    }

    fn stats(&self, name: &str) -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: name.to_owned(),
            volume_path: self.target(name).display().to_string(),
            staging_target_path: String::new(),
        };
        let mut client = NodeClient::new(self.channel("csi.sock"));
        let call = client.node_get_volume_stats(within(request));
        self.runtime.block_on(call).map(tonic::Response::into_inner)
    }

    /// Mounts of Weir below kubelet's directory.
    fn mounts(&self) -> Vec<table::Entry> {
        let kubelet = self.lab.path("kubelet").canonicalize().unwrap();
        let mut all = table::read().unwrap();
        all.retain(|entry| entry.mountpoint.starts_with(&kubelet));
        all
    }

    /// The mount of a snapshot.
    fn source(&self, snapshot: &str) -> PathBuf {
        let mounts = self.lab.path("kubelet/plugins/csi.weir.io/mounts");
        mounts.join(snapshot)
    }

    /// The process that serves a mount, by the number that it has here; in its pod it has another.
    #[track_caller]
    fn server(&self) -> Pid {
        let run = self.lab.path("run").display().to_string();
        let mut found = None;
        wait_until("there is a server", SOON, || {
            let all = std::fs::read_dir("/proc").unwrap().flatten();
            found = all.map(|entry| entry.path()).find_map(|dir| {
                let read = |name: &str| std::fs::read(dir.join(name)).unwrap_or_default();
                let environment = String::from_utf8_lossy(&read("environ")).into_owned();
                let is_ours = read("comm") == b"weir-serve\n" && environment.contains(&run);
                let number = dir.file_name()?.to_str()?.parse().ok()?;
                is_ours.then(|| Pid::from_raw(number))?
            });
            found.is_some()
        });
        found.unwrap()
    }

    /// The processes of all mounts.
    fn processes(&self) -> Vec<Pid> {
        let status = self.lab.weir(["status", "-o", "json"]);
        if status.stderr.contains("nothing is mounted") {
            return Vec::new();
        }
        let status: serde_json::Value = serde_json::from_str(&status.ok()).unwrap();
        let mounts = status["mounts"].as_array().unwrap();
        let names = ["holder_pid", "supervisor_pid", "server_pid"];
        let pids = mounts
            .iter()
            .flat_map(|mount| names.map(|name| mount[name].as_i64()));
        pids.flatten()
            .filter_map(|pid| Pid::from_raw(pid as i32))
            .collect()
    }

    #[track_caller]
    fn is_clean(&self) {
        assert_eq!(self.mounts(), []);
        let dirs = [
            self.lab.path("kubelet/pods"),
            self.source(""),
            self.lab.path("csi-state"),
        ];
        wait_until("all directories are removed", SOON, || {
            let left = |dir: &PathBuf| std::fs::read_dir(dir).unwrap().count();
            dirs.iter().all(|dir| left(dir) == 0)
        });
        wait_until("the processes of mounts end", SOON, || {
            self.processes().is_empty()
        });
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        drop((self.plugin.take(), self.holder.take()));
        for entry in self.mounts().into_iter().rev() {
            let _ = rustix::mount::unmount(&entry.mountpoint, UnmountFlags::DETACH);
        }
    }
}

fn within<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_DEADLINE);
    request
}

/// What kubelet asks for a pod of `team-a`.
fn request(target: &Path, attributes: &[(&str, &str)], mode: Mode) -> NodePublishVolumeRequest {
    let pod = [
        ("csi.storage.k8s.io/pod.namespace", "team-a"),
        ("csi.storage.k8s.io/pod.name", "trainer-0"),
        ("csi.storage.k8s.io/ephemeral", "false"),
    ];
    let of = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let context: HashMap<String, String> = pod.iter().chain(attributes).map(of).collect();
    NodePublishVolumeRequest {
        volume_id: "volume-1".to_owned(),
        target_path: target.display().to_string(),
        volume_capability: Some(VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume::default())),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }),
        readonly: true,
        volume_context: context,
        ..NodePublishVolumeRequest::default()
    }
}

#[track_caller]
fn compare(root: &Path, files: &BTreeMap<String, Vec<u8>>, below: &str) {
    let mut compared = 0;
    for (name, content) in files {
        if let Some(name) = name.strip_prefix(below) {
            let path = root.join(name);
            let read = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(read == *content, "{} has other bytes", path.display());
            compared += 1;
        }
    }
    assert!(compared > 0);
}

fn kubelet_finds_the_driver_and_a_second_one_is_refused() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let mut node = Node::start(&lab, &cluster);
    let registration = "registry/csi.weir.io@reg.sock";
    let info = |node: &Node<'_>| {
        let mut client = RegistrationClient::new(node.channel(registration));
        let call = client.get_info(within(InfoRequest {}));
        node.runtime.block_on(call).unwrap().into_inner()
    };
    let told = info(&node);
    assert_eq!(
        (told.r#type.as_str(), told.name.as_str()),
        ("CSIPlugin", "csi.weir.io")
    );
    assert_eq!(told.endpoint, lab.path("csi.sock").display().to_string());
    let mut identity = IdentityClient::new(node.channel("csi.sock"));
    let call = identity.get_plugin_info(within(GetPluginInfoRequest {}));
    let name = node.runtime.block_on(call).unwrap().into_inner().name;
    assert_eq!(name, "csi.weir.io");
    let mut client = NodeClient::new(node.channel("csi.sock"));
    let call = client.node_get_info(within(NodeGetInfoRequest {}));
    let own = node.runtime.block_on(call).unwrap().into_inner();
    assert_eq!(own.node_id, "node-0");
    assert_eq!(
        own.accessible_topology.unwrap().segments["weir.io/group"],
        "rack-7"
    );

    let said = lab.run(node.command(free_port(), false)).fails(1);
    assert!(said.contains("another node plugin listens"), "{said}");
    assert_eq!(info(&node).name, "csi.weir.io", "it still answers");
    // A killed plugin leaves its sockets, and the next one takes their places.
    node.kill_plugin();
    assert!(lab.path(registration).exists());
    node.start_plugin();
    assert_eq!(info(&node).name, "csi.weir.io");
    node.plugin().signal(Signal::TERM);
    wait_until("both sockets are removed", SOON, || {
        !lab.path(registration).exists() && !lab.path("csi.sock").exists()
    });
}

fn pods_read_a_dataset_and_nothing_of_it_is_left() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 2);
    let files = fill(&lab, &cluster);
    let node = Node::start(&lab, &cluster);
    node.unpublish("never-there").unwrap();
    node.publish("all", &[("dataset", "x")]).unwrap();
    compare(&node.target("all"), &files, "");
    let part = [
        ("dataset", "team-a/x"),
        ("snapshot", "1"),
        ("path", "train/d1"),
    ];
    let mut inline = request(&node.target("part"), &part, Mode::SingleNodeWriter);
    let ephemeral = "csi.storage.k8s.io/ephemeral".to_owned();
    inline.volume_context.insert(ephemeral, "true".to_owned());
    inline.readonly = false;
    node.ask(inline).unwrap();
    compare(&node.target("part"), &files, "train/d1/");
    assert_eq!(node.mounts().len(), 3, "one mount and two volumes of it");

    let written = std::fs::write(node.target("all").join("new"), "x").unwrap_err();
    assert_eq!(written.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let target = node.target("part").display().to_string();
    let line = table.lines().find(|line| line.contains(&target)).unwrap();
    let options = line.split(' ').nth(5).unwrap();
    for option in ["ro", "nosuid", "nodev"] {
        assert!(options.split(',').any(|set| set == option), "{line}");
    }

    let stats = node.stats("all").unwrap();
    assert!(!stats.volume_condition.unwrap().abnormal);
    let bytes: usize = files.values().map(Vec::len).sum();
    assert!(stats.usage[0].total >= bytes as i64, "{:?}", stats.usage);
    assert!(
        stats.usage[1].total >= files.len() as i64,
        "{:?}",
        stats.usage
    );
    assert_eq!(node.stats("nowhere").unwrap_err().code(), Code::NotFound);
    let plugin = node.plugin();
    let counted = |name: &str| plugin.metric(name, "") as u64;
    assert_eq!(
        (counted("weir_csi_mounts"), counted("weir_csi_volumes")),
        (1, 2)
    );

    for name in ["all", "all", "part", "part"] {
        node.unpublish(name).unwrap();
    }
    node.is_clean();
    assert!(plugin.metric("weir_csi_calls_total", "code=\"Ok\"") >= 7.0);
}

fn calls_at_once_and_out_of_order_make_one_mount() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let files = fill(&lab, &cluster);
    let node = Node::start(&lab, &cluster);
    let all = |calls: usize, undo: bool| {
        std::thread::scope(|scope| {
            let run = |number: usize| {
                let name = format!("pod-{}", number % 3);
                if undo {
                    node.unpublish(&name)
                } else {
                    node.publish(&name, &[("dataset", "x")])
                }
            };
            let threads: Vec<_> = (0..calls).map(|n| scope.spawn(move || run(n))).collect();
            let ended = threads.into_iter().map(|thread| thread.join().unwrap());
            ended.collect::<Vec<_>>()
        })
    };
    for call in all(12, false) {
        call.unwrap();
    }
    assert_eq!(node.mounts().len(), 4);
    compare(&node.target("pod-2"), &files, "");
    // Both at once end in one or the other, and never in half of either.
    std::thread::scope(|scope| {
        scope.spawn(|| all(6, true));
        scope.spawn(|| all(6, false));
    });
    for name in ["pod-0", "pod-1", "pod-2"] {
        let layers = |entry: &&table::Entry| entry.mountpoint.ends_with(name);
        assert!(node.mounts().iter().filter(layers).count() <= 1);
        node.publish(name, &[("dataset", "x")]).unwrap();
    }
    compare(&node.target("pod-0"), &files, "");
    for call in all(9, true) {
        call.unwrap();
    }
    node.is_clean();
}

fn volumes_outlive_the_plugin_and_are_known_after_it() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let files = fill(&lab, &cluster);
    let mut node = Node::start(&lab, &cluster);
    node.publish("a", &[("dataset", "x")]).unwrap();
    node.publish("b", &[("dataset", "x"), ("path", "train")])
        .unwrap();
    node.kill_plugin();
    compare(&node.target("b"), &files, "train/");
    node.start_plugin();
    node.publish("a", &[("dataset", "x")]).unwrap();
    assert_eq!(node.mounts().len(), 3, "no second layer");
    node.unpublish("a").unwrap();
    compare(&node.target("b"), &files, "train/");
    node.kill_plugin();
    // As if the plugin had died before it ended the mount that nobody uses.
    rustix::mount::unmount(node.target("b"), UnmountFlags::DETACH).unwrap();
    node.start_plugin();
    wait_until("the mount without a volume ends", SOON, || {
        node.mounts().is_empty()
    });
    node.unpublish("b").unwrap();
    node.is_clean();
}

fn volumes_that_nobody_serves_are_mounted_anew() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let files = fill(&lab, &cluster);
    let mut node = Node::start(&lab, &cluster);
    node.publish("a", &[("dataset", "x")]).unwrap();
    node.publish("b", &[("dataset", "x"), ("path", "train")])
        .unwrap();
    // As when the plugin's pod is killed.
    node.kill_plugin();
    let mut pids = Vec::new();
    wait_until("all processes are known", SOON, || {
        pids = node.processes();
        pids.len() == 3
    });
    // Stopped first, so that none brings another one back.
    for signal in [Signal::STOP, Signal::KILL] {
        for pid in &pids {
            kill_process(*pid, signal).unwrap();
        }
    }
    let is_dead = || {
        let read = std::fs::read_dir(node.target("a"));
        read.is_err_and(|error| error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()))
    };
    wait_until("nobody serves the volumes", SOON, is_dead);
    node.start_plugin();
    for name in ["a", "b"] {
        wait_until("a volume can be read again", SOON, || {
            std::fs::read_dir(node.target(name)).is_ok()
        });
    }
    compare(&node.target("a"), &files, "");
    compare(&node.target("b"), &files, "train/");
    node.publish("a", &[("dataset", "x")]).unwrap();
    for name in ["a", "b"] {
        let condition = node.stats(name).unwrap().volume_condition.unwrap();
        assert!(!condition.abnormal, "{condition:?}");
        node.unpublish(name).unwrap();
    }
    node.is_clean();
}

fn the_death_of_either_pod_fails_no_read() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let files = fill(&lab, &cluster);
    let mut node = Node::start_in_pods(&lab, &cluster);
    node.publish("a", &[("dataset", "x")]).unwrap();
    let device = node.mounts()[0].device.clone();
    let readers = Readers::start(&node.target("a"), &files, 3);
    for _ in 0..3 {
        node.wait_until_held_twice();
        node.kill_plugin();
        readers.read_more(100);
        node.start_plugin();
        node.wait_until_held_twice();
        node.holder.take().unwrap().kill();
        readers.read_more(100);
        node.start_holder();
    }
    node.wait_until_held_twice();
    let report = readers.finish();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert!(report.longest < LONGEST, "a read took {:?}", report.longest);
    let same = |entry: &table::Entry| entry.device == device;
    assert!(node.mounts().iter().all(same), "it was mounted once");

    // Volumes come and go while the other pod serves, which may not mount.
    node.kill_plugin();
    node.start_plugin();
    node.publish("b", &[("dataset", "x"), ("path", "train")])
        .unwrap();
    compare(&node.target("b"), &files, "train/");
    assert_eq!(node.mounts().len(), 3);
    node.unpublish("a").unwrap();
    compare(&node.target("b"), &files, "train/");
    node.unpublish("b").unwrap();
    node.is_clean();
    // Nothing is left to be held.
    node.publish("c", &[("dataset", "x")]).unwrap();
    node.wait_until_held_twice();
    node.unpublish("c").unwrap();
    node.is_clean();
}

fn a_server_that_is_stopped_in_a_pod_is_replaced_soon() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let files = fill(&lab, &cluster);
    let node = Node::start_in_pods(&lab, &cluster);
    node.publish("a", &[("dataset", "x")]).unwrap();
    node.wait_until_held_twice();
    let readers = Readers::start(&node.target("a"), &files, 3);
    for _ in 0..2 {
        readers.read_more(50);
        let server = node.server();
        kill_process(server, Signal::STOP).unwrap();
        wait_until("another one serves", SOON, || node.server() != server);
        readers.read_more(50);
    }
    let report = readers.finish();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert!(
        report.longest < WATCHDOG,
        "a read took {:?}",
        report.longest
    );
    node.unpublish("a").unwrap();
    node.is_clean();
}

fn a_newer_plugin_takes_over_while_volumes_are_read() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let files = fill(&lab, &cluster);
    let mut node = Node::start_in_pods(&lab, &cluster);
    node.publish("a", &[("dataset", "x")]).unwrap();
    let readers = Readers::start(&node.target("a"), &files, 3);
    for _ in 0..2 {
        node.wait_until_held_twice();
        // As a DaemonSet does with a surge: the newer pod is ready before the older one is told to end.
        let (older, http) = (node.plugin.take().unwrap(), free_port());
        let log = lab.path("newer.log");
        let newer = Process::start(node.command(http, true), log, loopback(http));
        node.plugin = Some(newer);
        node.wait_until_held_twice();
        drop(older);
        readers.read_more(100);
        node.publish("a", &[("dataset", "x")]).unwrap();
        assert_eq!(node.mounts().len(), 2);
    }
    node.wait_until_held_twice();
    let report = readers.finish();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert!(report.longest < LONGEST, "a read took {:?}", report.longest);
    node.unpublish("a").unwrap();
    node.is_clean();
}

fn volumes_whose_pods_both_died_are_mounted_anew() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let files = fill(&lab, &cluster);
    let mut node = Node::start_in_pods(&lab, &cluster);
    node.publish("a", &[("dataset", "x")]).unwrap();
    node.wait_until_held_twice();
    node.holder.take().unwrap().kill();
    node.kill_plugin();
    wait_until("nobody serves the volume", SOON, || {
        let read = std::fs::read_dir(node.target("a"));
        read.is_err_and(|error| error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()))
    });
    node.start_plugin();
    wait_until("the volume can be read again", SOON, || {
        std::fs::read_dir(node.target("a")).is_ok()
    });
    compare(&node.target("a"), &files, "");
    node.start_holder();
    node.wait_until_held_twice();
    node.unpublish("a").unwrap();
    node.is_clean();
}

fn what_cannot_be_mounted_is_said_in_one_sentence() {
    let lab = Lab::new();
    let mut cluster = Cluster::start(&lab, 1);
    fill(&lab, &cluster);
    cluster.create_dataset("team-b/y");
    std::os::unix::fs::symlink("/etc", lab.path("link")).unwrap();
    {
        let node = Node::start(&lab, &cluster);
        let x = ("dataset", "x");
        let refused = |attributes: &[(&str, &str)], code: Code, said: &str| {
            let status = node.publish("a", attributes).unwrap_err();
            assert_eq!(status.code(), code, "{status:?}");
            let text = status.message();
            assert!(text.contains(said), "{text}");
            assert!(!text.contains('\n') && text.len() < 800, "{text}");
        };
        refused(
            &[("dataset", "missing")],
            Code::NotFound,
            "team-a/missing does not exist",
        );
        refused(&[("dataset", "team-b/y")], Code::PermissionDenied, "team-a");
        refused(
            &[("dataset", "team-b/missing")],
            Code::PermissionDenied,
            "team-a",
        );
        refused(&[x, ("snapshot", "9")], Code::NotFound, "its newest is 1");
        refused(
            &[x, ("path", "train/nowhere")],
            Code::NotFound,
            "no directory",
        );
        refused(
            &[x, ("path", "train/d0/f0")],
            Code::NotFound,
            "no directory",
        );
        refused(&[x, ("path", "../..")], Code::InvalidArgument, "has ..");
        refused(
            &[x, ("snapshots", "1")],
            Code::InvalidArgument,
            "`snapshot`",
        );
        refused(&[], Code::InvalidArgument, "names no dataset");

        let invalid = |request: NodePublishVolumeRequest| {
            let status = node.ask(request).unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        };
        let reader = Mode::MultiNodeReaderOnly;
        invalid(request(&lab.path("elsewhere"), &[x], reader));
        invalid(request(&node.target("../../elsewhere"), &[x], reader));
        invalid(request(&node.source("x"), &[x], reader));
        invalid(request(&node.target("a"), &[x], Mode::MultiNodeMultiWriter));
        let mut block = request(&node.target("a"), &[x], reader);
        let capability = block.volume_capability.as_mut().unwrap();
        capability.access_type = Some(AccessType::Block(BlockVolume {}));
        invalid(block);
        let mut nameless = request(&node.target("a"), &[x], reader);
        nameless.volume_id.clear();
        invalid(nameless);
        std::os::unix::fs::symlink(lab.path(""), node.target("link")).unwrap();
        invalid(request(&node.target("link/a"), &[x], reader));
        assert!(!lab.path("a").exists());
        std::fs::remove_file(node.target("link")).unwrap();
        let _ = node.unpublish("a");
        node.is_clean();
    }
    cluster.master.take().unwrap().kill();
    let node = Node::start(&lab, &cluster);
    let status = node.publish("a", &[("dataset", "x")]).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("does not answer"), "{status:?}");
}
