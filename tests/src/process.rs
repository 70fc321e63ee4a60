//! Masters and workers as processes of their own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use weir_demo::metrics::{samples, sum};

use crate::wait_until;

/// Longest wait for a process to come up.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// A process that runs until the test ends it.
pub struct Process {
    child: Child,
    log: PathBuf,
    http: SocketAddr,
}

impl Process {
    /// Starts `command`, whose output goes to `log`, and waits until `/healthz` on `http` answers.
    #[track_caller]
    pub fn start(mut command: Command, log: PathBuf, http: SocketAddr) -> Self {
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let mut process = Self {
            child: command.spawn().unwrap(),
            log,
            http,
        };
        wait_until("/healthz answers", START_DEADLINE, || {
            let ended = process.child.try_wait().unwrap();
            assert!(ended.is_none(), "{command:?} ended: {}", process.log());
            TcpStream::connect(http).is_ok()
        });
        process
    }

    /// Kills it the hard way.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its number.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Tells it to stop, and waits until it has ended.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        wait_until("it ends", START_DEADLINE, || {
            self.child.try_wait().unwrap().is_some()
        });
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Stops it until what this gives is dropped.
    pub fn freeze(&self) -> Frozen<'_> {
        self.signal(Signal::STOP);
        Frozen(self)
    }

    /// What it has written.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// URL of a path that it serves.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.http)
    }

    /// Status and body of `/healthz`.
    pub fn health(&self) -> (u16, String) {
        get(&self.url("healthz"))
    }

    /// All samples of its metrics.
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        scrape(&self.url("metrics"))
    }

    /// Sum of the samples of a metric whose labels contain `label`.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        sum(&self.metrics(), name, label)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), self.log());
        }
        // It may have ended, or been killed by the test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that is stopped until this is dropped.
pub struct Frozen<'a>(&'a Process);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}

/// A port of this machine, for those who are on it.
pub fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A TCP port that nobody listens on, and that is given to nobody else here: below the ports that the kernel takes for
/// outgoing connections.
#[track_caller]
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_240;
    const COUNT: u32 = 20_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Two runs side by side begin at different places.
    let begin = std::process::id().wrapping_mul(997);
    (0..COUNT)
        .map(|_| {
            let number = begin.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
            (FIRST + number % COUNT) as u16
        })
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("no port is free")
}

/// GETs an `http://` URL.
#[track_caller]
pub fn get(url: &str) -> (u16, String) {
    let (host, path) = url
        .strip_prefix("http://")
        .unwrap()
        .split_once('/')
        .unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(START_DEADLINE)).unwrap();
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

#[track_caller]
pub(crate) fn scrape(url: &str) -> BTreeMap<String, f64> {
    let (status, text) = get(url);
    assert_eq!(status, 200, "{text}");
    samples(&text)
}
