//! Hadoop's configuration files, as far as a reader needs them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::HdfsOptions;
use super::hdfs::{RPC_TIMEOUT, SOCKET_TIMEOUT, milliseconds};

/// Longest file, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// Where a URL without a NameNode points.
const DEFAULT_FS: &str = "fs.defaultFS";

/// The properties of `core-site.xml` and `hdfs-site.xml`.
#[derive(Debug, Default)]
pub(crate) struct Configuration(BTreeMap<String, String>);

/// Why a configuration cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be read: {problem}", .file.display())]
pub(crate) struct Unreadable {
    file: PathBuf,
    problem: String,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    property: Vec<Property>,
}

#[derive(Deserialize)]
struct Property {
    #[serde(default)]
    name: String,
    #[serde(default)]
    value: String,
}

impl Configuration {
    /// That of `HADOOP_CONF_DIR`, or of `HADOOP_HOME` without it; empty without both.
    pub(crate) fn of_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Unreadable> {
        let dir = match (variable("HADOOP_CONF_DIR"), variable("HADOOP_HOME")) {
            (Some(dir), _) => PathBuf::from(dir),
            (None, Some(home)) => Path::new(&home).join("etc/hadoop"),
            (None, None) => return Ok(Self::default()),
        };
        Self::of_dir(&dir)
    }

    fn of_dir(dir: &Path) -> Result<Self, Unreadable> {
        let mut found = Self::default();
        for name in ["core-site.xml", "hdfs-site.xml"] {
            let file = dir.join(name);
            let unreadable = |problem: String| Unreadable {
                file: file.clone(),
                problem,
            };
            let text = match read(&file) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(unreadable(error.to_string())),
            };
            let document: Document =
                quick_xml::de::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
            for Property { name, value } in document.property {
                found
                    .0
                    .insert(name.trim().to_owned(), value.trim().to_owned());
            }
        }
        Ok(found)
    }

    /// The authority of the default file system, if it is HDFS.
    pub(crate) fn default_authority(&self) -> Option<&str> {
        let url = self.0.get(DEFAULT_FS)?.strip_prefix("hdfs://")?;
        let authority = url.split('/').next().unwrap_or_default();
        (!authority.is_empty()).then_some(authority)
    }

    /// Adds what a reader of `authority` needs and the options do not say. Options of other name services are none of it.
    pub(crate) fn complete(&self, options: &mut HdfsOptions, authority: &str) {
        for (name, value) in &self.0 {
            let is_of_service = name.ends_with(&format!(".{authority}"))
                || name.contains(&format!(".{authority}."));
            let is_general = !name.starts_with("dfs.ha.")
                && !name.starts_with("dfs.namenode.")
                && !name.starts_with("dfs.client.failover.");
            // Many files say that nothing has a deadline. A reader's have one.
            let is_no_deadline =
                matches!(&**name, RPC_TIMEOUT | SOCKET_TIMEOUT) && milliseconds(value).is_none();
            let says_something = !value.is_empty() && !is_no_deadline;
            if HdfsOptions::takes(name) && (is_of_service || is_general) && says_something {
                options
                    .config
                    .entry(name.clone())
                    .or_insert_with(|| value.clone());
            }
        }
    }
}

fn read(file: &Path) -> io::Result<String> {
    if std::fs::metadata(file)?.len() > MAX_FILE {
        return Err(io::Error::other(format!(
            "it is longer than {MAX_FILE} bytes"
        )));
    }
    std::fs::read_to_string(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HDFS_SITE: &str = r#"<?xml version="1.0"?>
<!-- a comment -->
<configuration>
  <property><name>dfs.ha.namenodes.ns</name><value> nn1,nn2 </value><final>true</final></property>
  <property>
    <name>dfs.namenode.rpc-address.ns.nn1</name>
    <value>one:8020</value>
    <description>the first &amp; best</description>
  </property>
  <property><name>dfs.namenode.rpc-address.ns.nn2</name><value>two:8020</value></property>
  <property><name>dfs.ha.namenodes.other</name><value>x</value></property>
  <property><name>dfs.data.transfer.protection</name><value>privacy</value></property>
  <property><name>dfs.datanode.keytab.file</name><value>/secret</value></property>
  <property><name>dfs.client.use.datanode.hostname</name><value/></property>
  <property><name>ipc.client.rpc-timeout.ms</name><value>0</value></property>
</configuration>"#;

    fn environment(dir: &Path) -> Result<Configuration, Unreadable> {
        let dir = dir.to_str().unwrap().to_owned();
        Configuration::of_environment(move |name| (name == "HADOOP_CONF_DIR").then(|| dir.clone()))
    }

    #[test]
    fn a_reader_gets_what_it_needs_of_its_name_service_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("hdfs-site.xml"), HDFS_SITE).unwrap();
        let core = "<configuration><property><name>fs.defaultFS</name><value>hdfs://ns/</value></property></configuration>";
        std::fs::write(dir.path().join("core-site.xml"), core).unwrap();
        let configuration = environment(dir.path()).unwrap();
        assert_eq!(configuration.default_authority(), Some("ns"));
        let mut options = HdfsOptions::default();
        configuration.complete(&mut options, "ns");
        let names: Vec<&str> = options.config.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "dfs.data.transfer.protection",
                "dfs.ha.namenodes.ns",
                "dfs.namenode.rpc-address.ns.nn1",
                "dfs.namenode.rpc-address.ns.nn2",
            ]
        );
        assert_eq!(options.namenodes("ns").unwrap(), ["one:8020", "two:8020"]);
    }

    #[test]
    fn a_file_that_is_no_configuration_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            environment(dir.path())
                .unwrap()
                .default_authority()
                .is_none()
        );
        let file = dir.path().join("hdfs-site.xml");
        std::fs::write(&file, "<configuration><property>").unwrap();
        let error = environment(dir.path()).unwrap_err().to_string();
        assert!(error.contains("hdfs-site.xml"), "{error}");
    }
}
