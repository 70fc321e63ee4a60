//! A master and workers as processes of their own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::{Lab, Outcome};
use crate::mount::Mount;
use crate::network::Network;
use crate::process::{Process, free_port};

/// Issues a certificate in the lab's `certs/NAME` by the authority in its `ca`.
#[track_caller]
pub fn issue(lab: &Lab, role: &str, name: &str, flags: &[&str]) -> PathBuf {
    let (ca, out) = (lab.path("ca"), lab.path("certs").join(name));
    let (ca, dir) = (ca.to_str().unwrap(), out.to_str().unwrap());
    let args = ["certs", "issue", ca, dir, "--role", role, "--name", name];
    lab.weir(args.iter().chain(flags)).ok();
    out
}

/// A cluster on loopback, or in a network. Every worker is on a node of its own: `node-0`, `node-1`…
pub struct Cluster<'a> {
    lab: &'a Lab,
    /// Worker `N` is on its host `N`, the master on the last one.
    network: Option<&'a Network>,
    /// The master; `None` while the test has it down.
    pub master: Option<Process>,
    /// The workers; `None` those that are down.
    pub workers: Vec<Option<Process>>,
    ports: Vec<Ports>,
    master_flags: Vec<String>,
    worker_flags: Vec<Vec<String>>,
    /// Whether its processes know each other by certificates.
    secure: bool,
    mount_flags: Vec<String>,
    master_ports: Ports,
    master_host: usize,
}

#[derive(Clone, Copy)]
struct Ports {
    data: u16,
    control: u16,
    http: u16,
}

impl Ports {
    fn free() -> Self {
        Self {
            data: free_port(),
            control: free_port(),
            http: free_port(),
        }
    }
}

impl<'a> Cluster<'a> {
    /// Starts a master and `workers` workers, and waits until all are in the cluster map.
    #[track_caller]
    pub fn start(lab: &'a Lab, workers: usize) -> Self {
        Self::start_with(lab, &vec![&[] as &[&str]; workers])
    }

    /// The same, with flags for each worker.
    #[track_caller]
    pub fn start_with(lab: &'a Lab, worker_flags: &[&[&str]]) -> Self {
        Self::start_as(lab, &[], worker_flags, false)
    }

    /// A cluster whose processes know each other by certificates, and so do its mounts and commands.
    #[track_caller]
    pub fn start_secure(lab: &'a Lab, workers: usize) -> Self {
        Self::start_secure_with(lab, &vec![&[] as &[&str]; workers])
    }

    /// One or the other.
    #[track_caller]
    pub fn start_either(lab: &'a Lab, workers: usize, secure: bool) -> Self {
        if secure {
            Self::start_secure(lab, workers)
        } else {
            Self::start(lab, workers)
        }
    }

    /// A secure one, with flags for each worker, each of which may also be announced at 127.0.0.2.
    #[track_caller]
    pub fn start_secure_with(lab: &'a Lab, worker_flags: &[&[&str]]) -> Self {
        Self::certify(lab, worker_flags.len());
        Self::start_as(lab, &[], worker_flags, true)
    }

    /// A cluster with certificates, and flags for its master.
    #[track_caller]
    pub fn start_secure_master(lab: &'a Lab, master_flags: &[&str], workers: usize) -> Self {
        Self::certify(lab, workers);
        Self::start_as(lab, master_flags, &vec![&[] as &[&str]; workers], true)
    }

    /// Makes an authority, and the certificates of a cluster.
    #[track_caller]
    fn certify(lab: &Lab, workers: usize) {
        let ca = lab.path("ca");
        lab.weir([Path::new("certs"), Path::new("init"), &ca]).ok();
        let cluster = |role, name: &str| issue(lab, role, name, &[]);
        cluster("master", "master");
        cluster("admin", "admin");
        for number in 0..workers {
            certify_worker(lab, number);
        }
    }

    #[track_caller]
    fn start_as(
        lab: &'a Lab,
        master_flags: &[&str],
        worker_flags: &[&[&str]],
        secure: bool,
    ) -> Self {
        let dir = lab.path("");
        // The lab's S3 server is on this machine, and its directories are in the scratch directory.
        let allowed = [
            "--allow-endpoint",
            "127.0.0.1",
            "--allow-file",
            dir.to_str().unwrap(),
        ];
        let worker_flags: Vec<Vec<&str>> = worker_flags
            .iter()
            .map(|flags| [&allowed[..], flags].concat())
            .collect();
        let worker_flags: Vec<&[&str]> = worker_flags.iter().map(Vec::as_slice).collect();
        let master_flags = [&allowed[..], master_flags].concat();
        Self::start_all(lab, None, secure, &master_flags, &worker_flags, &allowed)
    }

