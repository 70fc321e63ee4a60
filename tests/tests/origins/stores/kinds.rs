//! The stores: a small S3 server, emulators of Google's and Azure's, and two web servers.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use weir_s3_server::{Config, S3Server};
use weir_tests::{BUCKET, free_port, wait_until};

use super::under_test::UnderTest;

/// Longest wait for a store to come up.
const START_DEADLINE: Duration = Duration::from_mins(1);
/// A signature of everything for everybody with the key of Azurite, which is published.
const SIGNED: &str = "sv=2021-12-02&ss=b&srt=sco&sp=rwdlac&se=2099-01-01T00%3A00%3A00Z&sig=tznf%2BUguWwNe%2B7oTyobyNUc7TDthIuY2m9EdDOYdBvE%3D";
/// The same for reading alone.
const SIGNED_TO_READ: &str = "sv=2021-12-02&ss=b&srt=sco&sp=rl&se=2099-01-01T00%3A00%3A00Z&sig=ApOkxdMFMqOmqEUU0RQTKNtNOL%2BOjFMHR4HUQS7TFcY%3D";

/// A process that ends with the test.
struct Running {
    child: Child,
    address: SocketAddr,
    /// Its files.
    dir: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Starts what `command` makes of a port and a directory, and waits until it listens.
    fn start(command: impl FnOnce(u16, &TempDir) -> Command) -> Self {
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
    fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) {
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

/// The directory of the emulators.
fn emulators() -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../build-support/stores.sh");
    let output = Command::new(script)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{script} failed");
    String::from_utf8(output.stdout).unwrap().trim().into()
}

fn encoded(key: &str) -> String {
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

/// The S3 server of the other tests.
pub(crate) struct S3Service(S3Server);

impl UnderTest for S3Service {
    fn start() -> Self {
        let server = S3Server::start(Config::default()).unwrap();
        server.edit(BUCKET, |_| ());
        Self(server)
    }

    fn address(&self) -> SocketAddr {
        self.0
            .endpoint()
            .strip_prefix("http://")
            .unwrap()
            .parse()
            .unwrap()
    }

    fn put(&self, key: &str, content: &[u8]) {
        self.0
            .edit(BUCKET, |bucket| bucket.put(key, content.to_vec()));
    }

    fn delete(&self, key: &str) {
        self.0.edit(BUCKET, |bucket| {
            bucket.delete(key.as_bytes());
        });
    }

    fn url(&self, _at: SocketAddr) -> String {
        format!("s3://{BUCKET}/")
    }

    fn flags(&self, at: SocketAddr) -> Vec<String> {
        [
            "--endpoint".to_owned(),
            format!("http://{at}"),
            "--anonymous".to_owned(),
        ]
        .into()
    }

    fn mistakes(&self, at: SocketAddr) -> Vec<(String, Vec<String>, &'static str)> {
        vec![("s3://missing/".to_owned(), self.flags(at), "does not exist")]
    }
}

/// An emulator of Google Cloud Storage.
pub(crate) struct FakeGcs(Running);

impl FakeGcs {
    /// Puts a file that was compressed before, and says so.
    pub(crate) fn put_compressed(&self, key: &str, content: &[u8]) {
        let name = encoded(key);
        let path = format!(
            "/upload/storage/v1/b/{BUCKET}/o?uploadType=media&contentEncoding=gzip&name={name}"
        );
        self.0
            .ask("POST", &path, "Content-Type: text/plain\r\n", content);
    }
}

impl UnderTest for FakeGcs {
    fn start() -> Self {
        let binary = emulators().join("fake-gcs-server");
        let running = Running::start(|port, dir| {
            let mut command = Command::new(binary);
            command
                .args([
                    "-scheme",
                    "http",
                    "-host",
                    "127.0.0.1",
                    "-backend",
                    "memory",
                    "-port",
                ])
                .arg(port.to_string())
                .current_dir(dir.path());
            command
        });
        let json = "Content-Type: application/json\r\n";
        let bucket = format!("{{\"name\":\"{BUCKET}\"}}");
        running.ask("POST", "/storage/v1/b?project=p", json, bucket.as_bytes());
        Self(running)
    }

    fn address(&self) -> SocketAddr {
        self.0.address
    }

    fn put(&self, key: &str, content: &[u8]) {
        let name = encoded(key);
        let path = format!("/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}");
        let kind = "Content-Type: application/octet-stream\r\n";
        self.0.ask("POST", &path, kind, content);
    }

    fn delete(&self, key: &str) {
        let path = format!("/storage/v1/b/{BUCKET}/o/{}", encoded(key));
        self.0.ask("DELETE", &path, "", b"");
    }

    fn url(&self, _at: SocketAddr) -> String {
        format!("gs://{BUCKET}/")
    }

    fn flags(&self, at: SocketAddr) -> Vec<String> {
        ["--endpoint".to_owned(), format!("http://{at}")].into()
    }

    fn mistakes(&self, at: SocketAddr) -> Vec<(String, Vec<String>, &'static str)> {
        vec![("gs://missing/".to_owned(), self.flags(at), "does not exist")]
    }
}

/// An emulator of Azure's blobs.
pub(crate) struct Azurite(Running);

impl Azurite {
    fn blob(key: &str) -> String {
        format!(
            "/devstoreaccount1/{BUCKET}/{}?{SIGNED}",
            encoded(key).replace("%2F", "/")
        )
    }
}

impl UnderTest for Azurite {
    fn start() -> Self {
        let binary = emulators().join("node_modules/.bin/azurite-blob");
        let running = Running::start(|port, dir| {
            let mut command = Command::new(binary);
            command
                .args([
                    "--inMemoryPersistence",
                    "--skipApiVersionCheck",
                    "--blobPort",
                ])
                .arg(port.to_string())
                .current_dir(dir.path());
            command
        });
        let path = format!("/devstoreaccount1/{BUCKET}?restype=container&{SIGNED}");
        running.ask("PUT", &path, "", b"");
        Self(running)
    }

    fn address(&self) -> SocketAddr {
        self.0.address
    }

    fn put(&self, key: &str, content: &[u8]) {
        let headers = "x-ms-blob-type: BlockBlob\r\nContent-Type: application/octet-stream\r\n";
        self.0.ask("PUT", &Self::blob(key), headers, content);
    }

    fn delete(&self, key: &str) {
        self.0.ask("DELETE", &Self::blob(key), "", b"");
    }

    fn url(&self, _at: SocketAddr) -> String {
        format!("az://{BUCKET}/")
    }

    fn flags(&self, at: SocketAddr) -> Vec<String> {
        [
            "--endpoint".to_owned(),
            format!("http://{at}/devstoreaccount1"),
        ]
        .into()
    }

    fn takes(key: &str) -> bool {
        // Azure itself takes a backslash for a slash, and no component that ends in a dot.
        !key.contains('\\') && !key.split('/').any(|part| part.ends_with('.'))
    }

    fn mistakes(&self, at: SocketAddr) -> Vec<(String, Vec<String>, &'static str)> {
        let anonymous = [self.flags(at), vec!["--anonymous".to_owned()]].concat();
        let other = ["--endpoint".to_owned(), format!("http://{at}/otheraccount")].into();
        vec![
            ("az://missing/".to_owned(), self.flags(at), "does not exist"),
            (format!("az://{BUCKET}/"), anonymous, "access denied"),
            (
                format!("az://{BUCKET}/"),
                other,
                "AZURE_STORAGE_ACCOUNT_KEY",
            ),
            (
                format!("az://{BUCKET}/"),
                Vec::new(),
                "AZURE_STORAGE_ACCOUNT_NAME",
            ),
        ]
    }
}

impl Azurite {
    /// The variable with a signature that admits readers.
    pub(crate) const TO_READ: (&str, &str) = ("AZURE_STORAGE_SAS_TOKEN", SIGNED_TO_READ);
}

/// A web server, and what it can do.
pub(crate) trait WebServer: 'static {
    /// Starts it on a port, to serve the directory `files` of another.
    fn command(port: u16, dir: &TempDir) -> Command;

    /// Whether its pages show a file of this name.
    fn shows(_key: &str) -> bool {
        true
    }
}

/// A running web server.
pub(crate) struct Web<K> {
    running: Running,
    kind: PhantomData<K>,
}

impl<K> Web<K> {
    fn path(&self, key: &str) -> PathBuf {
        self.running.dir.path().join("files").join(key)
    }
}

impl<K: WebServer> UnderTest for Web<K> {
    const TELLS_SECONDS: bool = true;

