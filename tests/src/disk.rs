//! A disk that fails on demand: a FUSE file system of the test's own process, which passes what is asked of it on to a
//! directory, or answers with an error, late, or not at all.

mod files;
mod passed_on;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{Errno, MountOption};
use parking_lot::Mutex;
use rustix::mount::UnmountFlags;

use self::passed_on::PassedOn;

/// A file system at [`FaultyDisk::dir`], until it is dropped.
pub struct FaultyDisk {
    dir: PathBuf,
    shared: Arc<Shared>,
    /// Serves it until the last file is closed.
    _session: fuser::BackgroundSession,
}

/// What goes wrong with requests to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskFault {
    /// Nothing.
    #[default]
    None,
    /// They are answered with this error's number.
    Error(i32),
    /// They are answered so much later.
    Slow(Duration),
    /// They get no answer until the disk is healed.
    Hang,
}

impl DiskFault {
    /// As a disk that cannot read or write a sector.
    pub const BROKEN: Self = Self::Error(rustix::io::Errno::IO.raw_os_error());
    /// As a disk without space.
    pub const FULL: Self = Self::Error(rustix::io::Errno::NOSPC.raw_os_error());
}

#[derive(Default)]
struct Shared {
    faults: Mutex<Faults>,
}

#[derive(Default)]
struct Faults {
    reads: DiskFault,
    /// Of writes, and of whatever else changes the disk.
    writes: DiskFault,
    happened: usize,
    /// Requests that wait for the disk to be healed.
    hung: Vec<Box<dyn FnOnce() + Send>>,
}

impl FaultyDisk {
    /// A disk at `dir`, whose files are in the directory `files`. Both are made.
    pub fn new(dir: PathBuf, files: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        std::fs::create_dir_all(files)?;
        let shared = Arc::<Shared>::default();
        let passed_on = PassedOn::new(files, shared.clone());
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("weir-test-disk".to_owned())];
        let session = fuser::spawn_mount(passed_on, &dir, &config)?;
        Ok(Self {
            dir,
            shared,
            _session: session,
        })
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What becomes of all reads and all writes from now on. What hung before goes on.
    pub fn fail(&self, reads: DiskFault, writes: DiskFault) {
        let hung = {
            let mut faults = self.shared.faults.lock();
            (faults.reads, faults.writes) = (reads, writes);
            std::mem::take(&mut faults.hung)
        };
        for go_on in hung {
            go_on();
        }
    }

    /// Nothing fails or hangs any more.
    pub fn heal(&self) {
        self.fail(DiskFault::None, DiskFault::None);
    }

    /// How many requests have failed or hung so far.
    pub fn happened(&self) -> usize {
        self.shared.faults.lock().happened
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.heal();
        let dir = CString::new(self.dir.as_os_str().as_bytes()).unwrap();
        // Those that still have files of it open may close them.
        let _ = rustix::mount::unmount(dir.as_c_str(), UnmountFlags::DETACH);
    }
}

impl Shared {
    /// The error of a request that changes the disk, if it has one. Such requests do not hang.
    fn refusal(&self) -> Option<io::Error> {
        let mut faults = self.faults.lock();
        let DiskFault::Error(number) = faults.writes else {
            return None;
        };
        faults.happened += 1;
        Some(io::Error::from_raw_os_error(number))
    }

    /// Does what a request to read or write asks for, or what the fault of its kind says.
    fn answer<R: Send + 'static>(
        &self,
        kind: impl FnOnce(&Faults) -> DiskFault,
        reply: R,
        refuse: impl FnOnce(R, Errno),
        act: impl FnOnce(R) + Send + 'static,
    ) {
        let mut faults = self.faults.lock();
        let fault = kind(&faults);
        if fault != DiskFault::None {
            faults.happened += 1;
        }
        match fault {
            DiskFault::None => {
                drop(faults);
                act(reply);
            }
            DiskFault::Error(number) => refuse(reply, Errno::from_i32(number)),
            DiskFault::Slow(late) => {
                drop(faults);
                // The kernel has a bound on requests that are under way.
                std::thread::spawn(move || {
                    std::thread::sleep(late);
                    act(reply);
                });
            }
            DiskFault::Hang => faults.hung.push(Box::new(move || act(reply))),
        }
    }
}
