//! The block stream between processes that know each other, and those who want in.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use weir_tests::{
    Cluster, Lab, Mount, Readers, as_nobody, content, idle_connections, put_apart, wait_until,
};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "blocks_are_read_over_an_authenticated_stream",
        blocks_are_read_over_an_authenticated_stream,
    ),
    ("blocks_are_read_over_tls", blocks_are_read_over_tls),
    (
        "a_worker_that_is_killed_under_readers_of_an_authenticated_stream_fails_no_read",
        a_worker_that_is_killed_under_readers_of_an_authenticated_stream_fails_no_read,
    ),
    (
        "a_worker_that_is_killed_under_readers_over_tls_fails_no_read",
        a_worker_that_is_killed_under_readers_over_tls_fails_no_read,
    ),
    (
        "another_user_of_the_machine_gets_nothing_from_the_stream",
        another_user_of_the_machine_gets_nothing_from_the_stream,
    ),
    (
        "what_was_overheard_of_an_authenticated_stream_gets_nothing",
        what_was_overheard_of_an_authenticated_stream_gets_nothing,
    ),
    (
        "a_thousand_who_never_answer_the_challenge_keep_no_reader_out",
        a_thousand_who_never_answer_the_challenge_keep_no_reader_out,
    ),
    (
        "a_worker_that_is_frozen_before_the_handshake_costs_a_second_once",
        a_worker_that_is_frozen_before_the_handshake_costs_a_second_once,
    ),
];

/// Longest wait for an answer that may not come.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

type Files = Arc<BTreeMap<String, Vec<u8>>>;

#[track_caller]
fn check_all(mount: &Mount<'_>, files: &Files) {
    for (name, content) in files.iter() {
        assert!(mount.read(name) == *content, "{name}");
    }
}

fn reads_right(mode: &str) {
    let lab = Lab::new();
    let mut files: BTreeMap<String, Vec<u8>> = (0..60)
        .map(|n| (format!("d{}/f{n}", n % 3), content(n, 100_000)))
        .collect();
    files.insert("large".to_owned(), content(1000, (13 << 20) + 1));
    lab.put_all(&files);
    let files = Arc::new(files);
    let flags: &[&str] = &["--stream", mode];
    let cluster = Cluster::start_secure_with(&lab, &[flags, flags]);
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "elsewhere");
    check_all(&mount, &files);
    let remote = mount.metric("weir_client_read_bytes_total", "remote");
    let origin = mount.metric("weir_client_read_bytes_total", "origin");
    // What the workers fetched for a reader counts as the origin's. Small files may have been read ahead.
    let large = files["large"].len() as f64;
    assert!(remote + origin >= large, "{remote} and {origin}");
    assert!(mount.metric("weir_client_failovers_total", "") < 0.5);
    for number in 0..2 {
        let worker = cluster.worker(number);
        assert!(worker.metric("weir_worker_stream_requests_total", "ok") > 0.5);
        assert!(worker.metric("weir_worker_stream_refusals_total", "") < 0.5);
    }
}

fn blocks_are_read_over_an_authenticated_stream() {
    reads_right("authenticated");
}

fn blocks_are_read_over_tls() {
    reads_right("tls");
}

fn survives_kills(mode: &str) {
    let lab = Lab::new();
    let files = put_apart(&lab, 300);
    let flags: &[&str] = &["--stream", mode];
    let mut cluster = Cluster::start_secure_with(&lab, &[flags, flags]);
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "elsewhere");
    let readers = Readers::start(&mount.dir, &files, 4);
    let served = |cluster: &Cluster<'_>, number: usize| {
        let worker = cluster.worker(number);
        worker.metric("weir_worker_stream_requests_total", "ok")
    };
    for number in [0, 1, 0] {
        readers.read_more(20);
        cluster.workers[number].take().unwrap().kill();
        readers.read_more(20);
        cluster.start_worker(number);
        // Its keys are forgotten; it is asked for others, and then for blocks.
        wait_until("it is asked again", Duration::from_secs(30), || {
            readers.read_more(5);
            served(&cluster, number) > 0.5
        });
    }
    let report = readers.finish();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
}

fn a_worker_that_is_killed_under_readers_of_an_authenticated_stream_fails_no_read() {
    survives_kills("authenticated");
}

fn a_worker_that_is_killed_under_readers_over_tls_fails_no_read() {
    survives_kills("tls");
}

/// What each client of a worker has said, in the order in which they came.
type Overheard = Arc<Mutex<Vec<Vec<u8>>>>;

