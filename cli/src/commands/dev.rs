//! `weir dev`: a cluster on this machine, to try things and to write programs against.
//!
//! It is set up as a real one is: an authority, a certificate for each process, and TLS between them. The processes are
//! children of this one and end with it, however it ends.

use std::fs::{DirBuilder, File};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use weir_master::CredentialKeys;
use weir_proto::v1::GetClusterMapRequest;
use weir_trust::{Authority, Dial, Identity, Role, Subject, Validity};

use super::mount::place::cache_home;
use crate::args::DevArgs;
use crate::connect::{self, CALL_DEADLINE, request};
use crate::exit::{Failure, Reason};
use crate::output;
use crate::process::{SHUTDOWN_DEADLINE, node_name, runtime, stop_on_signal};

/// Longest wait for all processes to be up.
const START_DEADLINE: Duration = Duration::from_mins(1);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub(crate) fn run(args: &DevArgs) -> Result<(), Failure> {
    let dir = match &args.dir {
        Some(dir) => std::path::absolute(dir)?,
        None => cache_home()?.join("dev"),
    };
    // The children are told to end when the thread ends that has started them: this one.
    runtime()?.block_on(async {
        let stop = stop_on_signal()?;
        let mut cluster = Cluster::prepare(dir)?;
        let served = tokio::select! {
            served = cluster.serve(args) => served,
            () = stop.cancelled() => Ok(()),
        };
        cluster.end().await;
        served
    })
}

/// A directory and the processes that run on it.
struct Cluster {
    dir: PathBuf,
    children: Vec<Part>,
}

/// A process of the cluster.
struct Part {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Cluster {
    fn prepare(dir: PathBuf) -> Result<Self, Failure> {
        let made = DirBuilder::new().mode(0o700).recursive(true).create(&dir);
        made.with_context(|| format!("cannot make {}; choose another with --dir", dir.display()))?;
        Ok(Self {
            dir,
            children: Vec::new(),
        })
    }

    /// Runs the cluster until one of its processes ends.
    async fn serve(&mut self, args: &DevArgs) -> Result<(), Failure> {
        let master: SocketAddr = ([127, 0, 0, 1], args.port).into();
        // Told before anything is made. The master itself tells of one that is taken in between.
        TcpListener::bind(master).await.with_context(|| {
            format!("cannot listen on {master}; choose another port with --port")
        })?;
        let authority = self.authority()?;
        let mine = self.certificate(&authority, Role::Admin, "dev")?;
        let certs = self.certificate(&authority, Role::Master, "dev")?;
        let data = self.dir.join("master");
        let mut part = own("master", &data, &certs);
        let key = self.dir.join("credentials.key");
        let made = CredentialKeys::make(&key);
        made.with_context(|| format!("cannot write {}", key.display()))?;
        part.args(["--listen", &master.to_string()])
            .arg("--credentials-key")
            .arg(&key);
        self.start("master", part)?;
        for number in 1..=args.workers {
            let name = format!("worker-{number}");
            let certs = self.certificate(&authority, Role::Worker, &name)?;
            let data = self.dir.join(&name);
            let ssd = format!("{}:{}", data.join("ssd").display(), args.ssd.0);
            let mut part = own("worker", &data, &certs);
            part.args(["--master", &master.to_string()])
                .args(["--mem", &args.mem.0.to_string()])
                .args(["--ssd", &ssd])
                .args(["--listen", "127.0.0.1:0"])
                .args(["--control", "127.0.0.1:0"]);
            // Nodes of their own, whose sockets all mounts on this machine may use.
            part.args(["--node", &format!("node-{number}")])
                .args(["--machine", node_name()?.as_str()]);
            if let Some(zones) = args.zones {
                part.args(["--zone", &zone(number, zones)]);
            }
            self.start(&name, part)?;
        }
        let dial = Dial::new(Some(Identity::load(&mine)?));
        let address = master.to_string();
        let up = timeout(
            START_DEADLINE,
            self.is_up(&address, &dial, args.workers.into()),
        )
        .await;
        up.map_err(|_| {
            Failure::new(
                Reason::Unavailable,
                format!(
                    "the cluster is not up after {START_DEADLINE:?}; see the logs in {}",
                    self.dir.display()
                ),
            )
        })??;
        self.tell(&address, &mine, args.workers)?;
        loop {
            self.check()?;
            sleep(LOOK_AGAIN).await;
        }
    }

