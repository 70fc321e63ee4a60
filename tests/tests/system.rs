//! Whole-system tests. `cargo test -p weir-tests -- NAME` runs some of them.
//!
//! They run one after the other: some measure time, and all of them share two cores with what they start.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod system {
    pub(crate) mod apply;
    pub(crate) mod circles;
    pub(crate) mod cluster;
    pub(crate) mod crash;
    pub(crate) mod credentials;
    pub(crate) mod csi;
    pub(crate) mod damage;
    pub(crate) mod docs;
    pub(crate) mod draining;
    pub(crate) mod embedded;
    pub(crate) mod faults;
    pub(crate) mod fstab;
    pub(crate) mod growing;
    pub(crate) mod hot;
    pub(crate) mod jobs;
    pub(crate) mod keys;
    pub(crate) mod limits;
    pub(crate) mod listing;
    pub(crate) mod many;
    pub(crate) mod memory;
    pub(crate) mod metrics;
    pub(crate) mod mistakes;
    pub(crate) mod mounting;
    pub(crate) mod namespaces;
    pub(crate) mod output;
    pub(crate) mod pinned;
    pub(crate) mod placement;
    pub(crate) mod processes;
    pub(crate) mod reading;
    pub(crate) mod restarts;
    pub(crate) mod secrets;
    pub(crate) mod settings;
    pub(crate) mod signing;
    pub(crate) mod silence;
    pub(crate) mod sources;
    pub(crate) mod status;
    pub(crate) mod stream;
    pub(crate) mod tls;
    pub(crate) mod trust;
    pub(crate) mod verified;
    pub(crate) mod waiting;
}

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// A test and its name.
type Case = (&'static str, fn());

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    args.test_threads.get_or_insert(1);
    let missing = weir_tests::fuse_missing();
    if let Some(reason) = &missing {
        eprintln!("the tests on mounts are skipped and counted as ignored: {reason}");
    }
    let suites: &[(&str, &[Case])] = &[
        ("embedded", system::embedded::CASES),
        ("signing", system::signing::CASES),
        ("mounting", system::mounting::CASES),
        ("keys", system::keys::CASES),
        ("reading", system::reading::CASES),
        ("crash", system::crash::CASES),
        ("restarts", system::restarts::CASES),
        ("faults", system::faults::CASES),
        ("tls", system::tls::CASES),
        ("sources", system::sources::CASES),
        ("apply", system::apply::CASES),
        ("namespaces", system::namespaces::CASES),
        ("mistakes", system::mistakes::CASES),
        ("credentials", system::credentials::CASES),
        ("secrets", system::secrets::CASES),
        ("settings", system::settings::CASES),
        ("fstab", system::fstab::CASES),
        ("damage", system::damage::CASES),
        ("verified", system::verified::CASES),
        ("circles", system::circles::CASES),
        ("cluster", system::cluster::CASES),
        ("placement", system::placement::CASES),
        ("jobs", system::jobs::CASES),
        ("growing", system::growing::CASES),
        ("hot", system::hot::CASES),
        ("draining", system::draining::CASES),
        ("silence", system::silence::CASES),
        ("status", system::status::CASES),
        ("stream", system::stream::CASES),
        ("waiting", system::waiting::CASES),
        ("limits", system::limits::CASES),
        ("memory", system::memory::CASES),
        ("listing", system::listing::CASES),
        ("many", system::many::CASES),
        ("metrics", system::metrics::CASES),
        ("output", system::output::CASES),
        ("pinned", system::pinned::CASES),
        ("processes", system::processes::CASES),
        ("trust", system::trust::CASES),
        ("csi", system::csi::CASES),
        ("csi", system::csi::deaths::CASES),
        ("docs", system::docs::CASES),
    ];
    let trials = suites.iter().flat_map(|(suite, cases)| {
        let skipped = missing.is_some();
        cases.iter().map(move |(name, case)| {
            Trial::test(format!("{suite}::{name}"), move || {
                case();
                Ok(())
            })
            .with_ignored_flag(skipped)
        })
    });
    libtest_mimic::run(&args, trials.collect()).exit_code()
}
