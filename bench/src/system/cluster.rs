//! A master and workers as processes of their own, on loopback. Every worker is on a node of its own: `node-0`,
//! `node-1`…

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::mount::{Mount, run, weir};
use super::{DATASET, Tiers};
use crate::process::{Process, free_port};
use crate::wait::wait_for;

/// Longest wait for the workers to be in the cluster map.
const JOIN_DEADLINE: Duration = Duration::from_secs(20);

/// A running cluster. Its processes end when it goes out of scope.
pub struct Cluster {
    home: PathBuf,
    address: String,
    // Workers end before the master that they report to.
    workers: Vec<(Process, u16)>,
    master: Process,
    master_http: u16,
}

impl Cluster {
    /// Starts a master and `workers` workers, each with the tiers, and waits until all are in the cluster map.
    pub fn start(home: &Path, workers: usize, tiers: Tiers) -> anyhow::Result<Self> {
        std::fs::create_dir_all(home)?;
        let (listen, http) = (free_port()?, free_port()?);
        let address = format!("127.0.0.1:{listen}");
        let mut command = weir(home)?;
        command
            .args(["master", "--listen", &address])
            .args(["--http", &format!("127.0.0.1:{http}"), "--dir"])
            .arg(home.join("master"));
        let master = Process::start(command, &home.join("master.log"), || answers(http))?;
        let mut cluster = Self {
            home: home.to_owned(),
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

    /// A worker and the port of its metrics.
    fn start_worker(&self, number: usize, tiers: Tiers) -> anyhow::Result<(Process, u16)> {
        let node = format!("node-{number}");
        let dir = self.home.join(&node);
        let ssd = format!("{}:{}", dir.join("ssd").display(), tiers.ssd);
        let (data, control, http) = (free_port()?, free_port()?, free_port()?);
        let mut command = weir(&self.home)?;
        command
            .args(["worker", "--master", &self.address, "--node", &node])
            .args(["--mem", &tiers.memory.to_string(), "--ssd", &ssd])
            .args(["--listen", &format!("127.0.0.1:{data}")])
            .args(["--control", &format!("127.0.0.1:{control}")])
            .args(["--http", &format!("127.0.0.1:{http}"), "--dir"])
            .arg(&dir);
        let log = self.home.join(format!("{node}.log"));
        Ok((Process::start(command, &log, || answers(http))?, http))
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
        let url = format!("s3://{bucket}");
        let create = ["dataset", "create", name, &url];
        let origin = ["--endpoint", endpoint, "--anonymous"];
        self.weir(&[&create[..], &origin[..]].concat())?;
        Ok(())
    }

    /// Mounts a dataset on a node.
    pub fn mount(&self, name: &str, dir: &Path, node: &str) -> anyhow::Result<Mount> {
        let args = ["--master", self.address(), "--node", node];
        Mount::new(name, dir, &self.home, &args)
    }

    /// Fetches everything into the cache.
    pub fn warm(&self) -> anyhow::Result<()> {
        self.weir(&["warm", DATASET, "--wait", "-o", "json"])?;
        Ok(())
    }

    /// Runs a `weir` command with `--master` and gives its output.
    pub fn weir(&self, args: &[&str]) -> anyhow::Result<String> {
        run(&self.home, &[args, &["--master", &self.address]].concat())
    }
}

fn metrics_url(port: u16) -> String {
    format!("http://127.0.0.1:{port}/metrics")
}

fn answers(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}