    /// A cluster whose workers and master are on hosts of their own, where everybody may call them. The network has at least one host
    /// more than there are workers: its last one is the master's, and others are for workers that come later.
    #[track_caller]
    pub fn start_on(lab: &'a Lab, network: &'a Network, worker_flags: &[&[&str]]) -> Self {
        let origin = network.outside().to_string();
        let allowed = ["--allow-endpoint", &origin];
        let open = [&allowed[..], &["--insecure"]].concat();
        let worker_flags = worker_flags.iter().map(|flags| [&open, *flags].concat());
        let worker_flags: Vec<Vec<&str>> = worker_flags.collect();
        let worker_flags: Vec<&[&str]> = worker_flags.iter().map(Vec::as_slice).collect();
        Self::start_all(lab, Some(network), false, &open, &worker_flags, &allowed)
    }

    /// A cluster that reads what these flags allow to its master, its workers and its mounts.
    #[track_caller]
    pub fn start_allowing(
        lab: &'a Lab,
        master_flags: &[&str],
        worker_flags: &[&[&str]],
        mount_flags: &[&str],
    ) -> Self {
        Self::start_all(lab, None, false, master_flags, worker_flags, mount_flags)
    }

    #[track_caller]
    fn start_all(
        lab: &'a Lab,
        network: Option<&'a Network>,
        secure: bool,
        master_flags: &[&str],
        worker_flags: &[&[&str]],
        mount_flags: &[&str],
    ) -> Self {
        let owned = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut cluster = Self {
            lab,
            network,
            master: None,
            workers: worker_flags.iter().map(|_| None).collect(),
            ports: worker_flags.iter().map(|_| Ports::free()).collect(),
            master_flags: owned(master_flags),
            worker_flags: worker_flags.iter().map(|flags| owned(flags)).collect(),
            mount_flags: owned(mount_flags),
            secure,
            master_ports: Ports::free(),
            master_host: network.map_or(0, |network| network.hosts() - 1),
        };
        cluster.start_master();
        for number in 0..worker_flags.len() {
            cluster.start_worker(number);
        }
        cluster.wait_for_workers(worker_flags.len());
        cluster
    }

    /// The flags by which one of the cluster shows who it is.
    pub fn certs_flags(&self, name: &str) -> Vec<String> {
        let dir = self.lab.path("certs").join(name);
        if self.secure {
            vec!["--certs".to_owned(), dir.display().to_string()]
        } else {
            Vec::new()
        }
    }

    /// The port of a worker's block stream.
    pub fn data_port(&self, number: usize) -> u16 {
        self.ports[number].data
    }

    /// The port of a worker's control service.
    pub fn control_port(&self, number: usize) -> u16 {
        self.ports[number].control
    }

    /// Where a process is: on which host, if there are hosts.
    fn socket(&self, host: usize, port: u16) -> SocketAddr {
        let ip = self.network.map(|network| network.address(host));
        SocketAddr::new(IpAddr::V4(ip.unwrap_or(Ipv4Addr::LOCALHOST)), port)
    }

    /// A command that runs there.
    fn command(&self, host: usize, args: &[&str]) -> Command {
        let Some(network) = self.network else {
            return self.lab.command(args);
        };
        let mut command = network.command(host, self.lab.binary());
        command.args(args);
        self.lab.set_environment(&mut command);
        command
    }

    fn on_master(&self, port: u16) -> SocketAddr {
        self.socket(self.master_host, port)
    }

    /// The master's address.
    pub fn address(&self) -> String {
        self.on_master(self.master_ports.control).to_string()
    }

    /// Starts the master, again with what it had stored.
    #[track_caller]
    pub fn start_master(&mut self) {
        let dir = self.lab.path("master");
        let at = self.on_master(self.master_ports.http);
        let (listen, http) = (self.address(), at.to_string());
        let args = [
            "master",
            "--dir",
            dir.to_str().unwrap(),
            "--listen",
            &listen,
            "--http",
            &http,
        ];
        let mut command = self.command(self.master_host, &args);
        command.args(self.certs_flags("master"));
        command.args(&self.master_flags);
        let log = self.lab.path("master.log");
        self.master = Some(Process::start(command, log, at));
    }

    /// Starts a worker, again with what it had cached.
    #[track_caller]
    pub fn start_worker(&mut self, number: usize) {
        let ports = self.ports[number];
        let name = format!("node-{number}");
        let dir = self.lab.path(&name);
        let address = |port| self.socket(number, port).to_string();
        let ssd = format!("{}:256MiB", dir.join("ssd").display());
        let (listen, control, http) = (
            address(ports.data),
            address(ports.control),
            address(ports.http),
        );
        let args = [
            "worker",
            "--master",
            &self.address(),
            "--dir",
            dir.to_str().unwrap(),
            "--node",
            &name,
            "--ssd",
            &ssd,
            "--listen",
            &listen,
            "--control",
            &control,
            "--http",
            &http,
        ];
        let mut command = self.command(number, &args);
        let flags = &self.worker_flags[number];
        if !flags.iter().any(|flag| flag == "--mem") {
            command.args(["--mem", "16MiB"]);
        }
        command.args(flags);
        command.args(self.certs_flags(&name));
        let log = self.lab.path(&format!("{name}.log"));
        let at = self.socket(number, ports.http);
        self.workers[number] = Some(Process::start(command, log, at));
    }

