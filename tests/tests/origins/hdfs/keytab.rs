//! HDFS that asks for Kerberos, read by a keytab that the master keeps and no process of the cluster has.

use std::path::Path;
use std::time::Duration;

use weir_tests::{Cluster, Lab, Outcome, REALM, content, wait_until};

use super::kerberos::{MORE, Secure};
use crate::Case;

pub(super) const CASES: &[Case] = &[(
    "a_keytab_that_the_master_keeps_is_used_and_replaced",
    a_keytab_that_the_master_keeps_is_used_and_replaced,
)];

/// Sessions are asked for again every half a minute.
const RENEWED: Duration = Duration::from_secs(100);

/// Whether any file below holds these bytes.
fn is_anywhere(dir: &Path, bytes: &[u8]) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            return !path.ends_with("mnt") && is_anywhere(&path, bytes);
        }
        let content = std::fs::read(&path).unwrap_or_default();
        kind.is_file() && content.windows(bytes.len()).any(|part| part == bytes)
    })
}

fn a_keytab_that_the_master_keeps_is_used_and_replaced() {
    let secure = Secure::start("privacy");
    let mut lab = Lab::new();
    lab.set_env("HADOOP_CONF_DIR", &secure.path("conf"));
    lab.set_env("KRB5_CONFIG", &secure.path("krb5.conf"));
    lab.set_env("WEIR_CREDENTIALS_KEY", &"1".repeat(64));
    // No process has a ticket or a keytab of its own.
    lab.set_env("KRB5_CLIENT_KTNAME", "/nowhere");
    lab.set_env("KRB5CCNAME", "FILE:/nowhere/tickets");
    // Whom a process of the machine acts for is not whom the source is read as: the cluster lets nobody act for another.
    lab.set_env("HADOOP_PROXY_USER", "mallory");
    let cluster = Cluster::start_secure_master(&lab, &[], 1);
    let credentials =
        |what: &[&str]| -> Outcome { cluster.weir(&[&["credentials"], what].concat()) };
    let principal = format!("reader@{REALM}");
    let set = |name: &str, keytab: &str, endpoint: &str| {
        let keytab = secure.path(keytab);
        let set = ["set", name, "--principal", &principal, "--from", &keytab];
        credentials(&[&set[..], &["--endpoint", endpoint]].concat())
    };
    set("team", "wrong.keytab", &secure.url).ok();
    set("elsewhere", "reader.keytab", "hdfs://nn.lab:8020").ok();
    let url = format!("{}/data", secure.url);
    let create = |credentials: &[&str]| {
        let create = ["dataset", "create", "set", &url];
        cluster.weir(&[&create[..], credentials].concat())
    };
    // The processes' own login is none, a keytab for another cluster is not shown to this one, and a wrong one is told.
    let refused = create(&[]).fails(5);
    assert!(refused.contains("access denied"), "{refused}");
    let refused = create(&["--credentials", "elsewhere"]).fails(2);
    assert!(refused.contains("not for hdfs://localhost"), "{refused}");
    let refused = create(&["--credentials", "team"]).fails(5);
    assert!(
        refused.contains("credentials team") && refused.contains("rotate"),
        "{refused}"
    );
    let rotate = |keytab: &str| {
        let keytab = secure.path(keytab);
        credentials(&["rotate", "team", "--from", &keytab]).ok();
    };
    rotate("reader.keytab");
    wait_until("it is listed", RENEWED, || {
        create(&["--credentials", "team"]).code == 0
    });
    let (address, certs) = (cluster.address(), cluster.certs_flags("admin"));
    let mut flags = vec!["--master", &address, "--node", "node-0"];
    flags.extend(certs.iter().map(String::as_str));
    flags.extend(["--allow-endpoint", "127.0.0.1", "--read-ahead", "off"]);
    let mount = lab.mount_at("set", "mnt", &flags);
    assert!(mount.read("file") == content(1, 3_000_000));

    // A worker that runs uses what takes the place of the keytab, whether that is any good or not.
    let mut cold = 0..MORE;
    let mut reads = || {
        let name = format!("more/{}", cold.next().expect("all files were read"));
        std::fs::read(mount.path(&name)).is_ok_and(|bytes| bytes == b"more")
    };
    assert!(reads());
    rotate("wrong.keytab");
    // Each try takes a file that was not read yet, so there is one in a second.
    wait_until("the wrong one is used", RENEWED, || {
        std::thread::sleep(Duration::from_secs(1));
        !reads()
    });
    rotate("reader.keytab");
    wait_until("the right one is used", RENEWED, || {
        std::thread::sleep(Duration::from_secs(1));
        reads()
    });
    mount.unmount();

    let keytab = std::fs::read(secure.path("reader.keytab")).unwrap();
    let key = &keytab[keytab.len() - 24..];
    assert!(!is_anywhere(&lab.path(""), key), "a keytab is on the disk");
    std::fs::write(lab.path("control"), &keytab).unwrap();
    assert!(is_anywhere(&lab.path(""), key));
}
