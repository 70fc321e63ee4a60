//! A Kubernetes of real nodes on this machine, as `build-support/kubernetes/lab.sh` makes it.

use std::io::PipeWriter;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use weir_demo::ending::tell;
use weir_tests::{Lab, Outcome, wait_until};

/// The address of the first node, which every pod reaches.
pub(crate) const FIRST_NODE: &str = "10.99.0.1";

/// A cluster that runs until it is dropped, or this process ends in any way.
pub(crate) struct Cluster {
    /// The scratch directory; its own S3 server is not in the cluster's network.
    pub(crate) scratch: Lab,
    script: PathBuf,
    /// The lab ends when nobody holds this end.
    _tie: PipeWriter,
}

impl Cluster {
    /// Starts one with so many nodes: `node-1`, `node-2`…
    pub(crate) fn up(nodes: usize) -> Self {
        let scratch = Lab::new();
        let script = root().join("build-support/kubernetes/lab.sh");
        let (reader, tie) = std::io::pipe().unwrap();
        let cluster = Self {
            scratch,
            script,
            _tie: tie,
        };
        let mut command = cluster.command(&["up", &nodes.to_string()]);
        command.env("WEIR_LAB_TIED", "1").stdin(reader);
        cluster.scratch.run(command).ok();
        cluster
    }

    /// A command of the lab's script.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.script);
        command.args(args).env("WEIR_LAB", self.scratch.path("lab"));
        command
    }

    /// Runs one to its end.
    #[track_caller]
    pub(crate) fn lab(&self, args: &[&str]) -> Outcome {
        self.scratch.run(self.command(args))
    }

    /// Runs a program of this machine on the first node, in the cluster's network.
    #[track_caller]
    pub(crate) fn exec(&self, args: &[&str]) -> Outcome {
        self.lab(&[&["exec"], args].concat())
    }

    /// Runs a program of this machine on a node: 1, 2…
    #[track_caller]
    pub(crate) fn on(&self, node: usize, args: &[&str]) -> Outcome {
        self.lab(&[&["on", &node.to_string()], args].concat())
    }

    /// Runs kubectl as the cluster's administrator.
    #[track_caller]
    pub(crate) fn kubectl(&self, args: &[&str]) -> Outcome {
        self.lab(&[&["kubectl"], args].concat())
    }

    /// Applies manifests.
    #[track_caller]
    pub(crate) fn apply(&self, manifests: &str) {
        let path = self.scratch.path("manifests.yaml");
        std::fs::write(&path, manifests).unwrap();
        self.kubectl(&["apply", "-f", path.to_str().unwrap()]).ok();
    }

    /// An object, or a list of them.
    #[track_caller]
    pub(crate) fn get(&self, args: &[&str]) -> Value {
        let all = [&["get", "-o", "json"], args].concat();
        serde_json::from_str(&self.kubectl(&all).ok()).unwrap()
    }

    /// Waits until a pod has ended well; gives its log.
    #[track_caller]
    pub(crate) fn wait_for_end(&self, pod: &str) -> String {
        let mut phase = String::new();
        wait_until(&format!("{pod} ends"), Duration::from_secs(100), || {
            let found = self.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.phase}"]);
            phase = found.ok();
            phase == "Succeeded" || phase == "Failed"
        });
        let log = self.kubectl(&["logs", pod]).ok();
        assert_eq!(phase, "Succeeded", "{pod}: {log}");
        log
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let outcome = self.lab(&["down"]);
        if outcome.code != 0 {
            tell(format_args!(
                "the lab was not taken down: {}",
                outcome.stderr
            ));
        }
    }
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap().to_owned()
}
