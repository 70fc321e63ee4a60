//! The program that a profile names to get keys from (`credential_process`).
//!
//! It gets no input, and a deadline after which it is killed with all that it has started.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::signature::Keys;
use crate::error::OriginError;
use crate::transport::time;

/// Longest time that a program may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(15);
/// Longest output, in bytes.
const MAX_OUTPUT: u64 = 64 << 10;

/// A program, and the profile that names it.
pub(crate) struct Helper {
    profile: String,
    command: String,
    deadline: Duration,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Output {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<String>,
}

impl Helper {
    pub(super) fn new(profile: &str, command: &str, deadline: Duration) -> Self {
        Self {
            profile: profile.to_owned(),
            command: command.to_owned(),
            deadline,
        }
    }

    /// Runs it. Gives the keys, and how long they live if it says so; those that have expired are an error.
    pub(super) async fn run(
        &self,
        origin: &Arc<str>,
    ) -> Result<(Keys, Option<Duration>), OriginError> {
        // Arguments can be secrets.
        let program = self.command.split_whitespace().next().unwrap_or_default();
        let failed = |what: String| OriginError::AccessDenied {
            target: origin.clone(),
            detail: format!(
                "the credential_process {program:?} of profile {:?} {what}",
                self.profile
            ),
            remedy: "run it by hand to see why",
        };
        let mut child = Command::new("sh")
            .args(["-c", &self.command])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(format!("cannot be started: {error}")))?;
        // Also when nobody waits any more.
        let group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
        let mut output = Vec::new();
        let ended = timeout(self.deadline, async {
            if let Some(stdout) = child.stdout.take() {
                stdout.take(MAX_OUTPUT).read_to_end(&mut output).await?;
            }
            child.wait().await
        })
        .await;
        if ended.is_ok() {
            group.has_ended();
        } else {
            drop(group);
            let _ = timeout(Duration::from_secs(1), child.wait()).await;
        }
        let status = ended
            .map_err(|_| {
                failed(format!(
                    "did not end within {:?} and was killed",
                    self.deadline
                ))
            })?
            .map_err(|error| failed(format!("cannot be read: {error}")))?;
        if !status.success() {
            return Err(failed(format!("failed: {status}")));
        }
        let output: Output = serde_json::from_slice(&output)
            .map_err(|_| failed("did not print the JSON that AWS documents".to_owned()))?;
        let life = output.expiration.as_deref().and_then(time::left);
        if life == Some(Duration::ZERO) {
            let when = output.expiration.unwrap_or_default();
            return Err(failed(format!(
                "printed keys that expired at {}, by this machine's clock",
                when.trim()
            )));
        }
        let keys = Keys {
            access_key: output.access_key_id,
            secret_key: output.secret_access_key,
            token: output.session_token,
        };
        Ok((keys, life))
    }
}

/// The processes of a program that runs; killed when it goes out of scope.
struct Group(Option<Pid>);

impl Group {
    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_its_children_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let command = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
        let helper = Helper::new("work", &command, Duration::from_secs(2));
        let error = helper
            .run(&"s3://b".into())
            .await
            .err()
            .unwrap()
            .to_string();
        for said in ["\"work\"", "\"sleep\"", "2s", "killed", "s3://b"] {
            assert!(error.contains(said), "{error}");
        }
        assert!(!error.contains("1000"), "{error}");
        let child = std::fs::read_to_string(pid_file).unwrap();
        let stat = format!("/proc/{}/stat", child.trim());
        let lives = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        for _ in 0..1000 {
            if !lives() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("its child lives");
    }

    #[tokio::test]
    async fn endless_output_and_output_that_is_no_json_are_errors() {
        for command in ["yes", "echo hello", "true"] {
            let helper = Helper::new("work", command, Duration::from_mins(1));
            let error = helper
                .run(&"s3://b".into())
                .await
                .err()
                .unwrap()
                .to_string();
            assert!(error.contains("work"), "{error}");
        }
    }

    #[tokio::test]
    async fn keys_come_with_the_time_that_they_live() {
        let json = r#"{"Version":1,"AccessKeyId":"F","SecretAccessKey":"G","SessionToken":"T","Expiration":"2999-01-01T00:00:00Z"}"#;
        let helper = Helper::new("work", &format!("echo '{json}'"), DEADLINE);
        let (keys, life) = helper.run(&"s3://b".into()).await.ok().unwrap();
        assert_eq!((&*keys.access_key, &*keys.secret_key), ("F", "G"));
        assert_eq!(life, None, "the year is past what 64 bits hold");
        let helper = Helper::new(
            "work",
            &format!("echo '{}'", json.replace("2999", "2200")),
            DEADLINE,
        );
        let (keys, life) = helper.run(&"s3://b".into()).await.ok().unwrap();
        assert_eq!(keys.token.as_deref(), Some("T"));
        assert!(life.unwrap() > Duration::from_hours(24));
        let expired = json.replace("2999", "1999");
        let helper = Helper::new("work", &format!("echo '{expired}'"), DEADLINE);
        let error = helper.run(&"s3://b".into()).await.err().unwrap();
        assert_eq!(error.kind(), "access_denied");
        let error = error.to_string();
        assert!(
            error.contains("expired at 1999-01-01") && error.contains("\"work\""),
            "{error}"
        );
    }
}
