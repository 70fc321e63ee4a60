//! Stores that are processes of their own, and requests to them.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;
use weir_tests::{free_port, wait_until};

/// Longest wait for a store to come up.
const START_DEADLINE: Duration = Duration::from_mins(1);

/// A process that ends with the test.
pub(super) struct Running {
    child: Child,
    pub(super) address: SocketAddr,
    /// Its files.
    pub(super) dir: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Starts what `command` makes of a port and a directory, and waits until it listens.
    pub(super) fn start(command: impl FnOnce(u16, &TempDir) -> Command) -> Self {
        let dir = tempfile::Builder::new().prefix("store-").tempdir().unwrap();
        let port = free_port();
        let mut command = command(port, &dir);
        let command = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut running = Self {
            child,
            address,
            dir,
        };
        wait_until("the store listens", START_DEADLINE, || {
            let ended = running.child.try_wait().unwrap();
            assert!(ended.is_none(), "{command:?} has ended");
            TcpStream::connect(address).is_ok()
        });
        running
    }

    /// Sends a request with a body, which must succeed.
    #[track_caller]
    pub(super) fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(START_DEADLINE)).unwrap();
        let (host, length) = (self.address, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(status.starts_with('2'), "{method} {path}: {answer}");
    }
}

/// The directory of the emulators, which are fetched if they are not there.
pub(crate) fn emulators() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../build-support/stores.sh");
        let output = Command::new(script)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "{script} failed");
        String::from_utf8(output.stdout).unwrap().trim().into()
    })
}

/// A key as a part of a URL.
pub(super) fn encoded(key: &str) -> String {
    let mut out = String::new();
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
