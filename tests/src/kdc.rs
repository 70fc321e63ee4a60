//! A realm of Kerberos with its KDC, and HDFS that asks for it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The realm.
pub const REALM: &str = "WEIR.TEST";

/// What a KDC needs, and the keytabs of those whom it knows: a cluster's servers, and a reader.
#[derive(Debug)]
pub struct Kdc {
    dir: PathBuf,
    /// Where the servers are, as their principals name it.
    host: String,
}

impl Kdc {
    /// Makes it in `dir`, to listen at `address`.
    pub fn make(dir: &Path, address: &str, host: &str) -> Self {
        let kdc = Self {
            dir: dir.to_owned(),
            host: host.to_owned(),
        };
        let krb5 = format!(
            "[libdefaults]\n default_realm = {REALM}\n rdns = false\n dns_canonicalize_hostname = false\n qualify_shortname = \"\"\n udp_preference_limit = 1\n\
             [realms]\n {REALM} = {{\n  kdc = {address}\n }}\n\
             [domain_realm]\n {host} = {REALM}\n"
        );
        std::fs::write(kdc.krb5_conf(), krb5).unwrap();
        let own = format!(
            "[kdcdefaults]\n kdc_listen = {address}\n kdc_tcp_listen = {address}\n\
             [realms]\n {REALM} = {{\n  database_name = {dir}/principal\n  key_stash_file = {dir}/stash\n  acl_file = {dir}/acl\n }}\n",
            dir = dir.display()
        );
        std::fs::write(kdc.path("kdc.conf"), own).unwrap();
        kdc.run("kdb5_util", &["create", "-s", "-P", "secret", "-r", REALM]);
        let servers = [kdc.server(), kdc.web_server()];
        for principal in servers.iter().map(String::as_str).chain(["reader"]) {
            kdc.admin(&format!("addprinc -randkey {principal}"));
        }
        let add = |keytab: &str, principals: &str| {
            let keytab = kdc.keytab(keytab);
            kdc.admin(&format!("ktadd -k {} {principals}", keytab.display()));
        };
        add("server", &servers.join(" "));
        add("wrong", "reader");
        // This changes the key, so that the keytab from before is a wrong one.
        add("reader", "reader");
        kdc
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The configuration of who asks it.
    pub fn krb5_conf(&self) -> PathBuf {
        self.path("krb5.conf")
    }

    /// The keytab of the servers (`server`) or of a reader (`reader`), or one of the reader that is no good any more (`wrong`).
    pub fn keytab(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.keytab"))
    }

    /// The servers' principal.
    pub fn server(&self) -> String {
        format!("nn/{}@{REALM}", self.host)
    }

    fn web_server(&self) -> String {
        format!("HTTP/{}@{REALM}", self.host)
    }

    /// Runs it in the foreground.
    pub fn daemon(&self) -> Command {
        let mut command = self.program("krb5kdc");
        command.arg("-n");
        command
    }

    /// Properties of `core-site.xml` and `hdfs-site.xml` by which a cluster knows its callers.
    pub fn properties(&self, protection: &str) -> [Vec<(&'static str, String)>; 2] {
        let keytab = self.keytab("server").display().to_string();
        let core = vec![
            ("hadoop.security.authentication", "kerberos".to_owned()),
            ("hadoop.rpc.protection", protection.to_owned()),
        ];
        let hdfs = vec![
            ("dfs.namenode.kerberos.principal", self.server()),
            ("dfs.namenode.keytab.file", keytab.clone()),
            ("dfs.datanode.kerberos.principal", self.server()),
            ("dfs.datanode.keytab.file", keytab.clone()),
            (
                "dfs.web.authentication.kerberos.principal",
                self.web_server(),
            ),
            ("dfs.web.authentication.kerberos.keytab", keytab),
            ("dfs.block.access.token.enable", "true".to_owned()),
            ("dfs.data.transfer.protection", protection.to_owned()),
            ("ignore.secure.ports.for.testing", "true".to_owned()),
        ];
        [core, hdfs]
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(Path::new("/usr/sbin").join(name));
        command
            .env("KRB5_CONFIG", self.krb5_conf())
            .env("KRB5_KDC_PROFILE", self.path("kdc.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn run(&self, name: &str, args: &[&str]) {
        let status = self.program(name).args(args).status();
        assert!(status.unwrap().success(), "{name} {args:?}");
    }

    fn admin(&self, query: &str) {
        self.run("kadmin.local", &["-q", query]);
    }
}
