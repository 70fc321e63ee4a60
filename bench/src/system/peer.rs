//! Other programs that mount a bucket, started by a command line.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::ensure;
use weir_demo::ending::{Entry, making};

use crate::kernel::is_mountpoint;
use crate::process::{Process, forget_settings};

/// The programs that are measured where they are installed.
const KNOWN: [(&str, &str); 2] = [
    (
        "rclone",
        "rclone mount :s3:{bucket} {dir} --read-only --vfs-cache-mode full --cache-dir {cache} \
         --s3-provider Minio --s3-endpoint {endpoint} --config /dev/null",
    ),
    (
        "s3fs",
        "s3fs {bucket} {dir} -f -o ro -o url={endpoint} -o use_path_request_style -o public_bucket=1 \
         -o use_cache={cache}",
    ),
];

/// A program that stays in the foreground and mounts `{bucket}` of `{endpoint}` at `{dir}`, with its cache in
/// `{cache}`. Written `NAME=COMMAND`; the command is split at blanks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCommand {
    /// Its name in tables.
    pub name: String,
    command: String,
}

impl FromStr for PeerCommand {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, command)) if !name.is_empty() && command.contains("{dir}") => Ok(Self {
                name: name.to_owned(),
                command: command.to_owned(),
            }),
            _ => Err("write NAME=COMMAND with {dir}, {bucket}, {endpoint} and {cache}".to_owned()),
        }
    }
}

impl PeerCommand {
    /// rclone and s3fs.
    pub fn known() -> Vec<Self> {
        let known = KNOWN.iter().map(|(name, command)| Self {
            name: (*name).to_owned(),
            command: (*command).to_owned(),
        });
        known.collect()
    }

    /// Whether its program is on the path.
    pub fn is_installed(&self) -> bool {
        let Some(program) = self.command.split_whitespace().next() else {
            return false;
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
    }

    /// The command with the places filled in; a path may hold blanks.
    fn arguments(&self, places: &[(&str, String)]) -> Vec<String> {
        let words = self.command.split_whitespace();
        words
            .map(|word| {
                places.iter().fold(word.to_owned(), |word, (name, value)| {
                    word.replace(name, value)
                })
            })
            .collect()
    }
}

/// A running one. It is unmounted when it goes out of scope.
pub struct Peer {
    process: Process,
    dir: PathBuf,
    _entry: Entry,
}

impl Peer {
    /// Starts it and waits until it has mounted.
    pub fn start(
        peer: &PeerCommand,
        dir: &Path,
        home: &Path,
        endpoint: &str,
        bucket: &str,
    ) -> anyhow::Result<Self> {
        let cache = home.join("cache");
        std::fs::create_dir_all(&cache)?;
        std::fs::create_dir_all(dir)?;
        let arguments = peer.arguments(&[
            ("{dir}", dir.display().to_string()),
            ("{cache}", cache.display().to_string()),
            ("{endpoint}", endpoint.to_owned()),
            ("{bucket}", bucket.to_owned()),
        ]);
        let mut words = arguments.iter();
        let mut command = Command::new(words.next().map_or("", String::as_str));
        command.args(words).env("HOME", home);
        forget_settings(&mut command, "AWS_");
        let process = Process::start(command, &home.join("log"), || is_mountpoint(dir))?;
        let mounted = dir.to_owned();
        let unmount = move || crate::kernel::unmount_below(&mounted);
        Ok(Self {
            process,
            dir: dir.to_owned(),
            _entry: making().enter(unmount),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Unmounts and waits for its end.
    pub fn end(mut self) -> anyhow::Result<()> {
        let status = Command::new("fusermount3")
            .arg("-u")
            .arg(&self.dir)
            .status()?;
        ensure!(status.success(), "fusermount3 failed: {status}");
        self.process.wait()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if is_mountpoint(&self.dir) {
            crate::kernel::unmount_below(&self.dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_filled_in_after_the_command_is_split() {
        let peer: PeerCommand = "x=run {dir} --url={endpoint}/{bucket}".parse().unwrap();
        let places = [
            ("{dir}", "/a b".to_owned()),
            ("{endpoint}", "http://h".to_owned()),
            ("{bucket}", "c".to_owned()),
        ];
        assert_eq!(peer.arguments(&places), ["run", "/a b", "--url=http://h/c"]);
        assert!("x=run".parse::<PeerCommand>().is_err());
    }
}
