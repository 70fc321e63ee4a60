//! What is measured: a bucket or a directory of HDFS behind a mount, by whichever program.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, ensure};
use weir_demo::mount::{knows, program_of};

use crate::metrics::Scrape;
use crate::wait::wait_for;

mod cluster;
mod peer;

pub use cluster::{Cluster, Protection};
pub use peer::{Peer, PeerCommand};
pub use weir_demo::mount::{Mount, MountStatus};

/// Longest wait until everything that was read is on SSD.
const FILL_DEADLINE: Duration = Duration::from_mins(1);

/// Name of the dataset of each of Weir's mounts.
pub const DATASET: &str = "bench";

/// Names of Weir's systems in tables.
pub const EMBEDDED: &str = "Weir";
/// A master, two workers, and a mount on a node of its own.
pub const CLUSTER: &str = "Weir, 2 workers";

/// Which program, and how it is set up.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// `weir mount URL`.
    Embedded,
    /// A master and two workers as processes, and a mount on a node of its own, to which both are remote.
    Cluster,
    /// Another program.
    Peer(PeerCommand),
}

/// Sizes of Weir's tiers in bytes; workers of a cluster share them equally.
#[derive(Clone, Copy, Debug)]
pub struct Tiers {
    /// The memory tier.
    pub memory: u64,
    /// The SSD tier.
    pub ssd: u64,
}

impl Tiers {
    /// No memory, and space on SSD for all of `bytes` however unevenly workers share them.
    pub fn ssd_for(bytes: u64) -> Self {
        Self {
            memory: 0,
            ssd: 2 * bytes + (1 << 30),
        }
    }

    /// One of `parts` equal parts.
    pub fn share(self, parts: u64) -> Self {
        Self {
            memory: self.memory / parts,
            ssd: self.ssd / parts,
        }
    }
}

/// What is mounted.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// A bucket that everybody may read.
    Bucket {
        /// URL of its server.
        endpoint: &'a str,
        /// Its name.
        bucket: &'a str,
    },
    /// The URL of a directory of HDFS.
    Hdfs(&'a str),
}

impl Place<'_> {
    /// Its URL, and the flags that say how it is reached.
    fn arguments(&self) -> (String, Vec<&str>) {
        match self {
            Self::Bucket { endpoint, bucket } => {
                let flags = vec!["--endpoint", endpoint, "--anonymous"];
                (format!("s3://{bucket}"), flags)
            }
            Self::Hdfs(url) => ((*url).to_owned(), Vec::new()),
        }
    }
}

/// A mounted place. It is unmounted when it goes out of scope.
pub struct System {
    /// Its name in tables.
    pub name: String,
    /// The mountpoint.
    pub dir: PathBuf,
    inner: Inner,
}

enum Inner {
    Embedded(Mount),
    // The mount ends before the processes that it reads from.
    Cluster(Mount, Cluster),
    Peer(Peer),
}

impl Kind {
    /// Its name in tables.
    pub fn name(&self) -> &str {
        match self {
            Self::Embedded => EMBEDDED,
            Self::Cluster => CLUSTER,
            Self::Peer(command) => &command.name,
        }
    }

    /// Whether it is Weir.
    pub fn is_weir(&self) -> bool {
        !matches!(self, Self::Peer(_))
    }

    /// Mounts `bucket` with an empty cache; everything of the system is kept below `scratch`.
    pub fn start(
        &self,
        scratch: &Path,
        endpoint: &str,
        bucket: &str,
        tiers: Tiers,
    ) -> anyhow::Result<System> {
        self.start_at(scratch, Place::Bucket { endpoint, bucket }, tiers)
    }

    /// As [`Self::start`], with another place than a bucket.
    pub fn start_at(
        &self,
        scratch: &Path,
        place: Place<'_>,
        tiers: Tiers,
    ) -> anyhow::Result<System> {
        clear(scratch)?;
        self.start_protected(scratch, place, tiers, Protection::SameUser)
    }

    /// As [`Self::start`], with another build's `weir`, if one is given. The processes of a cluster know each other by
    /// certificates where that build has them.
    pub fn start_build(
        &self,
        weir: Option<&Path>,
        scratch: &Path,
        endpoint: &str,
        bucket: &str,
        tiers: Tiers,
    ) -> anyhow::Result<System> {
        clear(scratch)?;
        if let Some(weir) = weir {
            std::os::unix::fs::symlink(weir, program_of(scratch))?;
        }
        let protection = if knows(scratch, "worker", "--certs")? {
            Protection::Authenticated
        } else {
            Protection::SameUser
        };
        let place = Place::Bucket { endpoint, bucket };
        self.start_protected(scratch, place, tiers, protection)
    }

