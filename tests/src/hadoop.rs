//! What every process of Hadoop's needs: the jars, which are fetched once for a machine, and configuration files.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The directory of the jars, which are fetched if they are not there.
pub fn hadoop_jars() -> io::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = root.with_file_name("build-support").join("hdfs.sh");
    let output = Command::new(&script).stderr(Stdio::inherit()).output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let jars = PathBuf::from(printed.trim());
    if !output.status.success() || !jars.is_dir() {
        let text = format!("{} gave no jars: {}", script.display(), output.status);
        return Err(io::Error::other(text));
    }
    Ok(jars)
}

/// Writes a configuration file of Hadoop's.
pub fn write_hadoop_properties(file: &Path, properties: &[(&str, &str)]) -> io::Result<()> {
    std::fs::write(file, properties_file(properties))
}

fn properties_file(properties: &[(&str, &str)]) -> String {
    let mut text = "<configuration>\n".to_owned();
    for (name, value) in properties {
        let value = value.replace('&', "&amp;").replace('<', "&lt;");
        let property = format!("<name>{name}</name><value>{value}</value>");
        let _ = writeln!(text, "<property>{property}</property>");
    }
    text + "</configuration>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_end_its_property() {
        let text = properties_file(&[("dfs.replication", "1"), ("x", "a<b>&c")]);
        assert_eq!(
            text,
            "<configuration>\n<property><name>dfs.replication</name><value>1</value></property>\n\
             <property><name>x</name><value>a&lt;b>&amp;c</value></property>\n</configuration>\n"
        );
    }
}
