//! Readers that wait for an origin that is down keep nobody else from reading.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weir_s3_server::{Fault, Rule};
use weir_tests::{Cluster, Lab, Mount, content, drop_pages, read_evicted, wait_until, write_tree};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "readers_that_wait_for_an_origin_keep_no_others_from_what_is_cached",
        readers_that_wait_for_an_origin_keep_no_others_from_what_is_cached,
    ),
    (
        "readers_that_wait_in_a_cluster_keep_no_others_from_what_is_cached",
        readers_that_wait_in_a_cluster_keep_no_others_from_what_is_cached,
    ),
    (
        "readers_that_wait_for_one_origin_keep_no_readers_of_another_waiting",
        readers_that_wait_for_one_origin_keep_no_readers_of_another_waiting,
    ),
];

/// More than threads that answer the kernel, and more than requests that it has under way by default.
const WAITING: usize = 400;
/// So many wait when it counts: more than fills have room at once.
const ENOUGH: usize = 300;
/// Files of several requests each, the kernel's readahead included.
const LARGE: usize = 8;
/// A reader that waits behind others waits for as long as they do: much longer.
const SOON: Duration = Duration::from_secs(20);
/// Longest wait until all readers wait, and until they have read.
const ALL: Duration = Duration::from_mins(1);
/// Longer than that. Not much: readers that are killed while they wait end no sooner.
const PATIENCE: &str = "90s";

type Files = BTreeMap<String, Vec<u8>>;

/// Files to be cached first, and others. None is in the directory of another one, so that none is read ahead.
struct World {
    cached: Files,
    waited_for: Files,
}

fn fill(lab: &Lab) -> World {
    let small = |kind: &'static str, count| {
        (0..count).map(move |n| (format!("{kind}{n}/file"), content(n, 20_000)))
    };
    let large = (0..LARGE as u64).map(|n| (format!("large{n}/file"), content(n, 9_000_000)));
    let world = World {
        cached: small("cached", 60).collect(),
        waited_for: small("small", WAITING as u64).chain(large).collect(),
    };
    lab.put_all(&world.cached);
    lab.put_all(&world.waited_for);
    world
}

/// Runs `work` on a thread of its own and fails when it takes too long.
#[track_caller]
fn soon<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, waiting) = mpsc::sync_channel(1);
    let started = Instant::now();
    std::thread::spawn(move || done.send(work()));
    let done = waiting.recv_timeout(SOON);
    let done = done.unwrap_or_else(|_| panic!("{what}: not within {SOON:?}"));
    println!("{what} took {:?}", started.elapsed());
    done
}

/// Starts one reader of each file, and returns when enough of them wait, as `waiting` counts them. Each ends with whether it
/// has read what it should have.
fn start_readers(
    mount: &Mount<'_>,
    files: &Files,
    waiting: impl Fn() -> usize,
) -> Vec<JoinHandle<bool>> {
    let reader = |(name, content): (&String, &Vec<u8>)| {
        let (path, content) = (mount.path(name), content.clone());
        let thread = std::thread::Builder::new().stack_size(256 << 10);
        let read = move || std::fs::read(path).is_ok_and(|bytes| bytes == content);
        thread.spawn(read).unwrap()
    };
    let readers: Vec<_> = files.iter().map(reader).collect();
    wait_until("the readers wait", ALL, || waiting() >= ENOUGH);
    readers
}

/// Ends the outage at the end of a test, however that ends: readers would wait for the origin for minutes.
struct Outage<'a>(&'a Lab);

impl Drop for Outage<'_> {
    fn drop(&mut self) {
        self.0.s3.faults().clear();
    }
}

/// `waiting` gives how many reads wait for the origin.
fn check(lab: &Lab, mount: &Mount<'_>, world: &World, waiting: impl Fn() -> usize) {
    for (name, content) in &world.cached {
        assert!(mount.read(name) == *content, "{name}");
    }
    drop_pages(world.cached.keys().map(|name| mount.path(name)));
    let down = Fault::Status(503, "ServiceUnavailable");
    lab.s3.faults().set([Rule::new(down)]);
    let outage = Outage(lab);
    let readers = start_readers(mount, &world.waited_for, waiting);
    let paths: Vec<PathBuf> = world.cached.keys().map(|name| mount.path(name)).collect();
    let wanted: Vec<Vec<u8>> = world.cached.values().cloned().collect();
    let read = move || {
        let read = paths.iter().map(|path| read_evicted(path).unwrap());
        read.eq(wanted)
    };
    assert!(soon("reading what is cached", read));
    let root = mount.dir.clone();
    let walk = move || {
        let names = std::fs::read_dir(root).unwrap();
        let sizes = names.map(|name| std::fs::metadata(name.unwrap().path()).unwrap().len());
        (sizes.count(), std::fs::metadata("/proc").is_ok())
    };
    let (names, _) = soon("listing", walk);
    assert_eq!(names, world.cached.len() + world.waited_for.len());
    let started = Instant::now();
    lab.weir(["status"]).ok();
    assert!(
        started.elapsed() < SOON,
        "the status took {:?}",
        started.elapsed()
    );
    assert!(readers.iter().all(|reader| !reader.is_finished()));
    drop(outage);
    wait_until("all have read", ALL, || {
        readers.iter().all(JoinHandle::is_finished)
    });
    assert!(readers.into_iter().all(|reader| reader.join().unwrap()));
}

