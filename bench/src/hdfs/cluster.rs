//! A NameNode and a DataNode as processes of their own, on loopback, of a plain Hadoop.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use weir_demo::ending::tell;
use weir_tests::{hadoop_jars, write_hadoop_properties};

use super::{Raw, calls, image};
use crate::process::{Process, forget_settings, free_port};
use crate::server::Bucket;
use crate::wait::wait_for;

const NAMENODE: &str = "org.apache.hadoop.hdfs.server.namenode.NameNode";
const DATANODE: &str = "org.apache.hadoop.hdfs.server.datanode.DataNode";
/// What reads and writes the images of NameNodes.
const IMAGES: &str = "org.apache.hadoop.hdfs.tools.offlineImageViewer.OfflineImageViewerPB";
/// `hdfs dfs`.
const SHELL: &str = "org.apache.hadoop.fs.FsShell";
/// The image of a NameNode that was made just now, below its directory.
const FIRST_IMAGE: &str = "nn/current/fsimage_0000000000000000000";

/// Longest wait until all blocks are reported, or a large image is read.
const READY_DEADLINE: Duration = Duration::from_mins(2);
/// A NameNode's figures are of this time at most (see `hadoop-metrics2.properties` below).
const FIGURES_AGE: Duration = Duration::from_millis(300);

/// Path of the directory of [`Cluster::with_listing`].
pub const LISTED: &str = image::TOP;

/// A running cluster. Its processes end when it goes out of scope.
pub struct Cluster {
    // Ends before the NameNode that it reports to.
    _datanode: Option<Process>,
    _namenode: Process,
    home: Home,
}

impl Cluster {
    /// Starts a cluster in `dir` with all files of `trees`, each below `/NAME`. They are kept for the next run.
    pub fn start(dir: &Path, trees: &[Bucket<'_>]) -> anyhow::Result<Self> {
        let home = Home::new(dir, &[])?;
        if !dir.join("nn").exists() {
            home.format()?;
        }
        let namenode = home.start(NAMENODE, "1g", || calls::answers(home.web))?;
        let datanode = home.start(DATANODE, "512m", || true)?;
        wait_for("the DataNode's blocks", READY_DEADLINE, || {
            Ok(calls::is_operational(home.web, 1).then_some(()))
        })?;
        let cluster = Self {
            _datanode: Some(datanode),
            _namenode: namenode,
            home,
        };
        for tree in trees {
            cluster
                .fill(tree)
                .with_context(|| format!("cannot fill /{}", tree.name))?;
        }
        Ok(cluster)
    }

    /// Starts a NameNode alone, which knows `files` files below [`LISTED`], in directories of 1,000.
    pub fn with_listing(dir: &Path, files: u64) -> anyhow::Result<Self> {
        // Nobody has the blocks: it does not wait for them, and does not look for each slowly.
        let alone = [
            ("dfs.namenode.safemode.threshold-pct", "0"),
            ("dfs.block.misreplication.processing.limit", "100000000"),
        ];
        let home = Home::new(dir, &alone)?;
        home.format()?;
        let (empty, made) = (dir.join("empty.xml"), dir.join("made.xml"));
        home.convert("XML", &dir.join(FIRST_IMAGE), &empty)?;
        let mut out = BufWriter::new(File::create(&made)?);
        image::write(&fs::read_to_string(&empty)?, files, &mut out)?;
        out.flush()?;
        home.convert("ReverseXML", &made, &dir.join(FIRST_IMAGE))?;
        fs::remove_file(&made)?;
        let namenode = home.start(NAMENODE, "2g", || calls::answers(home.web))?;
        wait_for("the NameNode", READY_DEADLINE, || {
            Ok(calls::is_operational(home.web, 0).then_some(()))
        })?;
        Ok(Self {
            _datanode: None,
            _namenode: namenode,
            home,
        })
    }

    /// The URL of a directory.
    pub fn url(&self, path: &str) -> String {
        format!("hdfs://127.0.0.1:{}/{path}", self.home.rpc)
    }

    /// The raw client of a directory.
    pub fn raw(&self, path: &str) -> anyhow::Result<Raw> {
        Raw::open(&self.url(path), Some(&self.home.configuration()))
    }

    /// How often clients have called the NameNode so far.
    pub fn calls(&self) -> anyhow::Result<u64> {
        std::thread::sleep(FIGURES_AGE);
        calls::calls(self.home.web, self.home.rpc)
    }

    /// `hdfs dfs ARGS…`.
    pub fn shell(&self, args: &[&str]) -> anyhow::Result<()> {
        let mut command = self.home.java(SHELL, "1g");
        command.args(args);
        run(command, &self.home.dir.join("shell.log"))
    }

    /// Puts all files of a tree, unless an earlier run has done so with the same data.
    fn fill(&self, tree: &Bucket<'_>) -> anyhow::Result<()> {
        let dir = &self.home.dir;
        let complete = dir.join(format!("{}.complete", tree.name));
        let made = fs::metadata(&tree.tree.root)?.modified()?;
        let (files, bytes) = (tree.tree.files.len(), tree.tree.bytes);
        let what = format!("{files} files, {bytes} bytes, from {made:?}");
        let found = fs::read_to_string(&complete);
        if found.as_ref().is_ok_and(|found| *found == what) {
            return Ok(());
        }
        let _ = fs::remove_file(&complete);
        tell(format_args!("putting {files} files into HDFS"));
        let path = format!("/{}", tree.name);
        self.shell(&["-rm", "-r", "-f", "-skipTrash", &path])?;
        self.raw(tree.name)?.put(tree.tree)?;
        Ok(fs::write(&complete, what)?)
    }
}

/// The directory of a cluster, and where it listens.
struct Home {
    dir: PathBuf,
    jars: PathBuf,
    rpc: u16,
    web: u16,
}

impl Home {
    /// Writes the configuration, with some properties more.
    fn new(dir: &Path, more: &[(&str, &str)]) -> anyhow::Result<Self> {
        let home = Self {
            dir: dir.to_owned(),
            jars: hadoop_jars().context("Hadoop cannot be fetched")?,
            rpc: free_port()?,
            web: free_port()?,
        };
        for name in ["conf", "tmp"] {
            fs::create_dir_all(dir.join(name))?;
        }
        let at = |port: u16| format!("127.0.0.1:{port}");
        let file = |name: &str| format!("file://{}", dir.join(name).display());
        let own = [
            ("fs.defaultFS", format!("hdfs://{}", at(home.rpc))),
            ("hadoop.tmp.dir", dir.join("tmp").display().to_string()),
            ("dfs.namenode.name.dir", file("nn")),
            ("dfs.datanode.data.dir", file("dn")),
            ("dfs.namenode.http-address", at(home.web)),
            ("dfs.datanode.address", at(free_port()?)),
            ("dfs.datanode.http.address", at(0)),
            ("dfs.datanode.ipc.address", at(0)),
        ];
        let own = own.iter().map(|(name, value)| (*name, value.as_str()));
        let fixed = [
            ("dfs.replication", "1"),
            ("dfs.permissions.enabled", "false"),
            ("dfs.namenode.safemode.extension", "0"),
            (
                "dfs.namenode.datanode.registration.ip-hostname-check",
                "false",
            ),
            // Files come in fast: nobody needs them after a loss of power.
            ("dfs.namenode.edits.noeditlogchannelflush", "true"),
            ("dfs.namenode.file.close.num-committed-allowed", "1"),
        ];
        let all: Vec<_> = own.chain(fixed).chain(more.iter().copied()).collect();
        let conf = home.configuration();
        write_hadoop_properties(&conf.join("core-site.xml"), &all)?;
        write_hadoop_properties(&conf.join("hdfs-site.xml"), &all)?;
        let figures = "*.periodMillis=100\n";
        fs::write(conf.join("hadoop-metrics2.properties"), figures)?;
        Ok(home)
    }

