//! The processes of one HDFS cluster: a pair of NameNodes that share a journal on the disk, two DataNodes, and a shell
//! that does what the tests want done.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use weir_tests::{free_port, wait_until};

/// Longest wait for a process of the cluster to come up.
pub(super) const START_DEADLINE: Duration = Duration::from_mins(2);
/// Name of the service.
const SERVICE: &str = "weir-test";
pub(super) const NAMENODE: &str = "org.apache.hadoop.hdfs.server.namenode.NameNode";
pub(super) const DATANODE: &str = "org.apache.hadoop.hdfs.server.datanode.DataNode";
/// Of either kind of process.
const COUNT: usize = 2;

static CLUSTER: OnceLock<Cluster> = OnceLock::new();

/// The cluster of all tests, in good health when they leave it so.
pub(super) fn cluster() -> &'static Cluster {
    let cluster = as_it_is();
    cluster.heal();
    cluster
}

/// The cluster in whatever state a test has left it.
pub(super) fn as_it_is() -> &'static Cluster {
    CLUSTER.get_or_init(Cluster::start)
}

/// Fetches its programs, if they are not there.
pub(crate) fn fetch() {
    jars();
}

/// Starts its processes.
pub(crate) fn start() {
    cluster();
}

/// Ends them.
pub(crate) fn stop() {
    if let Some(cluster) = CLUSTER.get() {
        for daemon in cluster.namenodes.iter().chain(&cluster.datanodes) {
            daemon.kill();
        }
        cluster.shell.kill();
        let _ = std::fs::remove_dir_all(cluster.dir.path());
    }
}

/// A cluster that runs as long as the tests do.
pub(super) struct Cluster {
    dir: TempDir,
    jars: PathBuf,
    namenodes: [Daemon; COUNT],
    datanodes: [Daemon; COUNT],
    rpc: [u16; COUNT],
    web: [u16; COUNT],
    data: [u16; COUNT],
    shell: Shell,
    service: &'static str,
}

/// A process that can be killed and started again.
#[derive(Default)]
pub(super) struct Daemon(Mutex<Option<Child>>);

/// Does what it is told; see `tests/hdfs/Shell.java`.
pub(super) struct Shell(Mutex<(Child, ChildStdin, BufReader<ChildStdout>)>);

