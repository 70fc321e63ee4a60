//! How a pod that holds mounts ends: when the other pod of its node holds them, too, and one of the two at a time.
//!
//! Both may be told to end at once, as when both DaemonSets are rolled with one command. Each would see that the other one holds all
//! mounts, and then none would. So who ends has a lock, which its death releases; and whoever gets it then looks for long enough to see
//! what became of the mounts that the one before has served.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use weir_mount::runtime::{self, MountInfo};

/// Longest wait for the other pod. Kubelet waits longer than this, and than the hook before it.
const DEADLINE: Duration = Duration::from_secs(20);
/// Between two looks.
const POLL: Duration = Duration::from_millis(50);
/// All mounts must be held for so long: processes of a pod that has just ended may be seen for a moment more.
const SURE: Duration = Duration::from_millis(500);

/// The mounts that two pods are to hold.
fn shared() -> impl Iterator<Item = MountInfo> {
    let mounts = runtime::list().into_iter();
    mounts.filter(|mount| mount.has_peer && !mount.detached)
}

/// The first mount that one pod alone holds.
pub(super) fn held_alone() -> Option<MountInfo> {
    shared().find(|mount| !mount.held_elsewhere)
}

/// Whether some mount is lost if the pods that are seen to hold it are gone: what is written of it may be by one that is dead. One
/// that is being taken over has readers that wait, who would wait for the next one, too.
fn is_needed() -> bool {
    shared().any(|mount| !mount.held_elsewhere || !mount.is_served || !runtime::answers(&mount))
}

/// Waits until this pod may end, for a bounded time. `dir` is the directory that both pods share. Blocks.
pub(super) fn wait(dir: &Path) {
    let until = Instant::now() + DEADLINE;
    let lock = match File::create(dir.join("leaving.lock")) {
        Ok(lock) => lock,
        Err(error) => {
            tracing::warn!(dir = %dir.display(), "the other pod is not waited for: {error}");
            return;
        }
    };
    let mut locked = false;
    let mut held_since = None;
    while Instant::now() < until {
        locked = locked || flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if !locked || is_needed() {
            held_since = None;
        } else if held_since.get_or_insert_with(Instant::now).elapsed() >= SURE {
            break;
        }
        std::thread::sleep(POLL);
    }
    if held_since.is_none() {
        tracing::warn!("this pod ends though the other one does not hold all mounts");
    }
    // The end of this process releases it.
    std::mem::forget(lock);
}
