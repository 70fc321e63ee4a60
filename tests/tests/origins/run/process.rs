//! A process that runs the cases of one suite, both sides of it.
//!
//! It is told names of cases by its standard input, a line each, and answers `ok` or `failed` on its standard output.
//! Whatever else is written goes to a file. When its input ends while a case runs, nobody waits any more: it ends all that
//! was started, itself included.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use weir_tests::comes_true;

use super::left_behind::Scratch;
use crate::Suite;

/// Tells a process which suite it runs.
const SUITE: &str = "ORIGINS_SUITE";
/// Tells a process whose directory it is to tidy, and nothing else.
const TIDY: &str = "ORIGINS_TIDY";
/// Longest time for a suite to end its storage.
const END_LIMIT: Duration = Duration::from_mins(1);

/// How a case has ended.
pub(crate) enum Ended {
    Well,
    Badly,
    NotInTime(Duration),
    Died,
}

/// The process of a suite.
pub(crate) struct SuiteProcess {
    child: Child,
    input: Option<ChildStdin>,
    answers: Receiver<String>,
    output: PathBuf,
    /// Length of the output before the last case.
    before: u64,
}

impl SuiteProcess {
    pub(crate) fn start(suite: &str, scratch: &Scratch) -> Self {
        let output = scratch.path("output");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&output)
            .unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        scratch.mark(&mut command);
        let mut child = command
            .env(SUITE, suite)
            // Who ends this run by a key ends the suites by the end of their input, and not before they have tidied.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let (send, answers) = channel();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            input: child.stdin.take(),
            child,
            answers,
            output,
            before: 0,
        }
    }

    /// Has it run a case.
    pub(crate) fn ask(&mut self, case: &str, limit: Duration) -> Ended {
        self.before = std::fs::metadata(&self.output).map_or(0, |file| file.len());
        if let Some(input) = &mut self.input
            && writeln!(input, "{case}").is_err()
        {
            return Ended::Died;
        }
        match self.answers.recv_timeout(limit) {
            Ok(answer) if answer == "ok" => Ended::Well,
            Ok(_) => Ended::Badly,
            Err(RecvTimeoutError::Timeout) => Ended::NotInTime(limit),
            Err(RecvTimeoutError::Disconnected) => Ended::Died,
        }
    }

    /// What it and its storage have written since the last case began.
    pub(crate) fn output(&self) -> Vec<u8> {
        let mut text = Vec::new();
        let file = File::open(&self.output).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.before))?;
            file.read_to_end(&mut text)
        });
        file.map(|_| text).unwrap_or_default()
    }

    /// Has it end its storage, and itself.
    pub(crate) fn end(mut self) {
        self.input = None;
        let ended = comes_true(END_LIMIT, || self.child.try_wait().unwrap().is_some());
        if !ended {
            self.kill();
        }
    }

    /// Kills it. What it has started goes on.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The part of a process that was started to run a suite; `None` in one that was not.
pub(crate) fn serve(suites: &[&'static [Suite]]) -> Option<ExitCode> {
    if let Some(dir) = std::env::var_os(TIDY) {
        Scratch::of(dir.into()).tidy();
        return Some(ExitCode::FAILURE);
    }
    let name = std::env::var(SUITE).ok()?;
    let mut suites = suites.iter().copied().flatten();
    let suite = suites.find(|suite| suite.name == name).unwrap();
    // What is started, and what cases print, must not speak in its place.
    let mut answers = File::from(rustix::io::fcntl_dupfd_cloexec(std::io::stdout(), 3).unwrap());
    rustix::stdio::dup2_stdout(std::io::stderr()).unwrap();
    let is_busy = Arc::new(AtomicBool::new(false));
    let cases = asked(is_busy.clone());
    for case in cases {
        let found = suite.cases().find(|(name, _)| *name == case);
        let run = found.map_or(suite.prepare, |(_, run)| *run);
        let outcome = catch_unwind(AssertUnwindSafe(run));
        is_busy.store(false, Ordering::SeqCst);
        let answer = if outcome.is_ok() { "ok" } else { "failed" };
        if writeln!(answers, "{answer}").is_err() {
            leave();
        }
    }
    (suite.end)();
    Some(ExitCode::SUCCESS)
}

/// The cases that are asked for, until there are no more. Does not come back if that is while one runs.
fn asked(is_busy: Arc<AtomicBool>) -> Receiver<String> {
    let (send, cases) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            is_busy.store(true, Ordering::SeqCst);
            if send.send(line).is_err() {
                return;
            }
        }
        if is_busy.load(Ordering::SeqCst) {
            leave();
        }
    });
    cases
}

/// Becomes a process that ends all that this suite has started: no thread of the case goes on beside it.
fn leave() -> ! {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let error = command.env(TIDY, std::env::temp_dir()).exec();
    panic!("{command:?}: {error}");
}
