//! Tests against real storages that are downloaded or built first: `make test-origins`. `cargo test --workspace --test
//! origins -- NAME` runs some of them.
//!
//! Each suite is a process of its own, and some of them run beside each other (`origins/run.rs`).
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod origins {
    pub(crate) mod hdfs;
    pub(crate) mod run;
    pub(crate) mod shared;
    pub(crate) mod stores;
}

use std::marker::PhantomData;
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};

use crate::origins::shared::{UnderTest, cases, http_cases};
use crate::origins::stores::{Azurite, Directory, FakeGcs, Minio, Nginx, Oss, Python, S3Service};
use crate::origins::{hdfs, run, stores};

/// Longest time of a case, unless its suite has another limit.
const CASE_LIMIT: Duration = Duration::from_mins(2);

/// A test and its name.
type Case = (&'static str, fn());

/// Cases of one storage, which run one after the other.
struct Suite {
    name: &'static str,
    cases: &'static [&'static [Case]],
    /// Longest time of a case.
    limit: Duration,
    /// Fetches what is not there yet, for all suites at once.
    fetch: fn(),
    /// What is done once before the first case, and behind the last.
    prepare: fn(),
    end: fn(),
}

impl Suite {
    const fn new(name: &'static str, cases: &'static [&'static [Case]], fetch: fn()) -> Self {
        Self {
            name,
            cases,
            limit: CASE_LIMIT,
            fetch,
            prepare: nothing,
            end: nothing,
        }
    }

    /// All its cases.
    fn cases(&self) -> impl Iterator<Item = &'static Case> {
        self.cases.iter().copied().flatten()
    }
}

/// The shared cases of a kind of origin.
struct Of<T>(PhantomData<T>);

impl<T: UnderTest> Of<T> {
    const CASES: &[Case] = &cases::<T>();
    const HTTP_CASES: &[Case] = &http_cases::<T>();
    const BOTH: &[&[Case]] = &[Self::CASES, Self::HTTP_CASES];
}

/// The suite of a store that speaks HTTP.
const fn store<T: UnderTest>(name: &'static str) -> Suite {
    Suite::new(name, Of::<T>::BOTH, fetch_emulators)
}

/// Those that take longest come first.
static SUITES: &[Suite] = &[
    Suite {
        prepare: hdfs::start,
        end: hdfs::stop,
        ..Suite::new("hdfs", &[Of::<hdfs::Hdfs>::CASES, hdfs::CASES], hdfs::fetch)
    },
    Suite {
        // Sessions of credentials live half a minute, and several are waited for.
        limit: Duration::from_mins(5),
        ..Suite::new("keytab", &[hdfs::KEYTAB_CASES], hdfs::fetch)
    },
    Suite::new("kerberos", &[hdfs::KERBEROS_CASES], hdfs::fetch),
    store::<Azurite>("azure"),
    store::<Python>("python"),
    store::<FakeGcs>("gcs"),
    store::<Minio>("minio"),
    store::<Nginx>("nginx"),
    store::<Oss>("oss"),
    store::<S3Service>("s3"),
    Suite::new("directory", &[Of::<Directory>::CASES], nothing),
    Suite::new("stores", &[stores::CASES], fetch_emulators),
];

fn nothing() {}

fn fetch_emulators() {
    stores::emulators();
}

fn main() -> ExitCode {
    if let Some(code) = run::process::serve(&[SUITES, run::checks::SUITES]) {
        return code;
    }
    let mut args = Arguments::from_args();
    if run::checks::are_meant() {
        return run::all(run::checks::SUITES, &args);
    }
    let missing = weir_tests::fuse_missing();
    // Nobody waits for a cluster who only wants to see the names, or runs the tests of the workspace.
    let is_meant = std::env::var_os("WEIR_TEST_ORIGINS").is_some();
    if let Some(reason) = &missing {
        eprintln!("the tests on mounts are skipped and counted as ignored: {reason}");
    } else if !is_meant {
        eprintln!("they are ignored: run `make test-origins`, or set WEIR_TEST_ORIGINS=1");
    } else if !args.list {
        return run::all(SUITES, &args);
    }
    let trials = SUITES.iter().flat_map(|suite| {
        suite.cases().map(|(case, _)| {
            let trial = Trial::test(format!("{}::{case}", suite.name), || Ok(()));
            trial.with_ignored_flag(true)
        })
    });
    let mut trials: Vec<Trial> = trials.collect();
    let checks = run::checks::trials().into_iter();
    trials.extend(checks.map(|trial| trial.with_ignored_flag(missing.is_some())));
    // What they start shares two cores.
    args.test_threads.get_or_insert(1);
    libtest_mimic::run(&args, trials).exit_code()
}