fn readers_that_wait_for_an_origin_keep_no_others_from_what_is_cached() {
    let lab = Lab::new();
    let world = fill(&lab);
    let mount = lab.mount("", &["--patience", PATIENCE, "--read-ahead", "off"]);
    check(&lab, &mount, &world, || {
        mount.metric("weir_worker_fills_in_flight", "") as usize
    });
    mount.unmount();
}

/// Reads that wait for the origin at the worker, and in the mount: those that wait too long for their turn at the worker go
/// on to the origin themselves.
fn waiting_in(cluster: &Cluster<'_>, mount: &Mount<'_>) -> usize {
    let at_the_worker = cluster.worker(0).metric("weir_worker_fills_in_flight", "");
    (at_the_worker + mount.metric("weir_origin_waiting_reads", "")) as usize
}

/// Makes a dataset of the lab's bucket whose readers wait long.
fn create_patient(lab: &Lab, cluster: &Cluster<'_>, name: &str) {
    let (url, origin) = (lab.url(""), lab.origin_flags());
    let mut create = vec!["dataset", "create", name, &url, "--patience", PATIENCE];
    create.extend(origin.iter().map(String::as_str));
    cluster.weir(&create).ok();
}

fn readers_that_wait_in_a_cluster_keep_no_others_from_what_is_cached() {
    let lab = Lab::new();
    let world = fill(&lab);
    let cluster = Cluster::start(&lab, 1);
    let address = cluster.address();
    create_patient(&lab, &cluster, "set");
    for node in ["node-0", "elsewhere"] {
        let flags = ["--master", &address, "--node", node, "--read-ahead", "off"];
        let flags = [&flags[..], &["--allow-endpoint", "127.0.0.1"]].concat();
        let mount = lab.mount_at("set", "mnt", &flags);
        check(&lab, &mount, &world, || waiting_in(&cluster, &mount));
        mount.unmount();
        cluster.weir(&["evict", "set"]).ok();
    }
}

/// The fills of a worker share one budget of memory.
fn readers_that_wait_for_one_origin_keep_no_readers_of_another_waiting() {
    let lab = Lab::new();
    let world = fill(&lab);
    write_tree(&lab.path("healthy"), &world.cached);
    let cluster = Cluster::start(&lab, 1);
    let address = cluster.address();
    create_patient(&lab, &cluster, "down");
    let healthy = format!("file://{}", lab.path("healthy").display());
    cluster
        .weir(&["dataset", "create", "healthy", &healthy])
        .ok();
    let flags = [
        "--master",
        &address,
        "--node",
        "elsewhere",
        "--read-ahead",
        "off",
        "--allow-endpoint",
        "127.0.0.1",
    ];
    let down = lab.mount_at("down", "down", &flags);
    let mount = lab.mount_at("healthy", "mnt", &flags);
    let refused = Fault::Status(503, "ServiceUnavailable");
    lab.s3.faults().set([Rule::new(refused)]);
    let outage = Outage(&lab);
    let readers = start_readers(&down, &world.waited_for, || waiting_in(&cluster, &down));
    let cached = world.cached.iter();
    let wanted: Vec<_> = cached
        .map(|(name, content)| (mount.path(name), content.clone()))
        .collect();
    let read = move || {
        wanted
            .iter()
            .all(|(path, content)| std::fs::read(path).unwrap() == *content)
    };
    assert!(soon("reading what another origin has", read));
    let failovers = mount.metric("weir_client_failovers_total", "") as u64;
    assert_eq!(failovers, 0, "the worker has read it");
    drop(outage);
    wait_until("all have read", ALL, || {
        readers.iter().all(JoinHandle::is_finished)
    });
    assert!(readers.into_iter().all(|reader| reader.join().unwrap()));
}