    /// The authority of this directory, made at the first start.
    fn authority(&self) -> Result<Authority, Failure> {
        let dir = self.dir.join("ca");
        let usual = Validity::default();
        Ok(if Authority::is_in(&dir) {
            Authority::open(&dir, usual)?
        } else {
            Authority::init(&dir, usual)?
        })
    }

    /// A new certificate for one of its processes, or for whoever uses it. Gives its directory.
    fn certificate(
        &self,
        authority: &Authority,
        role: Role,
        name: &str,
    ) -> Result<PathBuf, Failure> {
        let dir = self.dir.join("certs").join(format!("{role}-{name}"));
        let subject = Subject::new(role, name.parse().map_err(anyhow::Error::from)?);
        authority.issue(&subject, &[], &dir)?;
        Ok(dir)
    }

    fn start(&mut self, name: &str, mut command: Command) -> Result<(), Failure> {
        let log = self.dir.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = command.stderr(file).kill_on_drop(true).spawn();
        self.children.push(Part {
            name: name.to_owned(),
            child: child.with_context(|| format!("cannot start the {name}"))?,
            log,
        });
        Ok(())
    }

    /// Fails when a process has ended.
    fn check(&mut self) -> Result<(), Failure> {
        for part in &mut self.children {
            if let Some(status) = part.child.try_wait()? {
                let log = std::fs::read_to_string(&part.log).unwrap_or_default();
                let last = log.lines().last().unwrap_or_default();
                return Err(Failure::new(
                    Reason::Other,
                    format!(
                        "the {} has ended ({status}): {last}; its log is {}",
                        part.name,
                        part.log.display()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Waits until the master knows all workers.
    async fn is_up(&mut self, master: &str, dial: &Dial, workers: usize) -> Result<(), Failure> {
        let mut client = connect::lazy(master, dial)?;
        loop {
            self.check()?;
            let asked = request(GetClusterMapRequest::default(), CALL_DEADLINE);
            let known = client.get_cluster_map(asked).await;
            let map = known.ok().and_then(|known| known.into_inner().map);
            if map.is_some_and(|map| map.workers.len() >= workers) {
                return Ok(());
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    fn tell(&self, master: &str, certs: &Path, workers: u16) -> Result<(), Failure> {
        output::line(format_args!(
            "a master and {workers} workers run in {}; stop them with Ctrl-C. In another shell:",
            self.dir.display()
        ))?;
        output::line(format_args!(
            "  export WEIR_MASTER={master} WEIR_CERTS={}",
            certs.display()
        ))?;
        for line in [
            "weir status",
            "weir dataset create NAME s3://bucket/prefix",
            "weir mount NAME DIR",
        ] {
            output::line(format_args!("  {line}"))?;
        }
        Ok(())
    }

    /// Ends all processes: workers first, so that they can take leave of the master.
    async fn end(&mut self) {
        let until = Instant::now() + SHUTDOWN_DEADLINE * 2;
        for part in self.children.iter_mut().rev() {
            let pid = part
                .child
                .id()
                .and_then(|pid| Pid::from_raw(pid.cast_signed()));
            if let Some(pid) = pid {
                // It may have ended by itself.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        for part in &mut self.children {
            let left = until.saturating_duration_since(Instant::now());
            if timeout(left, part.child.wait()).await.is_err() {
                output::note(format_args!(
                    "weir: the {} does not end; it is killed",
                    part.name
                ));
                let _ = part.child.kill().await;
            }
        }
    }
}

/// A process of this program that ends with this one, with files and a certificate of its own.
fn own(part: &str, dir: &Path, certs: &Path) -> Command {
    let mut command = weir_process::spawn::own(part);
    command
        .args(["--parent", &std::process::id().to_string()])
        .args(["--http", "127.0.0.1:0"])
        // Datasets are made by who runs this, and may be what this user can read.
        .args(["--allow-file", "/", "--allow-endpoint", "any"])
        .arg("--dir")
        .arg(dir)
        .arg("--certs")
        .arg(certs);
    command.into()
}

/// The zone of a worker; both count from 1, and there are at most 26.
fn zone(worker: u16, zones: u8) -> String {
    let zone = (worker - 1) % u16::from(zones);
    char::from(b'a' + zone as u8).to_string()
}
