//! Another user of this machine.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

use crate::lab::{Lab, Outcome};

/// The user nobody, and its group.
const NOBODY: u32 = 65534;

/// Whether this process may act as another user; it says so if it may not.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        // Nobody may read it.
        let _ = writeln!(
            std::io::stderr(),
            "not root: nothing is tried as another user"
        );
    }
    is_root
}

/// Does something on a thread of the user nobody. `None` where this is not root, who alone can.
pub fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    if !is_root() {
        return None;
    }
    let nobody = Uid::from_raw(NOBODY);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Of this thread alone, which ends with the work.
            set_thread_res_uid(nobody, nobody, nobody).unwrap();
            work()
        });
        Some(thread.join().unwrap())
    })
}

impl Lab {
    /// Runs the binary as the user nobody, with the lab's environment. `None` where this is not root, who alone can.
    #[track_caller]
    pub fn weir_as_nobody<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Option<Outcome> {
        if !is_root() {
            return None;
        }
        // The binary may lie where nobody may not look.
        let binary = self.path("weir-of-nobody");
        if !binary.exists() {
            // By another process: what this one has open for writing, a fork of another test's may have open, too, and then it
            // cannot be run.
            let mut copy = Command::new("cp");
            copy.args([self.binary(), binary.clone()]);
            self.run(copy).ok();
            for path in [&self.path(""), &binary] {
                std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
            }
        }
        let mut command = Command::new(&binary);
        command.args(args);
        self.set_environment(&mut command);
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        Some(self.run(command))
    }
}
