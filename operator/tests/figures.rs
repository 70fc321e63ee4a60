//! What the operator costs, measured: run by hand, with a release build, by `make figures-operator`.
//!
//! The apiserver is a real one. The master is made up: its listings have as many datasets and nodes as a large cluster. The operator
//! whose memory and processor time is measured is a process of its own: this program once more.

#![allow(clippy::unwrap_used)]

#[path = "apiserver/cluster.rs"]
mod cluster;

use std::collections::BTreeMap;
use std::fmt::Arguments;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use weir_operator::{Operator, OperatorConfig, OperatorMetrics};

use cluster::{Cluster, MemoryMaster, client, free_address, until};

const OPERATOR: &str = "system:serviceaccount:weir-system:weir-operator";
const DATASETS: &str = "/apis/weir.io/v1alpha1/namespaces/team-a/datasets";
/// Tells the program that it is the operator: the apiserver's URL, and the address of the webhook.
const URL: &str = "WEIR_FIGURES_URL";
const WEBHOOK: &str = "WEIR_FIGURES_WEBHOOK";

/// The operator as a process.
struct Process(Child);

impl Process {
    fn start(cluster: &Cluster, webhook: SocketAddr) -> Self {
        let program = std::env::current_exe().unwrap();
        let child = Command::new(program)
            .args(["--ignored", "--exact", "the_operator_that_is_measured"])
            .env(URL, cluster.url())
            .env(WEBHOOK, webhook.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    /// Resident bytes, and processor time that it has had.
    fn usage(&self) -> (u64, Duration) {
        let of =
            |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).unwrap();
        let status = of("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = line
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        let stat = of("stat");
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        (kib << 10, Duration::from_millis(ticks * 10))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It ends with its standard input.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is started by the measurement"]
async fn the_operator_that_is_measured() {
    let Ok(url) = std::env::var(URL) else { return };
    let webhook = std::env::var(WEBHOOK).unwrap().parse().unwrap();
    let config = OperatorConfig {
        namespace: "weir-system".to_owned(),
        pod: "operator-0".to_owned(),
        webhook: Some(webhook),
        signing: None,
        worker_template: None,
    };
    let metrics = OperatorMetrics::register(&mut Registry::default());
    let master = Arc::new(MemoryMaster::default());
    master.be_large();
    let operator = Operator::new(client(&url, Some(OPERATOR)), master, metrics, config);
    let stop = CancellationToken::new();
    let told = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        told.cancel();
    });
    operator.run(stop).await.unwrap();
}

/// Writes a line of the result. Whoever reads it may have gone.
fn tell(line: Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn number(name: &str, default: usize) -> usize {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().unwrap())
}

/// Requests that the apiserver has answered by now, by what they were for; open watches count when they end.
async fn requests(cluster: &Cluster) -> BTreeMap<String, f64> {
    let text = cluster.text("/metrics").await;
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let Some(line) = line.strip_prefix("apiserver_request_total{") else {
            continue;
        };
        let (labels, count) = line.rsplit_once(' ').unwrap();
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            Some(rest.split_once('"')?.0)
        };
        let (verb, resource) = (label("verb"), label("resource"));
        let kind = format!("{} {}", verb.unwrap_or("?"), resource.unwrap_or("?"));
        *all.entry(kind).or_default() += count.parse::<f64>().unwrap();
    }
    all
}

