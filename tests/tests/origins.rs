//! Tests against real storages that are downloaded or built first: `make test-origins`. `cargo test -p weir-tests --test
//! origins -- NAME` runs some of them.
//!
//! They run one after the other, since each storage is a crowd of processes.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod origins {
    pub(crate) mod hdfs;
    pub(crate) mod stores;
}

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// A test and its name.
type Case = (&'static str, fn());

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    args.test_threads.get_or_insert(1);
    let missing = weir_tests::fuse_missing();
    // Nobody waits for a cluster who only wants to see the names, or runs the tests of the workspace.
    let is_meant = std::env::var_os("WEIR_TEST_ORIGINS").is_some();
    if let Some(reason) = &missing {
        eprintln!("the tests on mounts are skipped and counted as ignored: {reason}");
    } else if !is_meant {
        eprintln!("they are ignored: run `make test-origins`, or set WEIR_TEST_ORIGINS=1");
    }
    let is_ignored = missing.is_some() || !is_meant;
    let suites: &[(&str, &[Case])] = &[
        ("hdfs", origins::hdfs::CASES),
        ("kerberos", origins::hdfs::KERBEROS_CASES),
        ("keytab", origins::hdfs::KEYTAB_CASES),
        ("s3", origins::stores::S3),
        ("gcs", origins::stores::GCS),
        ("azure", origins::stores::AZURE),
        ("python", origins::stores::PYTHON),
        ("nginx", origins::stores::NGINX),
        ("stores", origins::stores::OTHERS),
    ];
    let mut trials = Vec::new();
    for (suite, cases) in suites {
        for (name, case) in *cases {
            let trial = Trial::test(format!("{suite}::{name}"), move || {
                case();
                Ok(())
            });
            trials.push(trial.with_ignored_flag(is_ignored));
        }
    }
    let conclusion = libtest_mimic::run(&args, trials);
    origins::hdfs::stop();
    conclusion.exit_code()
}
