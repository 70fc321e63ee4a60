//! Tests on a real Kubernetes, whose programs are built first: `make test-k8s`. `cargo test --workspace --test kubernetes -- NAME`
//! runs some of them.
//!
//! All cases share one cluster of two nodes, with Weir installed from the chart and an image of the program under test. The cluster
//! is taken down behind the last one, and ends with this process if that is killed (`build-support/kubernetes/lab.sh`).
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod kubernetes {
    pub(crate) mod chart;
    pub(crate) mod cluster;
    pub(crate) mod faults;
    pub(crate) mod figures;
    pub(crate) mod gangs;
    pub(crate) mod groups;
    pub(crate) mod hdfs;
    pub(crate) mod installation;
    pub(crate) mod objects;
    pub(crate) mod pools;
    pub(crate) mod removal;
    pub(crate) mod room;
    pub(crate) mod upgrade;
    pub(crate) mod volumes;
    pub(crate) mod waiting;
}

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use libtest_mimic::{Arguments, Trial};
use weir_demo::ending::tell;

use crate::kubernetes::installation::Installation;
use crate::kubernetes::{
    chart, faults, figures, gangs, groups, hdfs, objects, pools, removal, room, upgrade, volumes,
    waiting,
};

/// A test and its name.
type Case = (&'static str, fn(&Installation));

static SUITES: &[(&str, &[Case])] = &[
    ("chart", chart::CASES),
    ("volumes", volumes::CASES),
    ("objects", objects::CASES),
    ("waiting", waiting::CASES),
    ("gangs", gangs::CASES),
    ("hdfs", hdfs::CASES),
    ("faults", faults::CASES),
    ("pools", pools::CASES),
    ("groups", groups::CASES),
    ("figures", figures::CASES),
    ("upgrade", upgrade::CASES),
    ("room", room::CASES),
    ("removal", removal::CASES),
];

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // They share a cluster, and two cores with it.
    args.test_threads = Some(1);
    // Nobody waits for a cluster who only wants to see the names, or runs the tests of the workspace.
    let is_meant = std::env::var_os("WEIR_TEST_KUBERNETES").is_some() && !args.list;
    let is_root = rustix::process::geteuid().is_root();
    if !is_meant || !is_root {
        if !args.list {
            tell(format_args!(
                "they are ignored: run `make test-k8s` as root"
            ));
        }
        let trials = SUITES.iter().flat_map(|(suite, cases)| {
            cases.iter().map(move |(name, _)| {
                Trial::test(format!("{suite}::{name}"), || Ok(())).with_ignored_flag(true)
            })
        });
        return libtest_mimic::run(&args, trials.collect()).exit_code();
    }
    let begun = Instant::now();
    let installation = Arc::new(Installation::new());
    tell(format_args!(
        "Weir is installed after {:.0} s",
        begun.elapsed().as_secs_f64()
    ));
    let trials = SUITES.iter().flat_map(|(suite, cases)| {
        let installation = &installation;
        cases.iter().map(move |(name, case)| {
            let installation = installation.clone();
            Trial::test(format!("{suite}::{name}"), move || {
                // What the cluster looked like is gone with it.
                if let Err(problem) = catch_unwind(AssertUnwindSafe(|| case(&installation))) {
                    tell(format_args!("{}", installation.picture()));
                    resume_unwind(problem);
                }
                Ok(())
            })
        })
    });
    let conclusion = libtest_mimic::run(&args, trials.collect());
    let begun = Instant::now();
    drop(installation);
    tell(format_args!(
        "it was taken down in {:.0} s",
        begun.elapsed().as_secs_f64()
    ));
    conclusion.exit_code()
}
