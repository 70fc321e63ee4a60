//! `weir-s3-server`: serves directories as they are, or objects that nobody had to make.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;

use crate::ending::{Entry, end_child, making};
use crate::process::binary;

/// A running `weir-s3-server`. It ends when it goes out of scope.
pub struct Builtin {
    child: Child,
    _entry: Entry,
    /// Its URL.
    pub endpoint: String,
}

impl Builtin {
    /// Serves directories as buckets. Its answers come `latency` milliseconds late.
    pub fn start<'a>(
        buckets: impl IntoIterator<Item = (&'a str, &'a Path)>,
        latency: u64,
    ) -> anyhow::Result<Self> {
        let dirs = buckets.into_iter().flat_map(|(name, path)| {
            let mut bucket = OsString::from(format!("{name}="));
            bucket.push(path);
            [OsString::from("--dir"), bucket]
        });
        let latency = ["--latency".into(), latency.to_string().into()];
        Self::run(dirs.chain(latency))
    }

    /// Serves a bucket of `count` objects that are made up when they are asked for.
    pub fn generated(bucket: &str, count: u64) -> anyhow::Result<Self> {
        Self::run(["--generated".into(), format!("{bucket}={count}").into()])
    }

    fn run(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<Self> {
        let making = making();
        let mut child = Command::new(binary("weir-s3-server")?)
            .args(["--listen", "127.0.0.1:0"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let (stdout, pid) = (child.stdout.take(), child.id());
        let mut server = Self {
            child,
            _entry: making.enter(move || {
                end_child(pid);
            }),
            endpoint: String::new(),
        };
        // It says where it listens, or ends, which closes the pipe.
        let mut line = String::new();
        BufReader::new(stdout.context("no output")?).read_line(&mut line)?;
        let endpoint = line
            .split_whitespace()
            .find(|word| word.starts_with("http://"))
            .map(str::to_owned);
        server.endpoint = endpoint.with_context(|| format!("the S3 server said {line:?}"))?;
        Ok(server)
    }
}

impl Drop for Builtin {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing else to do about it here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
