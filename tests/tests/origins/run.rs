//! Runs suites beside each other, each in a process of its own, and its cases one after the other with a limit each.
//!
//! A case that does not end is named, all that it started is ended, and the suite goes on in a new process. What a case
//! leaves running or mounted fails it.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::Arguments;
use parking_lot::Mutex;

use crate::Suite;
use crate::origins::run::left_behind::Scratch;
use crate::origins::run::process::{Ended, SuiteProcess};

pub(crate) mod checks;
pub(crate) mod left_behind;
pub(crate) mod process;

/// Longest time of what a suite does before its first case.
const PREPARATION_LIMIT: Duration = Duration::from_mins(5);
/// Suites at a time, if the arguments do not say it.
const AT_A_TIME: usize = 2;
/// What of its output is shown of a case that failed, in bytes at the end of it.
const SHOWN: usize = 40_000;

/// What a case has come to.
struct Outcome {
    name: String,
    took: Duration,
    /// Why it failed.
    problem: Option<String>,
}

/// Runs the cases that the arguments choose.
pub(crate) fn all(suites: &'static [Suite], args: &Arguments) -> ExitCode {
    let begun = Instant::now();
    let chosen: VecDeque<(&Suite, Vec<&str>)> = suites
        .iter()
        .map(|suite| (suite, chosen(suite, args)))
        .filter(|(_, cases)| !cases.is_empty())
        .collect();
    for (suite, _) in &chosen {
        (suite.fetch)();
    }
    let fetched = begun.elapsed();
    let scratch = tempfile::Builder::new().prefix("o-").tempdir().unwrap();
    let outcomes = Mutex::new(Vec::new());
    let waiting = Mutex::new(chosen);
    std::thread::scope(|threads| {
        for _ in 0..args.test_threads.unwrap_or(AT_A_TIME).max(1) {
            threads.spawn(|| {
                loop {
                    let next = waiting.lock().pop_front();
                    let Some((suite, cases)) = next else { return };
                    run(suite, &cases, scratch.path(), &outcomes);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner();
    let failed: Vec<&Outcome> = outcomes.iter().filter(|o| o.problem.is_some()).collect();
    let mut text = String::new();
    for outcome in &failed {
        let problem = outcome.problem.as_deref().unwrap_or_default();
        let first = problem.lines().next().unwrap_or_default();
        let _ = writeln!(text, "failed: {}: {first}", outcome.name);
    }
    let _ = write!(
        text,
        "{} passed, {} failed, in {:.0} s, of which {:.0} s went into fetching storages",
        outcomes.len() - failed.len(),
        failed.len(),
        begun.elapsed().as_secs_f64(),
        fetched.as_secs_f64(),
    );
    tell(&text);
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The cases of a suite that the arguments choose.
fn chosen(suite: &Suite, args: &Arguments) -> Vec<&'static str> {
    let matches = |name: &str, filter: &str| {
        if args.exact {
            name == filter
        } else {
            name.contains(filter)
        }
    };
    let names = suite.cases().map(|(name, _)| *name);
    names
        .filter(|case| {
            let name = format!("{}::{case}", suite.name);
            let is_meant = args.filter.as_ref().is_none_or(|f| matches(&name, f));
            is_meant && !args.skip.iter().any(|filter| matches(&name, filter))
        })
        .collect()
}

fn run(suite: &Suite, cases: &[&str], scratch: &Path, outcomes: &Mutex<Vec<Outcome>>) {
    let scratch = Scratch::of(scratch.join(suite.name));
    let tell = |case: &str, took: Duration, problem: Option<String>| {
        let outcome = Outcome {
            name: format!("{}::{case}", suite.name),
            took,
            problem,
        };
        print(&outcome);
        outcomes.lock().push(outcome);
    };
    let mut running: Option<SuiteProcess> = None;
    for case in cases {
        if running.is_none() {
            let begun = Instant::now();
            // It went with the process before.
            scratch.make();
            let mut process = SuiteProcess::start(suite.name, &scratch);
            if let Err(problem) = process.ask("prepare", PREPARATION_LIMIT).of(&process) {
                process.kill();
                scratch.tidy();
                tell("prepare", begun.elapsed(), Some(problem));
                return;
            }
            running = Some(process);
        }
        let Some(process) = &mut running else { return };
        let begun = Instant::now();
        let ended = process.ask(case, suite.limit);
        let took = begun.elapsed();
        let mut problem = ended.of(process).err();
        if matches!(ended, Ended::NotInTime(_) | Ended::Died) {
            process.kill();
            scratch.tidy();
            running = None;
        } else if let Some(left) = scratch.left_by_case() {
            // What a case that failed could not end is no news.
            problem.get_or_insert_with(|| format!("it has left behind: {left}"));
            scratch.tidy_case();
        }
        tell(case, took, problem);
    }
    let begun = Instant::now();
    if let Some(process) = running {
        process.end();
        if let Some(left) = scratch.left_by_suite() {
            let problem = format!("the suite has left behind: {left}");
            tell("end", begun.elapsed(), Some(problem));
        }
    }
    scratch.tidy();
}

fn print(outcome: &Outcome) {
    let word = match outcome.problem {
        None => "ok",
        Some(_) => "FAILED",
    };
    let seconds = outcome.took.as_secs_f64();
    let problem = outcome.problem.as_deref().unwrap_or_default();
    // One write, since suites run beside each other.
    tell(&format!(
        "test {} ... {word} ({seconds:.1} s)\n{problem}",
        outcome.name
    ));
}

/// Writes a line for people. That nobody reads it any more ends no run: what was started is to be ended first.
fn tell(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

impl Ended {
    /// The problem, with what the process has written meanwhile.
    fn of(&self, process: &SuiteProcess) -> Result<(), String> {
        let problem = match self {
            Self::Well => return Ok(()),
            Self::Badly => "it failed".to_owned(),
            Self::NotInTime(limit) => format!("it did not end within {limit:?}"),
            Self::Died => "its process has died".to_owned(),
        };
        let output = process.output();
        let from = output.len().saturating_sub(SHOWN);
        let shown = String::from_utf8_lossy(&output[from..]);
        Err(format!("{problem}\n{shown}"))
    }
}
