//! A cluster with many datasets.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;
use weir_tests::{Cluster, Lab, content, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "a_thousand_datasets_run_quietly",
        a_thousand_datasets_run_quietly,
    ),
    (
        "a_master_that_was_stopped_keeps_its_workers",
        a_master_that_was_stopped_keeps_its_workers,
    ),
];

const DATASETS: usize = 1000;
const FILES: u64 = 250;
/// Calls under way at once.
const CALLS: usize = 8;
/// A worker is taken out of the map after 10 s of silence.
const EXPIRY_MS: u64 = 10_000;

/// Makes datasets `set-0`, `set-1`… of one directory.
fn create_datasets(lab: &Lab, cluster: &Cluster<'_>) {
    let data = lab.path("data");
    std::fs::create_dir(&data).unwrap();
    for number in 0..FILES {
        std::fs::write(data.join(format!("{number}.jpg")), content(number, 1000)).unwrap();
    }
    let url = format!("file://{}", data.display());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let master = format!("http://{}", cluster.address());
    runtime.block_on(async {
        let channel = Endpoint::from_shared(master).unwrap().connect_lazy();
        let client = MasterClient::new(channel);
        let mut calls = JoinSet::new();
        for number in 0..DATASETS {
            if calls.len() == CALLS {
                calls.join_next().await.unwrap().unwrap();
            }
            let mut client = client.clone();
            let origin = v1::OriginSpec {
                url: url.clone(),
                ..Default::default()
            };
            let request = v1::CreateDatasetRequest {
                spec: String::new(),
                name: format!("set-{number}"),
                mounts: vec![v1::MountSpec {
                    origin: Some(origin),
                    path: String::new(),
                }],
            };
            calls.spawn(async move {
                client.create_dataset(request).await.unwrap();
            });
        }
        while let Some(call) = calls.join_next().await {
            call.unwrap();
        }
    });
}

/// The longest that a worker has been silent, in milliseconds.
fn silence(status: &Value) -> u64 {
    let workers = status["workers"].as_array().unwrap().iter();
    workers
        .map(|w| w["last_seen_ms"].as_u64().unwrap())
        .max()
        .unwrap()
}

fn a_thousand_datasets_run_quietly() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 2);
    create_datasets(&lab, &cluster);
    let epoch = cluster.status()["epoch"].clone();
    let heartbeats = || {
        let master = cluster.master.as_ref().unwrap();
        master.metric("weir_master_heartbeats_total", "")
    };
    // Each worker's heartbeats arrive every 2 s, while it looks up what it has of them all and while a dataset is warmed.
    let (start, before) = (Instant::now(), heartbeats());
    let last = DATASETS - 1;
    cluster
        .weir(&["warm", &format!("set-{last}"), "--wait"])
        .ok();
    wait_until("heartbeats come", Duration::from_mins(1), || {
        let silence = silence(&cluster.status());
        assert!(silence < EXPIRY_MS, "a worker is silent for {silence} ms");
        heartbeats() >= before + 8.0
    });
    // There is time for three times as many; with 1,000 inventories in each there was not for one.
    let took = start.elapsed();
    assert!(took < Duration::from_secs(24), "8 heartbeats in {took:?}");
    // What is warm is known before all of the others have been looked up.
    wait_until("the warm dataset is known", Duration::from_mins(2), || {
        let datasets = cluster.status()["datasets"].take();
        let datasets = datasets.as_array().unwrap();
        let name = format!("set-{last}");
        let warm = datasets.iter().find(|set| set["name"] == *name).unwrap();
        warm["cached_bytes"] == FILES * 1000
    });
    let status = cluster.status();
    assert_eq!(status["epoch"], epoch, "a worker was thrown out");
    assert_eq!(status["datasets"].as_array().unwrap().len(), DATASETS);
}

fn a_master_that_was_stopped_keeps_its_workers() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 2);
    let epoch = cluster.status()["epoch"].clone();
    let master = cluster.master.as_ref().unwrap();
    master.signal(Signal::STOP);
    // What it does meanwhile is nothing, so this waits for the clock alone.
    let stopped = Instant::now();
    let long = Duration::from_millis(EXPIRY_MS + 2000);
    wait_until("it was stopped for long", long * 2, || {
        stopped.elapsed() > long
    });
    master.signal(Signal::CONT);
    cluster.keeps_its_workers(&epoch);
}