    fn start_protected(
        &self,
        scratch: &Path,
        place: Place<'_>,
        tiers: Tiers,
        protection: Protection,
    ) -> anyhow::Result<System> {
        let dir = scratch.join("mnt");
        let inner = match self {
            Self::Embedded => {
                let mount = embedded(&dir, scratch, place, tiers)?;
                // `weir mount` returns a moment before other commands can find its master.
                mount.status()?;
                Inner::Embedded(mount)
            }
            Self::Cluster => {
                let cluster = Cluster::start_protected(scratch, 2, tiers.share(2), protection)?;
                cluster.create_dataset_of(DATASET, place)?;
                let mount = cluster.mount(DATASET, &dir, "elsewhere")?;
                Inner::Cluster(mount, cluster)
            }
            Self::Peer(command) => {
                let Place::Bucket { endpoint, bucket } = place else {
                    bail!("{} is measured on buckets only", command.name);
                };
                Inner::Peer(Peer::start(command, &dir, scratch, endpoint, bucket)?)
            }
        };
        Ok(System {
            name: self.name().to_owned(),
            dir,
            inner,
        })
    }
}

/// Empties a directory: the cache of an earlier run would not be empty.
fn clear(scratch: &Path) -> anyhow::Result<()> {
    let _ = std::fs::remove_dir_all(scratch);
    Ok(std::fs::create_dir_all(scratch)?)
}

impl System {
    /// Its processes.
    pub fn pids(&self) -> anyhow::Result<Vec<u32>> {
        let mut pids = match &self.inner {
            Inner::Cluster(_, cluster) => cluster.pids(),
            Inner::Embedded(_) => Vec::new(),
            Inner::Peer(peer) => vec![peer.pid()],
        };
        if let Some(mount) = self.mount() {
            let status = mount.status()?;
            pids.extend([status.server_pid, status.supervisor_pid]);
        }
        Ok(pids)
    }

    /// Bytes that Weir's processes have read from origins so far; 0 for other systems.
    pub fn origin_bytes(&self) -> anyhow::Result<f64> {
        let mut bytes = 0.0;
        for url in self.metrics()? {
            bytes += Scrape::fetch(&url)?.sum("weir_origin_read_bytes_total", "");
        }
        Ok(bytes)
    }

    /// URLs of the metrics of Weir's processes.
    fn metrics(&self) -> anyhow::Result<Vec<String>> {
        let mut urls = match &self.inner {
            Inner::Cluster(_, cluster) => cluster.metrics(),
            Inner::Embedded(_) | Inner::Peer(_) => Vec::new(),
        };
        if let Some(mount) = self.mount() {
            urls.push(mount.status()?.metrics);
        }
        Ok(urls)
    }

    /// Weir's mount.
    pub fn mount(&self) -> Option<&Mount> {
        match &self.inner {
            Inner::Embedded(mount) | Inner::Cluster(mount, _) => Some(mount),
            Inner::Peer(_) => None,
        }
    }

    /// Runs a `weir` command against the system's master and gives its output.
    pub fn weir(&self, args: &[&str]) -> anyhow::Result<String> {
        match &self.inner {
            Inner::Embedded(mount) => mount.run(args),
            Inner::Cluster(_, cluster) => cluster.weir(args),
            Inner::Peer(_) => anyhow::bail!("{} is not Weir", self.name),
        }
    }

    /// Drops everything from Weir's cache. False for other systems.
    pub fn evict(&self) -> anyhow::Result<bool> {
        if self.mount().is_none() {
            return Ok(false);
        }
        // Blocks that are still on their way to the SSD tier would come to it after the eviction.
        self.wait_for_fills()?;
        self.weir(&["evict", DATASET])?;
        Ok(true)
    }

    /// Waits until everything that was read is in Weir's tiers.
    pub fn wait_for_fills(&self) -> anyhow::Result<()> {
        let urls = self.metrics()?;
        wait_for("the last fills", FILL_DEADLINE, || {
            let mut fills = 0.0;
            for url in &urls {
                fills += Scrape::fetch(url)?.sum("weir_worker_fills_in_flight", "");
            }
            Ok((fills <= 0.0).then_some(()))
        })
    }

    /// Unmounts, which must work, and ends its processes.
    pub fn end(self) -> anyhow::Result<()> {
        match self.inner {
            Inner::Embedded(mount) => mount.end(),
            Inner::Cluster(mount, _cluster) => mount.end(),
            Inner::Peer(peer) => peer.end(),
        }?;
        ensure!(
            !crate::kernel::is_mountpoint(&self.dir),
            "{} is still mounted",
            self.dir.display()
        );
        Ok(())
    }
}

/// Mounts a place with a master and a worker in the mount's own process.
fn embedded(dir: &Path, home: &Path, place: Place<'_>, tiers: Tiers) -> anyhow::Result<Mount> {
    let ssd = format!("{}:{}", home.join("ssd").display(), tiers.ssd);
    let memory = tiers.memory.to_string();
    let cache = ["--mem", &memory, "--ssd", &ssd];
    let (url, flags) = place.arguments();
    let args = [&flags[..], &["--dataset", DATASET], &cache[..]].concat();
    Mount::new(&url, dir, home, &args)
}
