//! Whole-system tests. `cargo test --workspace --test system -- NAME` runs some of them.
//!
//! Two run beside each other, each in a world of its own: most wait most of the time, for a heartbeat or a deadline. Those of suites that
//! measure time or fill the machine run alone, since all of them share two cores with what they start.
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
    pub(crate) mod granted;
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
    pub(crate) mod versions;
    pub(crate) mod waiting;
}

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use parking_lot::RwLock;

/// A test and its name.
type Case = (&'static str, fn());

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    args.test_threads.get_or_insert(2);
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
        ("granted", system::granted::CASES),
        ("growing", system::growing::CASES),
        ("draining", system::draining::CASES),
        ("status", system::status::CASES),
        ("listing", system::listing::CASES),
        ("metrics", system::metrics::CASES),
        ("output", system::output::CASES),
        ("pinned", system::pinned::CASES),
        ("trust", system::trust::CASES),
        ("docs", system::docs::CASES),
    ];
    let alone: &[(&str, &[Case])] = &[
        ("processes", system::processes::CASES),
        ("crash", system::crash::CASES),
        ("restarts", system::restarts::CASES),
        ("faults", system::faults::CASES),
        ("hot", system::hot::CASES),
        ("silence", system::silence::CASES),
        ("stream", system::stream::CASES),
        ("waiting", system::waiting::CASES),
        ("limits", system::limits::CASES),
        ("memory", system::memory::CASES),
        ("many", system::many::CASES),
        ("csi", system::csi::CASES),
        ("csi", system::csi::deaths::CASES),
        ("versions", system::versions::CASES),
    ];
    let skipped = missing.is_some();
    let beside = suites
        .iter()
        .flat_map(|suite| trials(suite, false, skipped));
    let alone = alone.iter().flat_map(|suite| trials(suite, true, skipped));
    libtest_mimic::run(&args, beside.chain(alone).collect()).exit_code()
}

/// Held by all tests that run, and by one that runs alone as the only one.
static MACHINE: RwLock<()> = RwLock::new(());

fn trials(
    &(suite, cases): &(&'static str, &'static [Case]),
    alone: bool,
    skipped: bool,
) -> impl Iterator<Item = Trial> {
    cases.iter().map(move |(name, case)| {
        Trial::test(format!("{suite}::{name}"), move || {
            let _beside = (!alone).then(|| MACHINE.read());
            let _alone = alone.then(|| MACHINE.write());
            case();
            Ok(())
        })
        .with_ignored_flag(skipped)
    })
}