impl Shell {
    pub(super) fn program() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("hdfs/Shell.java")
    }

    pub(super) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self(Mutex::new((child, input, output)))
    }

    pub(super) fn run(&self, words: &[&str]) -> Result<String, String> {
        let mut shell = self.0.lock();
        let (_, input, output) = &mut *shell;
        writeln!(input, "{}", words.join("\t")).unwrap();
        let mut answer = String::new();
        output.read_line(&mut answer).unwrap();
        match answer.trim_end_matches('\n').split_once(' ') {
            Some(("ok", text)) => Ok(text.to_owned()),
            _ => Err(answer),
        }
    }

    fn kill(&self) {
        let mut shell = self.0.lock();
        let _ = shell.0.kill();
        let _ = shell.0.wait();
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Daemon {
    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) {
        let child = self.0.lock();
        kill_process(Pid::from_child(child.as_ref().unwrap()), signal).unwrap();
    }

    /// Kills it the hard way.
    pub(super) fn kill(&self) {
        if let Some(mut child) = self.0.lock().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it, if it does not run; lets it go on, if it was stopped.
    pub(super) fn start(&self, command: impl FnOnce() -> Command) {
        let mut running = self.0.lock();
        if let Some(child) = running.as_mut()
            && child.try_wait().unwrap().is_none()
        {
            kill_process(Pid::from_child(child), Signal::CONT).unwrap();
            return;
        }
        *running = Some(command().spawn().unwrap());
    }
}

impl Cluster {
    fn start() -> Self {
        let jars = jars();
        let dir = tempfile::Builder::new()
            .prefix("weir-hdfs-")
            .tempdir()
            .unwrap();
        for name in ["conf", "tmp", "journal"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let ports = || [free_port(), free_port()];
        let (rpc, web, data) = (ports(), ports(), ports());
        configure(dir.path(), rpc, web);
        let mut format = java(&jars, dir.path(), "format");
        format.args([NAMENODE, "-D", "dfs.ha.namenode.id=nn1"]);
        format.args(["-format", "-nonInteractive"]);
        assert!(format.status().unwrap().success(), "no NameNode was made");
        let copied = Command::new("cp")
            .arg("-r")
            .args([dir.path().join("nn1"), dir.path().join("nn2")])
            .status();
        assert!(copied.unwrap().success());
        let mut shell = java(&jars, dir.path(), "shell");
        shell.arg(Shell::program());
        let shell = Shell::start(shell);
        Self {
            jars,
            namenodes: Default::default(),
            datanodes: Default::default(),
            rpc,
            web,
            data,
            shell,
            service: SERVICE,
            dir,
        }
    }

    /// Starts what does not run, lets go on what was stopped, and makes the first NameNode the active one.
    pub(super) fn heal(&self) {
        self.start_datanodes();
        self.start_namenodes();
        for port in self.data {
            // A NameNode takes ten minutes to see that one is gone.
            wait_until("a DataNode answers", START_DEADLINE, || {
                TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
        }
        wait_until("the DataNodes are there", START_DEADLINE, || {
            self.try_shell(&["live"])
                .is_ok_and(|live| live == COUNT.to_string())
                && self.try_shell(&["safe"]).is_ok_and(|safe| safe == "false")
        });
    }

    /// Starts the NameNodes that do not run, and makes the first the active one.
    pub(super) fn start_namenodes(&self) {
        for (n, daemon) in self.namenodes.iter().enumerate() {
            let name = format!("nn{}", n + 1);
            daemon.start(|| {
                let mut command = java(&self.jars, self.dir.path(), &name);
                command.args([NAMENODE, "-D", &format!("dfs.ha.namenode.id={name}")]);
                command
            });
        }
        for port in self.rpc {
            wait_until("a NameNode answers", START_DEADLINE, || {
                TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
        }
        self.activate(1);
    }

    /// Starts the DataNodes that do not run.
    pub(super) fn start_datanodes(&self) {
        for (n, daemon) in self.datanodes.iter().enumerate() {
            daemon.start(|| {
                let mut command = java(&self.jars, self.dir.path(), &format!("dn{n}"));
                let storage = self.dir.path().join(format!("dn{n}"));
                let storage = format!("dfs.datanode.data.dir=file://{}", storage.display());
                let address = format!("dfs.datanode.address=127.0.0.1:{}", self.data[n]);
                command.args([DATANODE, "-D", &storage, "-D", &address]);
                command
            });
        }
    }

    /// Makes this NameNode (1 or 2) the active one, whether the other answers or not.
    pub(super) fn activate(&self, number: usize) {
        let (name, other) = (number.to_string(), (3 - number).to_string());
        wait_until("a NameNode becomes active", START_DEADLINE, || {
            // One that is stopped or dead does not answer, and is not active any more.
            let _ = self.try_shell(&["standby", &other]);
            self.try_shell(&["active", &name]).is_ok()
        });
    }

    /// Makes this NameNode (1 or 2) a standby one: none is active then.
    pub(super) fn deactivate(&self, number: usize) {
        self.shell(&["standby", &number.to_string()]);
    }

    /// Does something; see `tests/hdfs/Shell.java`.
    #[track_caller]
    pub(super) fn shell(&self, words: &[&str]) -> String {
        self.try_shell(words)
            .unwrap_or_else(|error| panic!("{words:?}: {error}; see {}", self.dir.path().display()))
    }

    fn try_shell(&self, words: &[&str]) -> Result<String, String> {
        self.shell.run(words)
    }

    /// The NameNode of this number, 1 or 2.
    pub(super) fn namenode(&self, number: usize) -> &Daemon {
        &self.namenodes[number - 1]
    }

    /// The DataNode of this number, 1 or 2.
    pub(super) fn datanode(&self, number: usize) -> &Daemon {
        &self.datanodes[number - 1]
    }

    /// The URL of a directory by the name of the service.
    pub(super) fn url(&self, dir: &str) -> String {
        format!("hdfs://{}{dir}", self.service)
    }

    /// The URL of a directory by one of the NameNodes, 1 or 2.
    pub(super) fn url_of(&self, namenode: usize, dir: &str) -> String {
        format!("hdfs://127.0.0.1:{}{dir}", self.rpc_port(namenode))
    }

    pub(super) fn rpc_port(&self, namenode: usize) -> u16 {
        self.rpc[namenode - 1]
    }

    pub(super) fn web_port(&self) -> u16 {
        self.web[0]
    }

    pub(super) fn datanode_port(&self) -> u16 {
        self.data[0]
    }

    /// The directory of the client's configuration files.
    pub(super) fn configuration(&self) -> PathBuf {
        self.dir.path().join("conf")
    }
}

/// The directory of the jars, which are fetched if they are not there.
pub(super) fn jars() -> PathBuf {
    weir_tests::hadoop_jars().unwrap()
}

/// A JVM that knows the cluster.
pub(super) fn java(jars: &Path, dir: &Path, name: &str) -> Command {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join(format!("{name}.log")))
        .unwrap();
    let mut command = Command::new("java");
    command
        // Two cores for all of them: a short start is worth more than fast code.
        .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
        .arg(format!("-Djava.io.tmpdir={}", dir.join("tmp").display()))
        .arg("-cp")
        .arg(format!(
            "{}:{}/*",
            dir.join("conf").display(),
            jars.display()
        ))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    command
}

/// Writes the configuration of all processes, and of Weir.
fn configure(dir: &Path, rpc: [u16; COUNT], web: [u16; COUNT]) {
    let at = |port: u16| format!("127.0.0.1:{port}");
    let file = |name: &str| format!("file://{}", dir.join(name).display());
    let core = [
        ("fs.defaultFS", format!("hdfs://{SERVICE}")),
        ("hadoop.tmp.dir", dir.join("tmp").display().to_string()),
        // A NameNode that is stopped does not hold up the test.
        ("ipc.client.rpc-timeout.ms", "3000".to_owned()),
        ("ipc.client.connect.max.retries", "1".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    let mut hdfs: Vec<(String, String)> = [
        ("dfs.nameservices", SERVICE),
        ("dfs.ha.tail-edits.period", "1"),
        ("dfs.ha.fencing.methods", "shell(/bin/true)"),
        ("dfs.replication", "2"),
        ("dfs.blocksize", "1048576"),
        ("dfs.heartbeat.interval", "1"),
        ("dfs.namenode.safemode.extension", "0"),
        ("dfs.namenode.safemode.min.datanodes", "1"),
        ("dfs.datanode.http.address", "127.0.0.1:0"),
        ("dfs.datanode.ipc.address", "127.0.0.1:0"),
        (
            "dfs.namenode.datanode.registration.ip-hostname-check",
            "false",
        ),
        (
            "dfs.client.block.write.replace-datanode-on-failure.policy",
            "NEVER",
        ),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    hdfs.push((format!("dfs.ha.namenodes.{SERVICE}"), "nn1,nn2".to_owned()));
    hdfs.push((
        format!("dfs.client.failover.proxy.provider.{SERVICE}"),
        "org.apache.hadoop.hdfs.server.namenode.ha.ConfiguredFailoverProxyProvider".to_owned(),
    ));
    hdfs.push(("dfs.namenode.shared.edits.dir".to_owned(), file("journal")));
    for (n, (rpc, web)) in rpc.into_iter().zip(web).enumerate() {
        let name = format!("nn{}", n + 1);
        let id = format!("{SERVICE}.{name}");
        hdfs.push((format!("dfs.namenode.rpc-address.{id}"), at(rpc)));
        hdfs.push((format!("dfs.namenode.http-address.{id}"), at(web)));
        hdfs.push((format!("dfs.namenode.name.dir.{id}"), file(&name)));
    }
    for (name, properties) in [("core-site.xml", &core[..]), ("hdfs-site.xml", &hdfs[..])] {
        let properties: Vec<(&str, &str)> = properties
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        write_properties(&dir.join("conf").join(name), &properties);
    }
}

/// Writes a configuration file of Hadoop's.
pub(super) fn write_properties(file: &Path, properties: &[(&str, &str)]) {
    weir_tests::write_hadoop_properties(file, properties).unwrap();
}