    fn configuration(&self) -> PathBuf {
        self.dir.join("conf")
    }

    /// A JVM that knows the cluster.
    fn java(&self, class: &str, memory: &str) -> Command {
        let (conf, jars) = (self.configuration(), self.jars.display());
        let mut command = Command::new("java");
        forget_settings(&mut command, "HADOOP_");
        command
            .arg(format!("-Xmx{memory}"))
            .arg(format!(
                "-Djava.io.tmpdir={}",
                self.dir.join("tmp").display()
            ))
            .args(["-cp", &format!("{}:{jars}/*", conf.display()), class])
            .stdin(Stdio::null());
        command
    }

    fn start(
        &self,
        class: &str,
        memory: &str,
        ready: impl FnMut() -> bool,
    ) -> anyhow::Result<Process> {
        let name = class.rsplit('.').next().unwrap_or(class).to_lowercase();
        let log = self.dir.join(format!("{name}.log"));
        Process::start(self.java(class, memory), &log, ready)
    }

    /// Makes an empty NameNode.
    fn format(&self) -> anyhow::Result<()> {
        let mut command = self.java(NAMENODE, "512m");
        command.args(["-format", "-nonInteractive"]);
        run(command, &self.dir.join("format.log"))
    }

    /// Makes an image XML, or XML an image.
    fn convert(&self, processor: &str, from: &Path, to: &Path) -> anyhow::Result<()> {
        let mut command = self.java(IMAGES, "2g");
        command
            .args(["-p", processor, "-i"])
            .arg(from)
            .arg("-o")
            .arg(to);
        run(command, &self.dir.join("images.log"))
    }
}

/// Runs a command to its end.
fn run(mut command: Command, log: &Path) -> anyhow::Result<()> {
    let file = File::create(log)?;
    let status = command.stdout(file.try_clone()?).stderr(file).status();
    let status = status.context("cannot start java")?;
    ensure!(
        status.success(),
        "{command:?} ended with {status}; see {}",
        log.display()
    );
    Ok(())
}
