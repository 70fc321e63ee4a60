//! Metrics of the mounts that are served in this pod. Each has a process with an address of its own, which nobody outside of the pod can
//! ask; so the pod's own `/metrics` shows them, too, with a label that says which mount it is.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use axum::http::header::HOST;
use axum::http::{Request, StatusCode};
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use weir_mount::runtime;

use crate::connect::HTTP_KEY;

/// Longest wait for one mount, and for all of them: Prometheus waits ten seconds for the whole.
const DEADLINE: Duration = Duration::from_secs(1);
const DEADLINE_OF_ALL: Duration = Duration::from_secs(5);
/// Mounts that are asked at once.
const AT_ONCE: usize = 8;
/// Longest text of one mount, in bytes; they have some 30 KiB.
const MAX_TEXT: usize = 1 << 20;

/// What this process shows, and its mounts. Those that do not answer are left out.
pub(super) async fn beside(own: &str) -> String {
    let mounts = tokio::task::spawn_blocking(served)
        .await
        .unwrap_or_default();
    let texts = futures::stream::iter(mounts)
        .map(|(labels, address)| async move {
            let asked = timeout(DEADLINE, ask(&address)).await;
            let told = asked.map_err(anyhow::Error::from).flatten();
            (labels, address, told)
        })
        .buffer_unordered(AT_ONCE)
        .take_until(sleep(DEADLINE_OF_ALL));
    let mut families = Families::default();
    families.add(own, "");
    let mut texts = std::pin::pin!(texts);
    while let Some((labels, address, told)) = texts.next().await {
        match told {
            Ok(text) => families.add(&text, &labels),
            Err(error) => {
                tracing::debug!(%address, "the metrics of a mount are left out: {error:#}");
            }
        }
    }
    families.to_text()
}

/// Label and address of each mount that has its server here, and not in another pod.
fn served() -> Vec<(String, String)> {
    let mounts = runtime::list().into_iter();
    let here = mounts.filter(|mount| mount.server_pid.is_some());
    here.filter_map(|mount| {
        let address = mount.properties.get(HTTP_KEY)?.clone();
        // Of the node plugin's, that has the dataset's name and the snapshot.
        let name = mount.mountpoint.file_name()?.to_string_lossy();
        Some((format!("mount=\"{}\"", escaped(&name)), address))
    })
    .collect()
}

fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n")
}

async fn ask(address: &str) -> anyhow::Result<String> {
    let stream = TcpStream::connect(address).await.context("connect")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get("/metrics").header(HOST, address);
    let answer = sender.send_request(request.body(Empty::<Bytes>::new())?);
    let answer = answer.await?;
    ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
    let body = Limited::new(answer.into_body(), MAX_TEXT).collect().await;
    let body = body.map_err(|error| anyhow!(error))?.to_bytes();
    Ok(String::from_utf8(body.into())?)
}

/// Metrics of several processes by their names: in OpenMetrics all samples of one stand together.
#[derive(Default)]
struct Families {
    all: Vec<Family>,
    by_name: HashMap<String, usize>,
    texts: usize,
}

/// One metric: what it is, as the first process that has it says, and its samples.
struct Family {
    text: usize,
    head: String,
    samples: String,
}

impl Families {
    /// Adds what a process shows, with these labels in each sample.
    fn add(&mut self, text: &str, labels: &str) {
        self.texts += 1;
        let mut current = None;
        for line in text.lines().filter(|line| !line.is_empty()) {
            let Some(comment) = line.strip_prefix("# ") else {
                if let Some(index) = current {
                    let family: &mut Family = &mut self.all[index];
                    with_labels(&mut family.samples, line, labels);
                }
                continue;
            };
            // HELP, TYPE or UNIT and a name; the end has none.
            let Some(name) = comment.split(' ').nth(1) else {
                continue;
            };
            let index = *self.by_name.entry(name.to_owned()).or_insert_with(|| {
                self.all.push(Family {
                    text: self.texts,
                    head: String::new(),
                    samples: String::new(),
                });
                self.all.len() - 1
            });
            current = Some(index);
            let family = &mut self.all[index];
            if family.text == self.texts {
                family.head.push_str(line);
                family.head.push('\n');
            }
        }
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        for family in &self.all {
            text.push_str(&family.head);
            text.push_str(&family.samples);
        }
        text.push_str("# EOF\n");
        text
    }
}

/// Appends a sample, `name value` or `name{labels} value`, with labels more.
fn with_labels(samples: &mut String, line: &str, labels: &str) {
    let at = line.find(['{', ' ']).unwrap_or(line.len());
    let (name, rest) = line.split_at(at);
    let written = match rest.strip_prefix('{') {
        _ if labels.is_empty() => writeln!(samples, "{line}"),
        Some(own) if own.starts_with('}') => writeln!(samples, "{name}{{{labels}{own}"),
        Some(own) => writeln!(samples, "{name}{{{labels},{own}"),
        None => writeln!(samples, "{name}{{{labels}}}{rest}"),
    };
    debug_assert!(written.is_ok(), "a string takes all");
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "# HELP weir_csi_mounts Snapshots.
# TYPE weir_csi_mounts gauge
weir_csi_mounts 2
# HELP weir_ends Seconds.
# TYPE weir_ends gauge
# UNIT weir_ends seconds
weir_ends{role=\"mount\"} 7
# EOF
";
    const MOUNT: &str = "# HELP weir_ends Seconds, said otherwise.
# TYPE weir_ends gauge
weir_ends{role=\"mount\"} 9
# HELP weir_fuse_errors Reads.
# TYPE weir_fuse_errors counter
weir_fuse_errors_total 0
weir_fuse_errors_total{error=\"a } b\"} 3
# EOF
";

    #[test]
    fn metrics_of_mounts_stand_beside_the_pods_with_their_labels() {
        let mut families = Families::default();
        families.add(OWN, "");
        for mount in ["m1", "m2"] {
            families.add(MOUNT, &format!("mount=\"{mount}\""));
        }
        assert_eq!(
            families.to_text(),
            "# HELP weir_csi_mounts Snapshots.
# TYPE weir_csi_mounts gauge
weir_csi_mounts 2
# HELP weir_ends Seconds.
# TYPE weir_ends gauge
# UNIT weir_ends seconds
weir_ends{role=\"mount\"} 7
weir_ends{mount=\"m1\",role=\"mount\"} 9
weir_ends{mount=\"m2\",role=\"mount\"} 9
# HELP weir_fuse_errors Reads.
# TYPE weir_fuse_errors counter
weir_fuse_errors_total{mount=\"m1\"} 0
weir_fuse_errors_total{mount=\"m1\",error=\"a } b\"} 3
weir_fuse_errors_total{mount=\"m2\"} 0
weir_fuse_errors_total{mount=\"m2\",error=\"a } b\"} 3
# EOF
"
        );
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }

    #[test]
    fn what_is_no_text_of_metrics_adds_nothing() {
        let mut families = Families::default();
        families.add("hello\n#\n# \n{ 1\n", "mount=\"m\"");
        assert_eq!(families.to_text(), "# EOF\n");
    }

    #[tokio::test]
    async fn a_mount_that_says_too_much_or_nothing_is_left_out() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let app = axum::Router::new().route(
            "/metrics",
            axum::routing::get(|| async { "#".repeat(MAX_TEXT + 1) }),
        );
        let server =
            AbortOnDropHandle::new(tokio::spawn(async { axum::serve(listener, app).await }));
        assert!(ask(&address).await.is_err());
        drop(server);
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let asked = timeout(Duration::from_millis(50), ask(&address)).await;
        assert!(asked.is_err());
    }
}
