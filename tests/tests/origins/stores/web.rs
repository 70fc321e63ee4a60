//! Web servers.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::directory::publish;
use super::running::{Running, emulators};
use crate::origins::shared::{Mistake, UnderTest};

/// A web server, and what it can do.
pub(crate) trait WebServer: Sync + 'static {
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
    /// It tells the second of a change, and Python's server nothing else.
    const BLIND_FOR: Duration = Duration::from_millis(1100);

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

    fn address(&self) -> Option<SocketAddr> {
        Some(self.running.address)
    }

    fn put(&self, key: &str, content: &[u8]) {
        let path = self.path(key);
        publish(&path, &self.running.dir.path().join("part"), content);
    }

    fn delete(&self, key: &str) {
        std::fs::remove_file(self.path(key)).unwrap();
    }

    fn url(&self, at: SocketAddr) -> String {
        format!("http://{at}/")
    }

    fn takes(key: &str) -> bool {
        K::shows(key)
    }

    fn mistakes(&self, at: SocketAddr) -> Vec<Mistake> {
        let direct = self.running.address;
        [
            (format!("http://{at}/missing/"), "does not exist"),
            (format!("http://{at}/?index=missing"), "?index="),
            (format!("https://{direct}/"), "TLS"),
            (format!("http://user:hunter2@{at}/"), "user name"),
        ]
        .map(|(url, said)| Mistake::new(url, Vec::new(), said))
        .into()
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
