//! HDFS that asks for Kerberos: a KDC, a NameNode and a DataNode of their own.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use weir_tests::{Kdc, Lab, content, free_port, wait_until};

use super::cluster::{
    DATANODE, Daemon, NAMENODE, START_DEADLINE, Shell, jars, java, write_properties,
};
use crate::Case;

pub(super) const CASES: &[Case] = &[
    (
        "a_keytab_opens_a_secure_cluster",
        a_keytab_opens_a_secure_cluster,
    ),
    (
        "a_keytab_opens_a_cluster_that_enciphers",
        a_keytab_opens_a_cluster_that_enciphers,
    ),
    (
        "a_wrong_login_is_one_clear_error",
        a_wrong_login_is_one_clear_error,
    ),
];

/// Small files in `/data/more`.
pub(super) const MORE: u32 = 200;

/// A cluster that knows its callers.
pub(super) struct Secure {
    dir: TempDir,
    pub(super) url: String,
    kdc: Kdc,
    kdc_runs: Daemon,
    namenode: Daemon,
    datanode: Daemon,
}

impl Secure {
    pub(super) fn start(protection: &str) -> Self {
        let jars = jars();
        let dir = tempfile::Builder::new()
            .prefix("weir-kerberos-")
            .tempdir()
            .unwrap();
        for name in ["conf", "tmp"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let address = format!("127.0.0.1:{}", free_port());
        let (rpc, web, data) = (free_port(), free_port(), free_port());
        let secure = Self {
            url: format!("hdfs://localhost:{rpc}"),
            kdc: Kdc::make(dir.path(), &address, "localhost"),
            dir,
            kdc_runs: Daemon::default(),
            namenode: Daemon::default(),
            datanode: Daemon::default(),
        };
        secure.kdc_runs.start(|| secure.kdc.daemon());
        secure.configure(protection, rpc, web, data);
        let dir = secure.dir.path();
        let run = |name: &str| {
            let mut command = java(&jars, dir, name);
            command.env(
                "JAVA_TOOL_OPTIONS",
                format!("-Djava.security.krb5.conf={}", secure.path("krb5.conf")),
            );
            command
        };
        let mut format = run("format");
        format.args([NAMENODE, "-format", "-nonInteractive"]);
        assert!(format.status().unwrap().success(), "no NameNode was made");
        secure.namenode.start(|| {
            let mut command = run("namenode");
            command.arg(NAMENODE);
            command
        });
        secure.datanode.start(|| {
            let mut command = run("datanode");
            command.arg(DATANODE);
            command
        });
        let mut shell = run("shell");
        shell.arg(Shell::program());
        shell.args([&secure.kdc.server(), &secure.path("server.keytab")]);
        let shell = Shell::start(shell);
        wait_until("the DataNode is there", START_DEADLINE, || {
            shell.run(&["live"]).is_ok_and(|live| live == "1")
        });
        std::fs::write(dir.join("to-put"), content(1, 3_000_000)).unwrap();
        shell
            .run(&["put", "/data/file", &secure.path("to-put")])
            .unwrap();
        std::fs::write(dir.join("more"), "more").unwrap();
        for number in 0..MORE {
            let path = format!("/data/more/{number}");
            shell.run(&["put", &path, &secure.path("more")]).unwrap();
        }
        secure
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn configure(&self, protection: &str, rpc: u16, web: u16, data: u16) {
        let dir = self.dir.path().display();
        let [secure_core, secure] = self.kdc.properties(protection);
        let core = [
            ("fs.defaultFS", self.url.clone()),
            ("hadoop.tmp.dir", format!("{dir}/tmp")),
        ];
        let hdfs = [
            ("dfs.namenode.rpc-address", format!("localhost:{rpc}")),
            ("dfs.namenode.http-address", format!("localhost:{web}")),
            ("dfs.namenode.name.dir", format!("file://{dir}/nn")),
            ("dfs.datanode.data.dir", format!("file://{dir}/dn")),
            ("dfs.datanode.address", format!("127.0.0.1:{data}")),
            ("dfs.datanode.http.address", "127.0.0.1:0".to_owned()),
            ("dfs.datanode.ipc.address", "127.0.0.1:0".to_owned()),
            (
                "dfs.namenode.datanode.registration.ip-hostname-check",
                "false".to_owned(),
            ),
            ("dfs.replication", "1".to_owned()),
            ("dfs.blocksize", "1048576".to_owned()),
        ];
        for (name, all) in [
            ("conf/core-site.xml", [&core[..], &secure_core].concat()),
            ("conf/hdfs-site.xml", [&hdfs[..], &secure].concat()),
        ] {
            let all = all.iter().map(|(name, value)| (*name, value.as_str()));
            let all: Vec<_> = all.collect();
            write_properties(&self.dir.path().join(name), &all);
        }
    }

    /// A world that logs in by this keytab.
    fn lab(&self, keytab: &str) -> Lab {
        let mut lab = Lab::new();
        lab.set_env("HADOOP_CONF_DIR", &self.path("conf"));
        lab.set_env("KRB5_CONFIG", &self.path("krb5.conf"));
        lab.set_env("KRB5_CLIENT_KTNAME", &self.path(keytab));
        let cache: PathBuf = lab.path("tickets");
        lab.set_env("KRB5CCNAME", &format!("FILE:{}", cache.display()));
        lab
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        for daemon in [&self.datanode, &self.namenode, &self.kdc_runs] {
            daemon.kill();
        }
    }
}

fn a_keytab_opens_a_secure_cluster() {
    open("authentication");
}

fn a_keytab_opens_a_cluster_that_enciphers() {
    open("privacy");
}

fn open(protection: &str) {
    let secure = Secure::start(protection);
    let lab = secure.lab("reader.keytab");
    let mount = lab.mount_at(&format!("{}/data", secure.url), "mnt", &[]);
    assert!(mount.read("file") == content(1, 3_000_000), "{protection}");
}

fn a_wrong_login_is_one_clear_error() {
    let secure = Secure::start("authentication");
    let url = format!("{}/data", secure.url);
    let fails = |lab: &Lab| {
        let mnt = lab.path("mnt");
        let outcome = lab.weir(["mount", &url, mnt.to_str().unwrap()]);
        assert_ne!(outcome.code, 0, "{}", outcome.stdout);
        outcome.stderr
    };
    for keytab in ["wrong.keytab", "missing.keytab"] {
        let error = fails(&secure.lab(keytab));
        assert!(error.contains("access denied"), "{keytab}: {error}");
        assert!(error.contains("KRB5_CLIENT_KTNAME"), "{keytab}: {error}");
    }
    let mut simple = secure.lab("reader.keytab");
    simple.set_env("HADOOP_CONF_DIR", "/nowhere");
    let error = fails(&simple);
    assert!(error.contains("asks for Kerberos"), "{error}");
    assert!(error.contains("hadoop.security.authentication"), "{error}");
    // The library is nowhere, for this process alone.
    let lab = secure.lab("reader.keytab");
    let mnt = lab.path("mnt");
    let hidden = format!(
        "for library in $(ldconfig -p | sed -n 's/.*=> \\(.*libgssapi_krb5.so.2\\)$/\\1/p'); do mount --bind /dev/null $library; done; \
         exec {} mount {url} {}",
        lab.binary().display(),
        mnt.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &hidden]);
    lab.set_environment(&mut command);
    let outcome = lab.run(command);
    assert_ne!(outcome.code, 0);
    assert!(
        outcome.stderr.contains("libgssapi-krb5-2"),
        "{}",
        outcome.stderr
    );
}
