//! Chaos: something bad is done to a system again and again while readers check every byte that they read.
//!
//! `cargo test --workspace --test chaos` does each thing a few times, and `make chaos` as often as docs/testing.md says,
//! where it puts its table. `-- NAME` does some of them.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod chaos {
    pub(crate) mod disks;
    pub(crate) mod freezes;
    pub(crate) mod kills;
    pub(crate) mod origins;
    pub(crate) mod resources;
    pub(crate) mod storm;
    pub(crate) mod table;
    pub(crate) mod world;
}

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use parking_lot::Mutex;

use crate::chaos::table::{Row, Table};
use crate::chaos::world::Effort;
use crate::chaos::{disks, freezes, kills, origins, resources, storm};

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    args.test_threads.get_or_insert(1);
    let missing = weir_tests::fuse_missing();
    if let Some(reason) = &missing {
        eprintln!("chaos is skipped and counted as ignored: {reason}");
    }
    let effort = Effort::from_env();
    let table = Arc::new(Mutex::new(Table::default()));
    let rows = [
        kills::ROWS,
        freezes::ROWS,
        origins::ROWS,
        disks::ROWS,
        resources::ROWS,
        storm::ROWS,
    ]
    .concat();
    let trials = rows.into_iter().map(|row: Row| {
        let table = table.clone();
        Trial::test(row.name, move || {
            let outcome = (row.run)(effort);
            println!("{}", outcome.line(&row));
            table.lock().add(&row, &outcome);
            outcome.judge(&row).map_err(Into::into)
        })
        .with_ignored_flag(missing.is_some())
    });
    let conclusion = libtest_mimic::run(&args, trials.collect());
    if let (Some(page), false) = (std::env::var_os("WEIR_CHAOS_PAGE"), conclusion.has_failed()) {
        table.lock().write_into(Path::new(&page)).unwrap();
    }
    conclusion.exit_code()
}
