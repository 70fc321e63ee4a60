//! Emulators of Google's and Azure's stores.

use std::net::SocketAddr;
use std::process::Command;

use weir_tests::BUCKET;

use super::running::{Running, emulators, encoded};
use crate::origins::shared::{Mistake, UnderTest};

/// A signature of everything for everybody with the key of Azurite, which is published.
const SIGNED: &str = "sv=2021-12-02&ss=b&srt=sco&sp=rwdlac&se=2099-01-01T00%3A00%3A00Z&sig=tznf%2BUguWwNe%2B7oTyobyNUc7TDthIuY2m9EdDOYdBvE%3D";
/// The same for reading alone.
const SIGNED_TO_READ: &str = "sv=2021-12-02&ss=b&srt=sco&sp=rl&se=2099-01-01T00%3A00%3A00Z&sig=ApOkxdMFMqOmqEUU0RQTKNtNOL%2BOjFMHR4HUQS7TFcY%3D";

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
    const PUT_AT_A_TIME: usize = 8;

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

    fn address(&self) -> Option<SocketAddr> {
        Some(self.0.address)
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

    fn mistakes(&self, at: SocketAddr) -> Vec<Mistake> {
        vec![Mistake::new(
            "gs://missing/",
            self.flags(at),
            "does not exist",
        )]
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
    const PUT_AT_A_TIME: usize = 8;

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

    fn address(&self) -> Option<SocketAddr> {
        Some(self.0.address)
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

    fn mistakes(&self, at: SocketAddr) -> Vec<Mistake> {
        let anonymous = [self.flags(at), vec!["--anonymous".to_owned()]].concat();
        let other = ["--endpoint".to_owned(), format!("http://{at}/otheraccount")].into();
        let url = self.url(at);
        let key = "d3JvbmcgYW5kIG5vdCB0aGUga2V5IG9mIHRoaXMgYWNjb3VudA==";
        vec![
            Mistake::new("az://missing/", self.flags(at), "does not exist"),
            Mistake::new(&url, anonymous, "access denied"),
            Mistake::new(&url, self.flags(at), "access denied")
                .with("AZURE_STORAGE_ACCOUNT_KEY", key),
            Mistake::new(&url, other, "AZURE_STORAGE_ACCOUNT_KEY"),
            Mistake::new(&url, Vec::new(), "AZURE_STORAGE_ACCOUNT_NAME"),
        ]
    }
}

impl Azurite {
    /// The variable with a signature that admits readers.
    pub(crate) const TO_READ: (&str, &str) = ("AZURE_STORAGE_SAS_TOKEN", SIGNED_TO_READ);
}
