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

/// Does something so many times while readers read.
pub(crate) fn under_readers(
    mount: &Mount<'_>,
    files: &Files,
    (times, pause): (usize, Duration),
    mut bad: impl FnMut(usize),
) -> Outcome {
    let readers = Readers::start(&mount.dir, files, READERS);
    for number in 0..times {
        std::thread::sleep(pause);
        bad(number);
    }
    std::thread::sleep(pause);
    Outcome {
        times,
        readers: readers.finish(),
        skipped: None,
    }
}

/// Two workers with a dataset of the lab's bucket.
pub(crate) fn cluster(lab: &Lab) -> Cluster<'_> {
    let cluster = Cluster::start(lab, 2);
    cluster.create_dataset("set");
    cluster
}

/// A mount of the cluster's dataset on a node without a worker.
pub(crate) fn mount_of<'a>(lab: &'a Lab, cluster: &Cluster<'_>) -> Mount<'a> {
    let address = cluster.address();
    lab.mount_at("set", "mnt", &["--master", &address, "--node", "elsewhere"])
}
