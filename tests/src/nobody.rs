//! Another user of this machine.

use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

/// The user nobody.
const NOBODY: u32 = 65534;

/// Does something on a thread of the user nobody. `None` where this is not root, who alone can.
pub fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: nothing is tried as another user");
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
