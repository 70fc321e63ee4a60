//! A master and workers as processes of their own, on loopback. Every worker is on a node of its own: `node-0`,
//! `node-1`…

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use weir_demo::mount::{Mount, knows, run, weir};
use weir_trust::{Authority, Dial, Identity, Role, Subject, Validity};

use super::{DATASET, Place, Tiers};
use crate::process::{Process, free_port};
use crate::wait::wait_for;

/// Longest wait for the workers to be in the cluster map.
const JOIN_DEADLINE: Duration = Duration::from_secs(20);

/// How the processes of a cluster know each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    /// By their user.
    SameUser,
    /// By certificates; the block stream is opened by a challenge.
    Authenticated,
    /// By certificates; the block stream is TLS.
    Tls,
}

/// The origin's server is on this machine, too.
const ALLOWED: [&str; 2] = ["--allow-endpoint", "127.0.0.1"];

/// A running cluster. Its processes end when it goes out of scope.
pub struct Cluster {
    home: PathBuf,
    protection: Protection,
    /// Flags that let its processes read from a server on this machine.
    allowed: &'static [&'static str],
    /// More flags of its workers.
    worker_flags: Vec<String>,
    address: String,
    // Workers end before the master that they report to.
    workers: Vec<(Process, u16)>,
    master: Process,
    master_http: u16,
}

impl Cluster {
    /// Starts a master and `workers` workers, each with the tiers, and waits until all are in the cluster map.
    pub fn start(home: &Path, workers: usize, tiers: Tiers) -> anyhow::Result<Self> {
        Self::start_protected(home, workers, tiers, Protection::SameUser)
    }

    /// The same, with processes that know each other so.
    pub fn start_protected(
        home: &Path,
        workers: usize,
        tiers: Tiers,
        protection: Protection,
    ) -> anyhow::Result<Self> {
        Self::start_all(home, workers, tiers, protection, &[])
    }

    /// As [`Self::start`], with more flags of the workers.
    pub fn start_with(
        home: &Path,
        workers: usize,
        tiers: Tiers,
        flags: &[String],
    ) -> anyhow::Result<Self> {
        Self::start_all(home, workers, tiers, Protection::SameUser, flags)
    }

    fn start_all(
        home: &Path,
        workers: usize,
        tiers: Tiers,
        protection: Protection,
        flags: &[String],
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(home)?;
        let allowed: &[&str] = if knows(home, "worker", ALLOWED[0])? {
            &ALLOWED
        } else {
            &[]
        };
        if protection != Protection::SameUser {
            issue_all(home, workers)?;
        }
        let (listen, http) = (free_port()?, free_port()?);
        let address = format!("127.0.0.1:{listen}");
        let master = start_master(home, protection, allowed, &address, http)?;
        let mut cluster = Self {
            home: home.to_owned(),
            protection,
            allowed,
            worker_flags: flags.to_vec(),
            address,
            workers: Vec::new(),
            master,
            master_http: http,
        };
        for number in 0..workers {
            let worker = cluster.start_worker(number, tiers)?;
            cluster.workers.push(worker);
        }
        wait_for("the workers", JOIN_DEADLINE, || {
            let status = cluster.weir(&["status", "-o", "json"])?;
            let status: serde_json::Value = serde_json::from_str(&status)?;
            let known = status["masters"][0]["workers"].as_array().map(Vec::len);
            Ok((known == Some(workers)).then_some(()))
        })?;
        Ok(cluster)
    }

    /// Ends the master and starts it again. Gives the time from its new start to its first answer to `weir status`.
    pub fn restart_master(&mut self) -> anyhow::Result<Duration> {
        self.master.end()?;
        let started = Instant::now();
        self.master = start_master(
            &self.home,
            self.protection,
            self.allowed,
            &self.address,
            self.master_http,
        )?;
        self.weir(&["status", "-o", "json"])?;
        Ok(started.elapsed())
    }

    /// A worker and the port of its metrics.
    fn start_worker(&self, number: usize, tiers: Tiers) -> anyhow::Result<(Process, u16)> {
        let node = format!("node-{number}");
        let dir = self.home.join(&node);
        let ssd = format!("{}:{}", dir.join("ssd").display(), tiers.ssd);
        let (data, control, http) = (free_port()?, free_port()?, free_port()?);
        let mut command = weir(&self.home)?;
        command
            .args(["worker", "--master", &self.address, "--node", &node])
            .args(self.allowed)
            .args(&self.worker_flags)
            .args(["--mem", &tiers.memory.to_string(), "--ssd", &ssd])
            .args(["--listen", &format!("127.0.0.1:{data}")])
            .args(["--control", &format!("127.0.0.1:{control}")])
            .args(["--http", &format!("127.0.0.1:{http}"), "--dir"])
            .arg(&dir);
        add_certs(&mut command, &self.home, self.protection, &node);
        if self.protection == Protection::Tls {
            command.args(["--stream", "tls"]);
        }
        let log = self.home.join(format!("{node}.log"));
        Ok((Process::start(command, &log, || answers(http))?, http))
    }

