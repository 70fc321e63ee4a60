//! What is ended when the program is interrupted: a signal runs no destructor.
//!
//! Whatever would outlive the program is entered here when it is made, and leaves when it was ended as usual. SIGINT,
//! SIGTERM and SIGHUP end what is entered, the newest first, and then the program.

use std::fmt::Arguments;
use std::future::poll_fn;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::signal::unix::{SignalKind, signal};

use crate::wait::wait_for;

/// Longest wait for a process to end after it was told to.
pub(crate) const END_DEADLINE: Duration = Duration::from_secs(10);

/// Signals that follow the first one within this time say the same again: timeout(1) tells the program and then its process
/// group, make(1) both, and of a terminal that closes the kernel and the shell tell.
const SAME_REQUEST: Duration = Duration::from_secs(2);

type End = Box<dyn FnOnce() + Send>;

/// What is entered.
struct Entries {
    next: u64,
    ends: Vec<(u64, End)>,
    /// The program ends: nothing is made any more.
    interrupted: bool,
}

static ENTRIES: Mutex<Entries> = Mutex::new(Entries {
    next: 0,
    ends: Vec::new(),
    interrupted: false,
});

/// The entries; of a program that is being ended never, since whoever asks must not go on.
fn entries() -> MutexGuard<'static, Entries> {
    let entries = ENTRIES.lock().unwrap_or_else(PoisonError::into_inner);
    if entries.interrupted {
        drop(entries);
        loop {
            std::thread::park();
        }
    }
    entries
}

/// Something is being made that will have to be ended; nothing is ended meanwhile.
pub struct Making(MutexGuard<'static, Entries>);

/// Begins to make something. Does not come back if the program is being ended.
pub fn making() -> Making {
    Making(entries())
}

impl Making {
    /// It is made. `end` ends it if the program is interrupted before the entry is dropped.
    pub fn enter(mut self, end: impl FnOnce() + Send + 'static) -> Entry {
        let number = self.0.next;
        self.0.next += 1;
        self.0.ends.push((number, Box::new(end)));
        Entry(number)
    }
}

/// Something that is to be ended; dropped when it has been.
#[derive(Debug)]
pub struct Entry(u64);

impl Drop for Entry {
    fn drop(&mut self) {
        entries().ends.retain(|(number, _)| *number != self.0);
    }
}

/// Tells whoever looks, on standard error. That nobody can read it any more ends nothing.
pub fn tell(text: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Tells a child of this process to end, and kills it if it does not; gives whether it ended when it was told to.
pub fn end_child(pid: u32) -> bool {
    let Some(pid) = Pid::from_raw(pid.cast_signed()) else {
        return true;
    };
    // An error is that it is gone.
    let gone = || !matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None));
    let _ = kill_process(pid, Signal::TERM);
    let ended = wait_for("its end", END_DEADLINE, || Ok(gone().then_some(())));
    if ended.is_err() {
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
    ended.is_ok()
}

fn end_all() {
    let mut entries = entries();
    entries.interrupted = true;
    let ends = std::mem::take(&mut entries.ends);
    drop(entries);
    for (_, end) in ends.into_iter().rev() {
        end();
    }
}

/// Has signals end what is entered, and then the program. Another signal 2 s later or more ends it at once. SIGHUP stays ignored
/// where it is, as under nohup(1).
///
/// # Errors
/// When the signals cannot be waited for.
pub fn on_signals() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let guard = runtime.enter();
    let mut signals = Vec::new();
    let hangup = SignalKind::hangup();
    let heeded = (!is_ignored(hangup)).then_some(hangup);
    for kind in [SignalKind::interrupt(), SignalKind::terminate()]
        .into_iter()
        .chain(heeded)
    {
        signals.push((kind.as_raw_value(), signal(kind)?));
    }
    drop(guard);
    std::thread::spawn(move || {
        let code = runtime.block_on(async {
            let number = next(&mut signals).await;
            tell(format_args!("interrupted: what was started is ended"));
            let ended = tokio::task::spawn_blocking(end_all);
            tokio::select! {
                _ = ended => {}
                () = next_request(&mut signals) => {}
            }
            128 + number
        });
        std::process::exit(code)
    });
    Ok(())
}

/// Whether this process was started to ignore a signal.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (kind.as_raw_value() - 1) & 1 == 1)
}

/// The number of the next signal that comes.
async fn next(signals: &mut [(i32, tokio::signal::unix::Signal)]) -> i32 {
    poll_fn(|context| {
        let came = signals
            .iter_mut()
            .find_map(|(number, signal)| signal.poll_recv(context).is_ready().then_some(*number));
        came.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Waits for a signal of somebody who sees that the program has not ended yet.
async fn next_request(signals: &mut [(i32, tokio::signal::unix::Signal)]) {
    let first = Instant::now();
    loop {
        next(signals).await;
        if first.elapsed() >= SAME_REQUEST {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    #[allow(clippy::zombie_processes, reason = "what is tested waits for it")]
    fn what_is_entered_is_ended_from_the_newest_and_nothing_is_made_after_that() {
        let (send, ended) = channel();
        let enter = |name: &'static str| {
            let send = send.clone();
            making().enter(move || send.send(name).unwrap())
        };
        let first = enter("server");
        drop(enter("ended as usual"));
        let second = enter("mount");
        // A process that lasts, and one that is not there any more.
        let mut child = std::process::Command::new("sleep");
        let child = child.arg("600").spawn().unwrap();
        let pid = child.id();
        let third = making().enter(move || assert!(end_child(pid)));
        end_all();
        assert_eq!(ended.try_iter().collect::<Vec<_>>(), ["mount", "server"]);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert!(end_child(pid));
        // Who goes on meanwhile waits for the end of the program.
        let (send, made) = channel();
        std::thread::spawn(move || {
            drop(making());
            let _ = send.send(());
        });
        let nothing = made.recv_timeout(std::time::Duration::from_millis(50));
        assert!(nothing.is_err());
        for entry in [first, second, third] {
            std::mem::forget(entry);
        }
    }
}