    /// Starts one more worker, with the flags of the first; gives its number. It is not waited for.
    #[track_caller]
    pub fn add_worker(&mut self) -> usize {
        self.add_worker_like(0)
    }

    /// The same, with the flags of another one.
    #[track_caller]
    pub fn add_worker_like(&mut self, other: usize) -> usize {
        let number = self.workers.len();
        if self.secure {
            certify_worker(self.lab, number);
        }
        self.workers.push(None);
        self.ports.push(Ports::free());
        self.worker_flags.push(self.worker_flags[other].clone());
        self.start_worker(number);
        number
    }

    /// A running worker.
    pub fn worker(&self, number: usize) -> &Process {
        self.workers[number].as_ref().unwrap()
    }

    /// Runs a command with `--master`.
    #[track_caller]
    pub fn weir(&self, args: &[&str]) -> Outcome {
        let (address, certs) = (self.address(), self.certs_flags("admin"));
        let certs = certs.iter().map(String::as_str);
        let args = args.iter().copied().chain(["--master", &address]);
        self.lab.weir(args.chain(certs))
    }

    /// The only master of `weir status -o json`.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let status = self.weir(&["status", "-o", "json"]).ok();
        let mut status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["masters"][0].take()
    }

    /// Waits until the map has exactly so many workers.
    #[track_caller]
    pub fn wait_for_workers(&self, count: usize) {
        crate::wait_until(
            &format!("{count} workers"),
            std::time::Duration::from_secs(20),
            || self.status()["workers"].as_array().unwrap().len() == count,
        );
    }

    /// Waits until both workers have reported twice again to a master that was stopped, which must not have taken one out of
    /// its map meanwhile: `epoch` is the map's from before.
    #[track_caller]
    pub fn keeps_its_workers(&self, epoch: &serde_json::Value) {
        let heartbeats = || {
            let master = self.master.as_ref().unwrap();
            master.metric("weir_master_heartbeats_total", "")
        };
        let before = heartbeats();
        let soon = std::time::Duration::from_secs(30);
        crate::wait_until("the workers report", soon, || {
            let status = self.status();
            assert_eq!(status["epoch"], *epoch, "a worker was thrown out");
            assert_eq!(status["workers"].as_array().unwrap().len(), 2);
            heartbeats() >= before + 4.0
        });
    }

    /// Mounts a dataset at the scratch directory's `mnt`, as on a node of this name.
    #[track_caller]
    pub fn mount(&self, source: &str, node: &str) -> Mount<'a> {
        self.mount_at(source, "mnt", &["--node", node])
    }

    /// Mounts a dataset at the scratch directory's `name`.
    #[track_caller]
    pub fn mount_at(&self, source: &str, name: &str, flags: &[&str]) -> Mount<'a> {
        let address = self.address();
        let certs = self.certs_flags("admin");
        let mut all = vec!["--master", &address];
        all.extend(certs.iter().chain(&self.mount_flags).map(String::as_str));
        all.extend(flags);
        self.lab.mount_at(source, name, &all)
    }

    /// Makes a dataset of the lab's bucket, spread over all workers.
    #[track_caller]
    pub fn create_dataset(&self, name: &str) {
        self.create_dataset_with(name, &[]).ok();
    }

    /// The same with more flags, which may say where it is held; what became of it.
    #[track_caller]
    pub fn create_dataset_with(&self, name: &str, flags: &[&str]) -> Outcome {
        self.create_dataset_of(name, "", flags)
    }

    /// The same of a prefix of the bucket.
    #[track_caller]
    pub fn create_dataset_of(&self, name: &str, prefix: &str, flags: &[&str]) -> Outcome {
        let url = self.lab.url(prefix);
        let origin = self.lab.origin_flags();
        let mut args = vec!["dataset", "create", name, &url];
        let placing = ["--spread", "--copies", "--in", "--pool", "--keep"];
        if !flags.iter().any(|flag| placing.contains(flag)) {
            // Small as it is, one node would have it all.
            args.extend(["--spread", "cluster"]);
        }
        args.extend(
            origin
                .iter()
                .map(String::as_str)
                .chain(flags.iter().copied()),
        );
        self.weir(&args)
    }
}

/// The certificate of a worker, which may also be announced at 127.0.0.2.
#[track_caller]
fn certify_worker(lab: &Lab, number: usize) {
    let name = format!("node-{number}");
    issue(lab, "worker", &name, &["--address", "127.0.0.2"]);
}