/// Those between two looks, less what was asked without an operator in the same time.
fn asked(
    [before, after]: [&BTreeMap<String, f64>; 2],
    own: &BTreeMap<String, f64>,
) -> BTreeMap<String, f64> {
    let of = |all: &BTreeMap<String, f64>, kind: &str| all.get(kind).copied().unwrap_or_default();
    let kinds = after.iter().map(|(kind, count)| {
        let more = count - of(before, kind) - of(own, kind);
        (kind.clone(), more)
    });
    kinds.filter(|(_, more)| *more != 0.0).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of some minutes"]
async fn figures() {
    let Some(cluster) = Cluster::start().await else {
        panic!("WEIR_TEST_APISERVER names no directory: run `make figures-operator`");
    };
    let (count, seconds) = (number("DATASETS", 1000), number("REST", 120) as u64);
    cluster.install().await;
    // What the apiserver asks of itself.
    let quiet = Duration::from_secs(seconds);
    let before = requests(&cluster).await;
    tokio::time::sleep(quiet).await;
    let own = asked([&before, &requests(&cluster).await], &BTreeMap::new());
    let webhook = free_address();
    let began = Instant::now();
    let process = Process::start(&cluster, webhook);
    cluster.install_webhook(webhook).await;
    until("a webhook that is trusted", || async {
        let asked = cluster.post(DATASETS, &dataset("none", "gopher://x")).await;
        if asked.is_ok() {
            let none = format!("{DATASETS}/none");
            cluster.delete(&none).await.unwrap();
        }
        asked.is_err_and(|why| why.contains("origin gopher"))
    })
    .await;
    let numbers = futures::stream::iter(0..count);
    numbers
        .for_each_concurrent(8, async |number| {
            let name = format!("set-{number:04}");
            let object = dataset(&name, &format!("s3://bucket/{name}"));
            cluster.post(DATASETS, &object).await.unwrap();
            let claim = format!("/api/v1/namespaces/team-a/persistentvolumeclaims/{name}");
            until("a claim", || async { cluster.get(&claim).await.is_some() }).await;
            cluster.bind(&claim, &format!("weir.team-a.{name}")).await;
        })
        .await;
    let is_ready = async |name: String| {
        let object = cluster.get(&format!("{DATASETS}/{name}")).await.unwrap();
        object["status"]["phase"] == "Ready"
    };
    for number in 0..count {
        until("a Dataset that is ready", || {
            is_ready(format!("set-{number:04}"))
        })
        .await;
    }
    tell(format_args!(
        "{count} Datasets are ready after {:?}",
        began.elapsed()
    ));
    tokio::time::sleep(Duration::from_secs(30)).await;
    let ((_, time), before) = (process.usage(), requests(&cluster).await);
    tokio::time::sleep(quiet).await;
    let ((bytes, later), after) = (process.usage(), requests(&cluster).await);
    let core = later.saturating_sub(time).as_secs_f64() / quiet.as_secs_f64() * 100.0;
    let per_hour = |requests: f64| requests * 3600.0 / quiet.as_secs_f64();
    let asked = asked([&before, &after], &own);
    tell(format_args!(
        "at rest: {} MiB resident, {core:.2} % of a core",
        bytes >> 20
    ));
    tell(format_args!(
        "at rest: {:.0} requests to the apiserver in an hour",
        per_hour(asked.values().sum())
    ));
    for (kind, requests) in asked {
        tell(format_args!("  {kind}: {:.0}", per_hour(requests)));
    }
    let mut stored = 0;
    for path in [
        format!("{DATASETS}/set-0000"),
        "/api/v1/namespaces/team-a/persistentvolumeclaims/set-0000".to_owned(),
        "/api/v1/persistentvolumes/weir.team-a.set-0000".to_owned(),
    ] {
        stored += cluster.get(&path).await.unwrap().to_string().len();
    }
    tell(format_args!(
        "stored for each Dataset: {stored} bytes of JSON in three objects"
    ));
    latency(webhook, count).await;
    let (bytes, _) = process.usage();
    tell(format_args!("after that: {} MiB resident", bytes >> 20));
}

fn dataset(name: &str, url: &str) -> Value {
    json!({
        "apiVersion": "weir.io/v1alpha1", "kind": "Dataset",
        "metadata": { "name": name, "namespace": "team-a" },
        "spec": { "sources": [{ "url": url }] },
    })
}

/// The time of an answer about a pod, over TLS as the apiserver asks; beside it that about a pod without data, which is the way there and
/// back.
async fn latency(webhook: SocketAddr, datasets: usize) {
    let asked = number("PODS", 20_000);
    let client = client(&format!("https://localhost:{}", webhook.port()), None);
    for (at_once, has_data) in [(1, false), (1, true), (16, false), (16, true)] {
        let numbers = futures::stream::iter(0..asked);
        let ask = |number: usize| {
            let client = client.clone();
            let name = format!("set-{:04}", number % datasets.min(500));
            let body = review(has_data.then_some(name.as_str()))
                .to_string()
                .into_bytes();
            async move {
                let request = http::Request::post("/mutate")
                    .header("content-type", "application/json")
                    .body(body);
                let began = Instant::now();
                let answer = client.request::<Value>(request.unwrap()).await.unwrap();
                let took = began.elapsed();
                let patch = answer["response"]["patch"].is_string();
                assert_eq!(patch, has_data, "{answer}");
                took
            }
        };
        let mut times: Vec<Duration> = numbers.map(ask).buffer_unordered(at_once).collect().await;
        times.sort_unstable();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        let what = if has_data {
            "500 datasets on 5,000 nodes"
        } else {
            "a pod without data"
        };
        tell(format_args!(
            "webhook, {at_once} at once, {what}: p50 {:?}, p99 {:?}, longest {:?}",
            at(0.5),
            at(0.99),
            at(1.0)
        ));
    }
}

/// What the apiserver asks of a pod, which reads a claim.
fn review(claim: Option<&str>) -> Value {
    let volumes: Vec<Value> = claim
        .into_iter()
        .map(|claim| json!({ "name": "d", "persistentVolumeClaim": { "claimName": claim } }))
        .collect();
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u", "namespace": "team-a", "kind": { "kind": "Pod" }, "operation": "CREATE",
            "object": {
                "metadata": { "generateName": "train-", "namespace": "team-a" },
                "spec": {
                    "containers": [{ "name": "train", "image": "train:1" }],
                    "volumes": volumes,
                },
            },
        },
    })
}