    fn start() -> Self {
        let running = Running::start(|port, dir| {
            std::fs::create_dir(dir.path().join("files")).unwrap();
            K::command(port, dir)
        });
        Self {
            running,
            kind: PhantomData,
        }
    }

    fn address(&self) -> SocketAddr {
        self.running.address
    }

    fn put(&self, key: &str, content: &[u8]) {
        let path = self.path(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Another file in its place, as who publishes one should.
        let part = self.running.dir.path().join("part");
        std::fs::write(&part, content).unwrap();
        std::fs::rename(part, path).unwrap();
    }

    fn delete(&self, key: &str) {
        std::fs::remove_file(self.path(key)).unwrap();
    }

    fn url(&self, at: SocketAddr) -> String {
        format!("http://{at}/")
    }

    fn flags(&self, _at: SocketAddr) -> Vec<String> {
        Vec::new()
    }

    fn takes(key: &str) -> bool {
        K::shows(key)
    }

    fn mistakes(&self, at: SocketAddr) -> Vec<(String, Vec<String>, &'static str)> {
        let direct = self.running.address;
        vec![
            (
                format!("http://{at}/missing/"),
                Vec::new(),
                "does not exist",
            ),
            (format!("http://{at}/?index=missing"), Vec::new(), "?index="),
            (format!("https://{direct}/"), Vec::new(), "TLS"),
            (
                format!("http://user:hunter2@{at}/"),
                Vec::new(),
                "user name",
            ),
        ]
    }
}

/// Python's http.server, which knows neither ETags nor ranges.
pub(crate) type Python = Web<HttpServer>;

/// Python's module.
pub(crate) struct HttpServer;

impl WebServer for HttpServer {
    fn command(port: u16, dir: &TempDir) -> Command {
        let mut command = Command::new("python3");
        command
            .args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"])
            .arg(dir.path().join("files"))
            .arg(port.to_string());
        command
    }
}

/// nginx, which lists directories and knows ETags and ranges.
pub(crate) type Nginx = Web<Autoindex>;

/// Its module.
pub(crate) struct Autoindex;

impl WebServer for Autoindex {
    fn command(port: u16, dir: &TempDir) -> Command {
        emulators();
        let root = dir.path().display();
        let configuration = format!(
            "daemon off; master_process off; pid {root}/pid; error_log {root}/errors;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;\n\
             uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n\
             server {{ listen 127.0.0.1:{port}; root {root}/files; autoindex on; }} }}\n"
        );
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, configuration).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-c").arg(file);
        command
    }

    fn shows(key: &str) -> bool {
        // Its pages leave out what is hidden.
        !key.split('/').any(|part| part.starts_with('.'))
    }
}
