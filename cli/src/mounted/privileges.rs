//! A mount is made with privileges, and served without: whatever a reader or a lying peer could bring a server to do, it can do no more than
//! its user.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use weir_mount::supervisor::UNPRIVILEGED_VARIABLE;

/// Has this program begin again without privileges if it has some and is to have none. It goes on only where there is nothing to give up.
///
/// # Errors
/// Why it cannot; then it must not go on.
pub(super) fn begin_without() -> io::Result<()> {
    if std::env::var_os(UNPRIVILEGED_VARIABLE).is_none() || !has_some()? {
        return Ok(());
    }
    give_up()?;
    // Each thread has its own, and the allocator has started some before this could be called.
    let mut args = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(args.next().unwrap_or_default()).args(args);
    Err(command.env_remove(UNPRIVILEGED_VARIABLE).exec())
}

fn has_some() -> io::Result<bool> {
    Ok(!capabilities(None)?.permitted.is_empty())
}

/// Gives up all privileges of this thread, and of what it starts, for good.
fn give_up() -> io::Result<()> {
    set_no_new_privs(true)?;
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // The kernel knows no more of them.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    Ok(set_capabilities(None, sets)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_them() {
        // Only root has them to give up.
        if !has_some().unwrap() {
            return;
        }
        // Of a thread of its own, which ends with it.
        let thread = std::thread::spawn(|| {
            give_up().unwrap();
            assert!(!has_some().unwrap());
            std::fs::read_to_string("/proc/thread-self/status").unwrap()
        });
        let status = thread.join().unwrap();
        for (name, value) in [
            ("CapInh", 0),
            ("CapPrm", 0),
            ("CapEff", 0),
            ("CapBnd", 0),
            ("CapAmb", 0),
            ("NoNewPrivs", 1),
        ] {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            let found = line.split_whitespace().nth(1).unwrap();
            assert_eq!(u64::from_str_radix(found, 16), Ok(value), "{line}");
        }
    }
}
