//! The scratch world of one test.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;
use weir_s3_server::{Config, S3Server};

use crate::comes_true;

/// The bucket that most tests use.
pub const BUCKET: &str = "bucket";
/// What the variables begin with that say where data is and with which keys it is read.
const FOREIGN: [&str; 8] = [
    "AWS_",
    "WEIR_",
    "OSS_",
    "ALIBABA_CLOUD_",
    "GOOGLE_",
    "AZURE_",
    "STORAGE_EMULATOR_HOST",
    "CLOUDSDK_CONFIG",
];
/// Longest time that any command may take.
const COMMAND_DEADLINE: Duration = Duration::from_mins(2);

/// A directory, an S3 server, and an environment that knows nothing of the machine's own settings.
pub struct Lab {
    dir: TempDir,
    /// The S3 server; open to everybody, if nothing else was said.
    pub s3: S3Server,
    binary: Mutex<PathBuf>,
    env: Vec<(String, String)>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; -1 when it was killed.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Outcome {
    /// The output of a command that must have worked.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// The message of a command that must have failed with `code`.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        self.stderr
    }
}

impl Lab {
    /// A world with an empty bucket.
    pub fn new() -> Self {
        Self::with(Config::default())
    }

    /// The same, with an S3 server that is set up so.
    pub fn with(config: Config) -> Self {
        let s3 = S3Server::start(config).unwrap();
        s3.edit(BUCKET, |_| ());
        Self {
            dir: tempfile::Builder::new().prefix("weir-").tempdir().unwrap(),
            s3,
            binary: Mutex::new(built_binary()),
            env: Vec::new(),
        }
    }

    /// A path in the scratch directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Another `weir` binary for what comes next.
    pub fn use_binary(&self, path: &Path) {
        path.clone_into(&mut self.binary.lock());
    }

    /// The binary under test.
    pub fn binary(&self) -> PathBuf {
        self.binary.lock().clone()
    }

    /// Sets a variable for all commands to come.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// The URL of the bucket, or of a prefix in it.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// Puts objects into the bucket.
    pub fn put_all(&self, files: &BTreeMap<String, Vec<u8>>) {
        self.s3.edit(BUCKET, |bucket| {
            for (key, content) in files {
                bucket.put(key.as_str(), content.clone());
            }
        });
    }

    /// Flags for mounts and datasets that read the lab's S3 server.
    pub fn origin_flags(&self) -> [String; 3] {
        [
            "--endpoint".to_owned(),
            self.s3.endpoint(),
            "--anonymous".to_owned(),
        ]
    }

    /// A command of the binary under test, with the lab's environment.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(self.binary());
        command.args(args);
        self.set_environment(&mut command);
        command
    }

    /// Gives a command the lab's environment.
    pub fn set_environment(&self, command: &mut Command) {
        for (name, _) in std::env::vars()
            .filter(|(name, _)| FOREIGN.iter().any(|prefix| name.starts_with(prefix)))
        {
            command.env_remove(name);
        }
        command
            .env("HOME", self.dir.path())
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("WEIR_RUNTIME_DIR", self.path("run"))
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
    }

    /// Runs the binary and waits for its end.
    #[track_caller]
    pub fn weir<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome {
        finish(self.command(args))
    }

    /// Runs the binary with this standard input, of at most 64 KiB, and waits for its end.
    #[track_caller]
    pub fn weir_with_input<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: &[u8],
    ) -> Outcome {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(input).unwrap(); // a pipe holds as much
        drop(writer);
        let mut command = self.command(args);
        command.stdin(reader);
        finish(command)
    }

    /// Runs a command and waits for its end.
    #[track_caller]
    pub fn run(&self, command: Command) -> Outcome {
        finish(command)
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs a command to its end; kills it when that takes too long.
#[track_caller]
pub(crate) fn finish(mut command: Command) -> Outcome {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            pipe.map(|mut pipe| pipe.read_to_end(&mut text));
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let stdout = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let stderr = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let mut status = None;
    let ended = comes_true(COMMAND_DEADLINE, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    if !ended {
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("{command:?} took longer than {COMMAND_DEADLINE:?}");
    }
    Outcome {
        code: status.and_then(|status| status.code()).unwrap_or(-1),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

/// `target/debug/weir` beside the running test.
fn built_binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("weir");
    assert!(
        path.exists(),
        "{} is missing: run `make test`, or `cargo build --workspace --bin weir` first",
        path.display()
    );
    path
}