/// Listens on another address of this machine, and passes all on to the worker on the same port.
fn overhear(port: u16) -> Overheard {
    let listener = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let overheard = Overheard::default();
    let all = overheard.clone();
    std::thread::spawn(move || {
        while let Ok((here, _)) = listener.accept() {
            let there = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let number = {
                let mut all = all.lock().unwrap();
                all.push(Vec::new());
                all.len() - 1
            };
            let (mut from_worker, mut to_client) =
                (there.try_clone().unwrap(), here.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from_worker, &mut to_client);
                let _ = to_client.shutdown(std::net::Shutdown::Both);
            });
            let (mut here, mut there, all) = (here, there, all.clone());
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = here.read(&mut buffer) {
                    all.lock().unwrap()[number].extend_from_slice(&buffer[..read]);
                    if there.write_all(&buffer[..read]).is_err() {
                        break;
                    }
                }
                let _ = there.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    overheard
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// What was said by the client that asked for a file.
#[track_caller]
fn said_for(overheard: &Overheard, file: &str) -> Vec<u8> {
    let all = overheard.lock().unwrap();
    let asked = all.iter().find(|said| holds(said, file.as_bytes()));
    asked.expect("nobody asked for the file").clone()
}

/// Says something to a worker, and gives what it answers until the connection ends or `wanted` has come.
fn say(mut stream: impl Read + Write, words: &[u8], wanted: &[u8]) -> Vec<u8> {
    // It may be refused in the middle.
    let _ = stream.write_all(words);
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while !holds(&answer, wanted)
        && let Ok(read @ 1..) = stream.read(&mut buffer)
    {
        answer.extend_from_slice(&buffer[..read]);
    }
    answer
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(ANSWER_DEADLINE)).unwrap();
    stream
}

fn another_user_of_the_machine_gets_nothing_from_the_stream() {
    let lab = Lab::new();
    let files = put_apart(&lab, 5);
    let cluster = Cluster::start_with(&lab, &[&["--advertise", "127.0.0.2"]]);
    let port = cluster.data_port(0);
    let overheard = overhear(port);
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "elsewhere");
    check_all(&mount, &files);
    let words = said_for(&overheard, "d0/file");
    let secret = &files["d0/file"][1000..2000];
    let own = say(connect(port), &words, secret);
    assert!(holds(&own, secret), "the words are good for the same user");
    let worker = cluster.worker(0);
    let refused = || worker.metric("weir_worker_stream_refusals_total", "refused");
    let before = refused();
    let Some(answer) = as_nobody(|| say(connect(port), &words, secret)) else {
        return;
    };
    assert!(!holds(&answer, secret) && answer.len() < 1000, "{answer:?}");
    assert!(holds(&answer, b"--certs"), "{}", answer.escape_ascii());
    assert!(refused() > before);
    // The socket is the worker's own, and whoever comes past its mode is asked who he is.
    let socket = lab.path("node-0/worker.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for (path, mode) in [
        (lab.path(""), 0o755),
        (lab.path("node-0"), 0o755),
        (socket.clone(), 0o666),
    ] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let ask = || {
        let stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(ANSWER_DEADLINE)).unwrap();
        say(stream, &words, secret)
    };
    assert!(holds(&ask(), secret), "the words are good on the socket");
    let before = refused();
    assert_eq!(as_nobody(ask), Some(Vec::new()));
    // The connection ends before that is counted.
    wait_until("the refusal to be counted", ANSWER_DEADLINE, || {
        refused() > before
    });
    assert!(worker.log().contains("refused"), "{}", worker.log());
}

fn what_was_overheard_of_an_authenticated_stream_gets_nothing() {
    let lab = Lab::new();
    let files = put_apart(&lab, 5);
    let cluster = Cluster::start_secure_with(&lab, &[&["--advertise", "127.0.0.2"]]);
    let port = cluster.data_port(0);
    let overheard = overhear(port);
    let _control = overhear(cluster.control_port(0));
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "elsewhere");
    check_all(&mount, &files);
    let words = said_for(&overheard, "d0/file");
    let secret = &files["d0/file"][1000..2000];
    let answer = say(connect(port), &words, secret);
    assert!(!holds(&answer, secret) && answer.len() < 1000);
    assert!(holds(&answer, b"proof"), "{}", answer.escape_ascii());
}

fn a_thousand_who_never_answer_the_challenge_keep_no_reader_out() {
    for mode in ["authenticated", "tls"] {
        let lab = Lab::new();
        let files = put_apart(&lab, 40);
        let flags: &[&str] = &["--stream", mode];
        let cluster = Cluster::start_secure_with(&lab, &[flags]);
        cluster.create_dataset("set");
        let silent = idle_connections(cluster.data_port(0), 1000);
        assert_eq!(silent.len(), 1000);
        let start = Instant::now();
        let mount = cluster.mount("set", "elsewhere");
        check_all(&mount, &files);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(8), "the reads took {took:?}");
        let passed_over = mount.metric("weir_client_failovers_total", "");
        assert!(passed_over < 3.0, "{passed_over} reads were not answered");
        let worker = cluster.worker(0);
        wait_until("the silent are let go", Duration::from_secs(30), || {
            let late = worker.metric("weir_worker_stream_refusals_total", "late");
            let crowded = worker.metric("weir_worker_stream_refusals_total", "crowded");
            late + crowded > 999.5
        });
        drop(silent);
    }
}

fn a_worker_that_is_frozen_before_the_handshake_costs_a_second_once() {
    for mode in ["authenticated", "tls"] {
        let lab = Lab::new();
        let files = put_apart(&lab, 60);
        let flags: &[&str] = &["--stream", mode];
        let mut cluster = Cluster::start_secure_with(&lab, &[flags, flags]);
        cluster.create_dataset("set");
        let mount = cluster.mount("set", "elsewhere");
        // Without a master nobody throws the worker out. No connection to it was opened yet.
        cluster.master.take().unwrap().kill();
        let frozen = cluster.worker(0).freeze();
        let start = Instant::now();
        check_all(&mount, &files);
        let took = start.elapsed();
        let silent = mount.metric("weir_client_failovers_total", "silent");
        assert!(took < Duration::from_secs(12), "the reads took {took:?}");
        assert!(
            (0.5..10.0).contains(&silent),
            "{silent} reads found it silent"
        );
        drop(frozen);
    }
}
