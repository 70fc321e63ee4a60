//! What the rows share: how much is done, files to read, and readers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weir_tests::{Cluster, Lab, Mount, Readers, content};

use super::table::Outcome;

/// Readers of each row.
const READERS: usize = 4;

pub(crate) type Files = Arc<BTreeMap<String, Vec<u8>>>;

/// How much is done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// What a change has to pass.
    Short,
    /// What docs/testing.md tells of.
    Full,
}

impl Effort {
    /// Full when `WEIR_CHAOS` says `full`.
    pub(crate) fn from_env() -> Self {
        if std::env::var("WEIR_CHAOS").is_ok_and(|effort| effort == "full") {
            Self::Full
        } else {
            Self::Short
        }
    }

    /// One of two numbers.
    pub(crate) fn of(self, short: usize, full: usize) -> usize {
        match self {
            Self::Short => short,
            Self::Full => full,
        }
    }

    /// How long something stays bad.
    pub(crate) fn fault(self) -> Duration {
        Duration::from_secs(self.of(1, 10) as u64)
    }

    /// How long readers read between two bad things.
    pub(crate) fn pause(self) -> Duration {
        match self {
            Self::Short => Duration::from_millis(300),
            Self::Full => Duration::from_millis(700),
        }
    }
}

/// Files of 1 KB to 280 KB, and one of two blocks and a half.
pub(crate) fn fill(lab: &Lab) -> Files {
    let files: BTreeMap<String, Vec<u8>> = (0..400)
        .map(|n| {
            let name = format!("d{}/f{n}", n % 40);
            (name, content(n, 1000 + 700 * n as usize))
        })
        .chain([("large".to_owned(), content(999, 10 << 20))])
        .collect();
    lab.put_all(&files);
    Arc::new(files)
}

/// Does something so many times while readers read, who read on for a while before and after each.
pub(crate) fn under_readers(
    mount: &Mount<'_>,
    files: &Files,
    (times, pause): (usize, Duration),
    mut bad: impl FnMut(&Readers, usize),
) -> Outcome {
    let readers = Readers::start(&mount.dir, files, READERS);
    for number in 0..times {
        readers.read_for(pause);
        bad(&readers, number);
    }
    readers.read_for(pause);
    Outcome {
        times,
        readers: readers.finish(),
        skipped: None,
    }
}

/// Does something so many times to a mount that keeps nothing in memory, while readers read it.
pub(crate) fn to_a_mount(
    effort: Effort,
    times: usize,
    mut bad: impl FnMut(&Mount<'_>, usize),
) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    let mount = lab.mount("", &["--mem", "0"]);
    under_readers(&mount, &files, (times, effort.pause()), |_, number| {
        bad(&mount, number);
    })
}

/// Does something so many times to a cluster of two workers, while readers read a mount on a node without one.
pub(crate) fn to_a_cluster(
    effort: Effort,
    times: usize,
    mut bad: impl FnMut(&mut Cluster<'_>, &Readers, usize),
) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    let mut cluster = Cluster::start(&lab, 2);
    cluster.create_dataset("set");
    let mount = cluster.mount("set", "elsewhere");
    let times = (times, effort.pause());
    under_readers(&mount, &files, times, |readers, number| {
        bad(&mut cluster, readers, number);
    })
}
