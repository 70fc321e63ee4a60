//! MinIO: a server that many have. It has a copy of the data of its own, which is kept for the next run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use http::{HeaderMap, Method, Uri};
use weir_demo::ending::tell;
use weir_origin::{Keys, Signer};

use super::Bucket;
use crate::http::Http;
use crate::process::{Process, free_port};
use crate::readers::{object_path, pass};
use crate::wait::wait_for;

/// The key of a server that lives as long as a measurement, on loopback.
const USER: &str = "weir-bench";
const SECRET: &str = "weir-bench-secret";
const REGION: &str = "us-east-1";
/// Objects that are put at once.
const UPLOADS: usize = 8;

/// Longest wait until keys are accepted, and what MinIO answers before.
const USERS_DEADLINE: Duration = Duration::from_secs(20);
const NOT_YET: &str = "XMinioServerNotInitialized";

/// A running MinIO. It ends when it goes out of scope.
pub struct Minio {
    _process: Process,
    endpoint: String,
}

impl Minio {
    /// Starts MinIO on `dir` and puts what is missing into its buckets.
    pub fn start(dir: &Path, buckets: &[Bucket<'_>]) -> anyhow::Result<Self> {
        let data = dir.join("data");
        std::fs::create_dir_all(&data)?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let mut command = Command::new(binary()?);
        command
            .args(["server", "--quiet", "--address", &address])
            .arg(&data)
            .env("HOME", dir)
            .env("MINIO_ROOT_USER", USER)
            .env("MINIO_ROOT_PASSWORD", SECRET)
            .env("MINIO_BROWSER", "off")
            .env("MINIO_CI_CD", "1") // takes a directory on the system's disk
            .env("MINIO_UPDATE", "off");
        let endpoint = format!("http://{address}");
        let log = dir.join("minio.log");
        let process = Process::start(command, &log, || is_ready(&endpoint))?;
        let server = Self {
            _process: process,
            endpoint,
        };
        for bucket in buckets {
            server
                .fill(dir, bucket)
                .with_context(|| format!("cannot fill the bucket {}", bucket.name))?;
        }
        Ok(server)
    }

    /// Its URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Makes a bucket and puts all its objects, unless an earlier run has done so with the same data.
    fn fill(&self, dir: &Path, bucket: &Bucket<'_>) -> anyhow::Result<()> {
        let complete = dir.join(format!("{}.complete", bucket.name));
        let made = std::fs::metadata(&bucket.tree.root)?.modified()?;
        let (files, bytes) = (bucket.tree.files.len(), bucket.tree.bytes);
        let what = format!("{files} objects, {bytes} bytes, from {made:?}");
        if std::fs::read_to_string(&complete).is_ok_and(|found| found == what) {
            return Ok(());
        }
        let _ = std::fs::remove_file(&complete);
        let old = dir.join("data").join(bucket.name);
        ensure!(
            !old.exists(),
            "it holds other data; remove {} and start again",
            dir.display()
        );
        tell(format_args!("putting {files} objects into MinIO"));
        // Users are loaded a moment later than buckets.
        wait_for("MinIO's users", USERS_DEADLINE, || {
            match self.signed_put(&format!("/{}", bucket.name), String::new()) {
                Err(error) if format!("{error:#}").contains(NOT_YET) => Ok(None),
                done => done.map(Some),
            }
        })?;
        self.signed_put(&format!("/{}?policy", bucket.name), policy(bucket.name))?;
        let connect = || Http::connect(&self.endpoint);
        pass(&bucket.tree.files, 1, UPLOADS, connect, |http, file| {
            let body = File::open(bucket.tree.root.join(file))?;
            let length = body.metadata()?.len();
            http.put(&object_path(bucket.name, file), "", body, length)?;
            Ok(length)
        })?;
        Ok(std::fs::write(&complete, what)?)
    }

    fn signed_put(&self, path: &str, body: String) -> anyhow::Result<()> {
        let keys = Keys {
            access_key: USER.to_owned(),
            secret_key: SECRET.to_owned(),
            token: None,
        };
        let signer = Signer {
            keys: &keys,
            service: "s3",
            region: REGION,
        };
        let uri: Uri = format!("{}{path}", self.endpoint).parse()?;
        let mut signed = HeaderMap::new();
        signer.sign(&Method::PUT, &uri, &mut signed, body.as_bytes())?;
        let mut headers = String::new();
        for (name, value) in &signed {
            headers.extend([name.as_str(), ": ", value.to_str()?, "\r\n"]);
        }
        let length = body.len() as u64;
        Http::connect(&self.endpoint)?.put(path, &headers, body.as_bytes(), length)
    }
}

/// Everybody may list, read and write, so that neither the raw client nor a mount needs keys.
fn policy(bucket: &str) -> String {
    serde_json::json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Allow",
            "Principal": {"AWS": ["*"]},
            "Action": ["s3:GetBucketLocation", "s3:ListBucket", "s3:GetObject", "s3:PutObject"],
            "Resource": [format!("arn:aws:s3:::{bucket}"), format!("arn:aws:s3:::{bucket}/*")],
        }],
    })
    .to_string()
}

/// MinIO listens before it can work, and says so with 503. Then it refuses a list of buckets to everybody.
fn is_ready(endpoint: &str) -> bool {
    let status = Http::connect(endpoint).and_then(|http| http.status("/"));
    status.is_ok_and(|status| status == 403)
}

/// Where `make bench` puts it, or wherever the shell finds one.
fn binary() -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("WEIR_BUILD_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/weir-build")));
    let installed = cache.map(|cache| cache.join("bin/minio"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("minio"));
    installed
        .into_iter()
        .chain(found)
        .find(|path| path.is_file())
        .context("minio is not installed; run `make bench`, or use --server builtin")
}
