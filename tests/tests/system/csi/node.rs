//! A node of Kubernetes: the node plugin as a process, its holder, and kubelet's end of its socket.

use std::collections::{BTreeMap, HashMap};
use std::fs::DirEntry;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::Pid;
use tonic::Status;
use tonic::transport::Channel;
use weir_csi::proto::csi::node_client::NodeClient;
use weir_csi::proto::csi::volume_capability::{
    AccessMode, AccessType, MountVolume, access_mode::Mode,
};
use weir_csi::proto::csi::{
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodeUnpublishVolumeRequest, VolumeCapability,
};
use weir_mount::table;
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;
use weir_tests::{Cluster, Lab, Process, content, free_port, loopback, wait_until};
use weir_trust::{Dial, Role};

/// Longest wait for what the plugin does by itself.
pub(crate) const SOON: Duration = Duration::from_secs(40);
/// Longest call.
const CALL_DEADLINE: Duration = Duration::from_mins(2);

/// A node: kubelet's directory, the plugin, and kubelet's end of its socket.
pub(crate) struct Node<'a> {
    pub(crate) lab: &'a Lab,
    cluster: &'a Cluster<'a>,
    http: u16,
    pub(crate) plugin: Option<Process>,
    holder_http: u16,
    /// The other pod.
    pub(crate) holder: Option<Process>,
    /// Whether there are two, each with processes that only it sees.
    in_pods: bool,
    pub(crate) runtime: tokio::runtime::Runtime,
}

/// What the files of a dataset hold.
pub(crate) type Files = Arc<BTreeMap<String, Vec<u8>>>;

/// Where kubelet finds the plugin.
pub(crate) const REGISTRATION: &str = "registry/csi.weir.io@reg.sock";

