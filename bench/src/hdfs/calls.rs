//! How often a NameNode was called, and how it is, as it tells by its web server.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(20);
/// Calls of DataNodes, which come whether somebody reads or not.
const OF_DATANODES: [&str; 6] = [
    "BlockReceivedAndDeleted",
    "BlockReport",
    "CommitBlockSynchronization",
    "RegisterDatanode",
    "SendHeartbeat",
    "VersionRequest",
];

/// Calls of clients so far.
pub(super) fn calls(web: u16, rpc: u16) -> anyhow::Result<u64> {
    let name = format!("RpcDetailedActivityForPort{rpc}");
    Ok(of_clients(&bean(web, &name)?).values().sum())
}

/// Whether a NameNode's web server answers.
pub(super) fn answers(web: u16) -> bool {
    bean(web, "FSNamesystemState").is_ok()
}

/// Whether a NameNode answers, is out of safe mode, and knows so many DataNodes that live.
pub(super) fn is_operational(web: u16, datanodes: u64) -> bool {
    bean(web, "FSNamesystemState").is_ok_and(|state| {
        state["FSState"] == "Operational" && state["NumLiveDataNodes"].as_u64() == Some(datanodes)
    })
}

/// The figures that a NameNode keeps under a name.
fn bean(web: u16, name: &str) -> anyhow::Result<Value> {
    let path = format!("/jmx?qry=Hadoop:service=NameNode,name={name}");
    let text = get(web, &path)?;
    let answer: Value = serde_json::from_str(&text).with_context(|| path.clone())?;
    let bean = answer.pointer("/beans/0").cloned();
    // Some come into being a moment after the web server.
    bean.with_context(|| format!("the NameNode knows no {name}"))
}

/// HTTP/1.0 has no chunks: the answer ends with its connection.
fn get(port: u16, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    ensure!(head.contains(" 200 "), "{path}: {head}");
    Ok(body.to_owned())
}

fn of_clients(bean: &Value) -> BTreeMap<&str, u64> {
    let figures = bean.as_object().into_iter().flatten();
    let calls = figures.filter_map(|(name, value)| {
        let name = name.strip_suffix("NumOps")?;
        // Each stands there twice.
        let is_meant = !name.starts_with("Overall") && !OF_DATANODES.contains(&name);
        Some((name, value.as_u64()?)).filter(|_| is_meant)
    });
    calls.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_clients_are_counted_once() {
        let bean = serde_json::json!({
            "name": "Hadoop:service=NameNode,name=RpcDetailedActivityForPort1",
            "tag.port": "1",
            "GetListingNumOps": 13,
            "GetListingAvgTime": 0.5,
            "OverallGetListingNumOps": 13,
            "SendHeartbeatNumOps": 170,
            "GetLocatedFileInfoNumOps": 2,
        });
        let expected = [("GetListing", 13), ("GetLocatedFileInfo", 2)];
        assert_eq!(of_clients(&bean), expected.into());
    }
}