    /// Starts one more worker.
    ///
    /// # Errors
    /// When it does not start.
    pub fn add_worker(&mut self, tiers: Tiers) -> anyhow::Result<()> {
        let worker = self.start_worker(self.workers.len(), tiers)?;
        self.workers.push(worker);
        Ok(())
    }

    /// Ends a worker, and starts it again with an empty disk.
    ///
    /// # Errors
    /// When it does not end, or does not start.
    pub fn restart_empty(&mut self, number: usize, tiers: Tiers) -> anyhow::Result<()> {
        self.workers[number].0.end()?;
        std::fs::remove_dir_all(self.home.join(format!("node-{number}")))?;
        self.workers[number] = self.start_worker(number, tiers)?;
        Ok(())
    }

    /// The master's address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Process id of the master.
    pub fn master_pid(&self) -> u32 {
        self.master.pid()
    }

    /// Process ids of the master and the workers.
    pub fn pids(&self) -> Vec<u32> {
        let workers = self.workers.iter().map(|(worker, _)| worker.pid());
        workers.chain([self.master.pid()]).collect()
    }

    /// URLs of the workers' metrics.
    pub fn metrics(&self) -> Vec<String> {
        let ports = self.workers.iter().map(|(_, port)| *port);
        ports.map(metrics_url).collect()
    }

    /// URL of the master's metrics.
    pub fn master_metrics(&self) -> String {
        metrics_url(self.master_http)
    }

    /// Names a bucket as a dataset, which lists it.
    pub fn create_dataset(&self, name: &str, endpoint: &str, bucket: &str) -> anyhow::Result<()> {
        self.create_dataset_of(name, Place::Bucket { endpoint, bucket })
    }

    /// Names a place as a dataset that is spread over all workers, which lists it.
    pub fn create_dataset_of(&self, name: &str, place: Place<'_>) -> anyhow::Result<()> {
        let (url, flags) = place.arguments();
        let create = [&["dataset", "create", name, &url][..], &flags[..]].concat();
        // An earlier build spreads all datasets so, and does not know the flag.
        let help = run(&self.home, &["dataset", "create", "--help"])?;
        let spread: &[_] = if help.contains("--spread") {
            &["--spread", "cluster"]
        } else {
            &[]
        };
        self.weir(&[&create[..], spread].concat())?;
        Ok(())
    }

    /// Mounts a dataset on a node.
    pub fn mount(&self, name: &str, dir: &Path, node: &str) -> anyhow::Result<Mount> {
        let mut args = vec!["--master", self.address(), "--node", node];
        args.extend(self.allowed);
        let own = certs(&self.home, "mount").display().to_string();
        if self.protection != Protection::SameUser {
            args.extend(["--certs", &own]);
        }
        Mount::new(name, dir, &self.home, &args)
    }

    /// Fetches everything into the cache.
    pub fn warm(&self) -> anyhow::Result<()> {
        self.weir(&["warm", DATASET, "--wait", "-o", "json"])?;
        Ok(())
    }

    /// How a client of this cluster calls its processes.
    pub fn dial(&self) -> anyhow::Result<Dial> {
        let identity = match self.protection {
            Protection::SameUser => None,
            _ => Some(Identity::load(&certs(&self.home, "mount"))?),
        };
        Ok(Dial::new(identity))
    }

    /// Runs a `weir` command with `--master` and gives its output.
    pub fn weir(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut args = [args, &["--master", &self.address]].concat();
        let admin = certs(&self.home, "admin").display().to_string();
        if self.protection != Protection::SameUser {
            args.extend(["--certs", &admin]);
        }
        run(&self.home, &args)
    }
}

fn start_master(
    home: &Path,
    protection: Protection,
    allowed: &[&str],
    address: &str,
    http: u16,
) -> anyhow::Result<Process> {
    let mut command = weir(home)?;
    command
        .args(["master", "--listen", address])
        .args(allowed)
        .args(["--http", &format!("127.0.0.1:{http}"), "--dir"])
        .arg(home.join("master"));
    add_certs(&mut command, home, protection, "master");
    Process::start(command, &home.join("master.log"), || answers(http))
}

/// The directory of a process's certificate.
fn certs(home: &Path, name: &str) -> PathBuf {
    home.join("certs").join(name)
}

fn add_certs(command: &mut Command, home: &Path, protection: Protection, name: &str) {
    if protection != Protection::SameUser {
        command.arg("--certs").arg(certs(home, name));
    }
}

/// Issues certificates for all processes of a cluster.
fn issue_all(home: &Path, workers: usize) -> anyhow::Result<()> {
    let authority = Authority::init(&home.join("ca"), Validity::default())?;
    let workers = (0..workers).map(|number| (Role::Worker, format!("node-{number}")));
    let others = [Role::Master, Role::Admin, Role::Mount];
    let others = others.map(|role| (role, role.to_string()));
    for (role, name) in others.into_iter().chain(workers) {
        let subject = Subject::new(role, name.parse()?);
        authority.issue(&subject, &[], &certs(home, &name))?;
    }
    Ok(())
}

fn metrics_url(port: u16) -> String {
    format!("http://127.0.0.1:{port}/metrics")
}

fn answers(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}