/// The cluster's dataset `team-a/x`.
pub(crate) fn fill(lab: &Lab, cluster: &Cluster<'_>) -> Files {
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
    pub(crate) fn start(lab: &'a Lab, cluster: &'a Cluster<'a>) -> Self {
        let mut node = Self::new(lab, cluster);
        node.start_plugin();
        node
    }

    /// With the plugin and its holder in pods of their own: all processes of one die with its first.
    pub(crate) fn start_in_pods(lab: &'a Lab, cluster: &'a Cluster<'a>) -> Self {
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

    pub(crate) fn start_holder(&mut self) {
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
    pub(crate) fn wait_until_held_twice(&self) {
        self.lab.weir(["csi", "ready", "--wait", "40"]).ok();
    }

    pub(crate) fn command(&self, http: u16, take_over: bool) -> Command {
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

    pub(crate) fn start_plugin(&mut self) {
        let log = self.lab.path("csi.log");
        let started = Process::start(self.command(self.http, false), log, loopback(self.http));
        self.plugin = Some(started);
        let sockets = ["csi.sock", REGISTRATION].map(|socket| self.lab.path(socket));
        wait_until("the plugin listens", SOON, || {
            let listens = |socket| std::os::unix::net::UnixStream::connect(socket).is_ok();
            sockets.iter().all(listens)
        });
    }

    /// Starts another plugin, which takes over; gives the older one.
    pub(crate) fn start_newer_plugin(&mut self) -> Process {
        let (older, http) = (self.plugin.take().unwrap(), free_port());
        let log = self.lab.path("newer.log");
        let newer = Process::start(self.command(http, true), log, loopback(http));
        self.plugin = Some(newer);
        older
    }

    /// The same of its holder.
    pub(crate) fn start_newer_holder(&mut self) -> Process {
        let older = self.holder.take().unwrap();
        self.holder_http = free_port();
        self.start_holder();
        older
    }

    /// Replaces one of both pods as a DaemonSet does with a surge: the newer one is ready before the older one is told to end.
    #[track_caller]
    pub(crate) fn roll(&mut self, start_newer: fn(&mut Self) -> Process) {
        self.wait_until_held_twice();
        let older = start_newer(self);
        self.wait_until_held_twice();
        drop(older);
    }

    pub(crate) fn plugin(&self) -> &Process {
        self.plugin.as_ref().unwrap()
    }

    /// Kills the plugin, and in a pod all its processes.
    pub(crate) fn kill_plugin(&mut self) {
        self.plugin.take().unwrap().kill();
        let socket = self.lab.path("csi.sock");
        wait_until("the plugin is dead", SOON, || {
            std::os::unix::net::UnixStream::connect(&socket).is_err()
        });
    }

    pub(crate) fn channel(&self, socket: &str) -> Channel {
        let _inside = self.runtime.enter();
        let address = format!("unix:{}", self.lab.path(socket).display());
        let connect = Duration::from_secs(5);
        Dial::default()
            .channel(&address, Role::Master, connect)
            .unwrap()
    }

    pub(crate) fn target(&self, name: &str) -> PathBuf {
        self.lab.path("kubelet").join("pods").join(name)
    }

    pub(crate) fn publish(&self, name: &str, attributes: &[(&str, &str)]) -> Result<(), Status> {
        let request = request(&self.target(name), attributes, Mode::MultiNodeReaderOnly);
        self.ask(request)
    }

    pub(crate) fn ask(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        let mut client = NodeClient::new(self.channel("csi.sock"));
        let call = client.node_publish_volume(within(request));
        self.runtime.block_on(call).map(drop)
    }

    pub(crate) fn unpublish(&self, name: &str) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: name.to_owned(),
            target_path: self.target(name).display().to_string(),
        };
        let mut client = NodeClient::new(self.channel("csi.sock"));
        let call = client.node_unpublish_volume(within(request));
        self.runtime.block_on(call).map(drop)
    }

    /// Tells the master why a dataset cannot be mounted, as the operator does.
    pub(crate) fn note(&self, dataset: &str, reason: &str, message: &str) {
        let channel = {
            let _inside = self.runtime.enter();
            let master = self.cluster.address();
            Dial::default().channel(&master, Role::Master, SOON)
        };
        let condition = v1::DatasetCondition {
            dataset: dataset.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            deleting: false,
        };
        let note = within(v1::NoteConditionsRequest {
            conditions: vec![condition],
        });
        let mut client = MasterClient::new(channel.unwrap());
        self.runtime.block_on(client.note_conditions(note)).unwrap();
    }

    pub(crate) fn stats(&self, name: &str) -> Result<NodeGetVolumeStatsResponse, Status> {
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
    pub(crate) fn mounts(&self) -> Vec<table::Entry> {
        let kubelet = self.lab.path("kubelet").canonicalize().unwrap();
        let mut all = table::read().unwrap();
        all.retain(|entry| entry.mountpoint.starts_with(&kubelet));
        all
    }

    /// The mount of a snapshot.
    pub(crate) fn source(&self, snapshot: &str) -> PathBuf {
        let mounts = self.lab.path("kubelet/plugins/csi.weir.io/mounts");
        mounts.join(snapshot)
    }

    /// The process that serves a mount, by the number that it has here; in its pod it has another.
    #[track_caller]
    pub(crate) fn server(&self) -> Pid {
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

    /// The processes of a pod that began with this one, by the numbers that they have here.
    pub(crate) fn pod(first: &Process) -> Vec<Pid> {
        let namespace = |process: &Path, of: &str| std::fs::read_link(process.join("ns").join(of));
        let first = PathBuf::from(format!("/proc/{}", first.pid()));
        let pod = namespace(&first, "pid_for_children").unwrap();
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let inside = all.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let own = namespace(&entry.path(), "pid").ok()?;
            (own == pod).then(|| Pid::from_raw(pid))?
        });
        inside.collect()
    }

    /// The first process of a pod, which is told to end. Its number need not be the lowest one: they begin anew at some time.
    pub(crate) fn first_process(pod: &[Pid]) -> Pid {
        let is_first = |pid: &&Pid| {
            let status = format!("/proc/{}/status", pid.as_raw_nonzero());
            let status = std::fs::read_to_string(status).unwrap_or_default();
            let inside = status.lines().find(|line| line.starts_with("NSpid:"));
            inside.is_some_and(|line| line.split_whitespace().last() == Some("1"))
        };
        *pod.iter().find(is_first).unwrap()
    }

    /// The processes of all mounts.
    pub(crate) fn processes(&self) -> Vec<Pid> {
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

    /// Waits until a volume can be read.
    #[track_caller]
    pub(crate) fn wait_until_served(&self, name: &str) {
        wait_until("a volume can be read", SOON, || {
            std::fs::read_dir(self.target(name)).is_ok()
        });
    }

    /// Waits until nobody serves a volume.
    #[track_caller]
    pub(crate) fn wait_until_dead(&self, name: &str) {
        let dead = Errno::NOTCONN.raw_os_error();
        wait_until("nobody serves a volume", SOON, || {
            let read = std::fs::read_dir(self.target(name));
            read.is_err_and(|error| error.raw_os_error() == Some(dead))
        });
    }

    #[track_caller]
    pub(crate) fn is_clean(&self) {
        assert_eq!(self.mounts(), []);
        let dirs = [
            self.lab.path("kubelet/pods"),
            self.source(""),
            self.lab.path("csi-state"),
        ];
        wait_until("all directories are removed", SOON, || {
            // What the node knows outlives its mounts.
            let left = |entry: &DirEntry| entry.file_name() != "known";
            let is_empty = |dir: &PathBuf| {
                !std::fs::read_dir(dir)
                    .unwrap()
                    .flatten()
                    .any(|entry| left(&entry))
            };
            dirs.iter().all(is_empty)
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

pub(crate) fn within<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_DEADLINE);
    request
}

/// What kubelet asks for a pod of `team-a`.
pub(crate) fn request(
    target: &Path,
    attributes: &[(&str, &str)],
    mode: Mode,
) -> NodePublishVolumeRequest {
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
pub(crate) fn compare(root: &Path, files: &BTreeMap<String, Vec<u8>>, below: &str) {
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
