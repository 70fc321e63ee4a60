//! Ten times more readers than the workers can serve: throughput, memory of the workers, and the part of a dataset that few read.
//!
//! What each worker sends is limited, so that readers wait for the workers and not for the machine's cores.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use weir_demo::ending::tell;

use super::{Bench, Measured};
use crate::data::Tree;
use crate::loopback::LoopbackClient;
use crate::metrics::Scrape;
use crate::server::Bucket;
use crate::system::{Cluster, Tiers};
use crate::table::{Table, Unit};
use crate::usage::Meter;

const SYSTEM: &str = "Weir, 2 workers";
const WORKERS: usize = 2;
/// Readers of each dataset that take all that the workers send, and the times that there are more of them.
const ENOUGH: usize = 16;
const MORE: usize = 10;
/// Bytes that each worker may send in a second.
const EGRESS: u64 = 192 << 20;
const TIME: Duration = Duration::from_secs(10);
/// Throughput with too many readers, of that with enough.
const LEAST_KEPT: f64 = 0.9;
/// The part of the bytes that the readers of one dataset get, if those of another are ten times as many.
const LEAST_PART: f64 = 0.4;
/// What too many readers take of a worker's memory beyond enough, in MiB.
const MOST_MEMORY: f64 = 128.0;
const NAMES: [&str; 2] = ["one", "other"];
const FILES: u64 = 16;
const FILE: u64 = 16 << 20;
const MIB: f64 = 1_048_576.0;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Measured> {
    let size = bench.scaled(FILE);
    let trees = NAMES.map(|name| bench.data(&format!("overload-{name}"), FILES, size, 1));
    let [one, other] = trees;
    let trees = [one?, other?];
    let buckets = NAMES.iter().zip(&trees);
    let buckets: Vec<Bucket<'_>> = buckets.map(|(name, tree)| Bucket { name, tree }).collect();
    let server = bench.serve(&buckets)?;
    let mut table = Table::default();
    for number in 0..bench.runs {
        tell(format_args!("overload, run {}", number + 1));
        let home = bench.scratch().join("overload");
        let load = Load {
            enough: if bench.quick { ENOUGH / 4 } else { ENOUGH },
            egress: bench.scaled(EGRESS),
            time: TIME,
        };
        let found = measure(&home, server.endpoint(), &trees, load)?;
        found.note(&mut table, load.enough);
        let _ = std::fs::remove_dir_all(&home);
    }
    Ok(Measured {
        title: "Ten times more readers than the workers can serve".to_owned(),
        source: format!("data from {}", server.name()),
        runs: bench.runs,
        notes: vec![format!(
            "Two datasets of {FILES} files on the workers' SSD, which may send {} MiB in a second each. Readers are clients with connections of their own in one process, without mounts, that read 1 MiB at once for {} s.",
            bench.scaled(EGRESS) >> 20,
            TIME.as_secs()
        )],
        table,
    })
}

/// How much is asked for.
#[derive(Clone, Copy)]
struct Load {
    /// Readers of each dataset that are enough.
    enough: usize,
    /// Bytes that each worker sends in a second at most.
    egress: u64,
    time: Duration,
}

/// What was seen.
#[derive(Debug)]
struct Found {
    /// Bytes in a second, with enough readers and with too many, and peak memory of the workers meanwhile.
    enough: (f64, f64),
    many: (f64, f64),
    /// The part of the dataset that few read while many read the other.
    part: f64,
    /// Reads that went on to another worker or the origin.
    failovers: f64,
}

impl Found {
    fn note(&self, table: &mut Table, enough: usize) {
        let mut note = |what: &str, unit, value, limit| {
            table.state(SYSTEM, what, unit, value, limit);
        };
        let few = enough;
        let (enough, many) = (2 * few, 2 * few * MORE);
        for (readers, (speed, memory)) in [(enough, self.enough), (many, self.many)] {
            let what = format!("{readers} readers");
            note(&what, Unit::MegabytesPerSecond, speed / 1e6, None);
            let what = format!("{readers} readers, peak memory of both workers");
            note(&what, Unit::Mebibytes, memory / MIB, None);
        }
        note(
            &format!("throughput with {many} readers, of that with {enough}"),
            Unit::Share,
            self.many.0 / self.enough.0,
            Some(LEAST_KEPT),
        );
        note(
            "memory that they take beyond that",
            Unit::Mebibytes,
            (self.many.1 - self.enough.1).max(0.0) / MIB,
            Some(MOST_MEMORY),
        );
        note(
            &format!(
                "what {few} readers of one dataset get beside {} of another",
                few * MORE
            ),
            Unit::Share,
            self.part,
            Some(LEAST_PART),
        );
        let what = "reads that went on to another worker or the origin";
        note(what, Unit::Count, self.failovers, Some(0.0));
    }
}

fn measure(home: &Path, endpoint: &str, trees: &[Tree; 2], load: Load) -> anyhow::Result<Found> {
    let Load {
        enough,
        egress,
        time,
    } = load;
    let bytes = trees.iter().map(|tree| tree.bytes).sum();
    let flags = ["--egress-limit".to_owned(), egress.to_string()];
    let cluster = Cluster::start_with(home, WORKERS, Tiers::ssd_for(bytes), &flags)?;
    for name in NAMES {
        cluster.create_dataset(name, endpoint, name)?;
        cluster.weir(&["warm", name, "--wait", "-o", "json"])?;
    }
    let mut failovers = 0;
    let pids = cluster.pids();
    let (workers, _) = pids.split_at(WORKERS);
    let mut read = |readers: [usize; 2]| -> anyhow::Result<([u64; 2], f64)> {
        let clients = NAMES.iter().zip(readers);
        let clients = clients
            .map(|(name, readers)| LoopbackClient::connect_many(&cluster, name, readers))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let meter = Meter::start(workers);
        let read = std::thread::scope(|scope| {
            let reading = clients.iter().map(|one| scope.spawn(|| one.read_for(time)));
            let reading: Vec<_> = reading.collect();
            let read = reading.into_iter().map(std::thread::ScopedJoinHandle::join);
            let read = read.map(|read| read.ok().context("a reader panicked")?);
            read.collect::<anyhow::Result<Vec<u64>>>()
        })?;
        failovers += clients.iter().map(LoopbackClient::failovers).sum::<u64>();
        Ok(([read[0], read[1]], meter.stop().peak_bytes as f64))
    };
    let speed = |(read, memory): ([u64; 2], f64)| {
        let bytes: u64 = read.iter().sum();
        (bytes as f64 / time.as_secs_f64(), memory)
    };
    let many = enough * MORE;
    let (unequal, _) = read([many, enough])?;
    let many = speed(read([many; 2])?);
    let enough = speed(read([enough; 2])?);
    let mut from_origin = 0.0;
    for url in cluster.metrics() {
        from_origin += Scrape::fetch(&url)?.sum("weir_origin_read_bytes_total", "");
    }
    anyhow::ensure!(
        from_origin <= bytes as f64 * 1.01,
        "{from_origin} bytes came from the origin, of {bytes}"
    );
    let sum: u64 = unequal.iter().sum();
    Ok(Found {
        enough,
        many,
        part: unequal[1] as f64 / sum.max(1) as f64,
        failovers: failovers as f64,
    })
}

#[cfg(test)]
mod tests {
    use weir_s3_server::{Bucket, Config, S3Server};

    use super::*;
    use crate::data::generated;

    /// In a build without optimization and on busy cores, what is promised is seen in part.
    #[test]
    fn too_many_readers_are_served_and_those_of_a_dataset_that_few_read_get_their_part() {
        let dir = tempfile::tempdir().unwrap();
        let trees = NAMES.map(|name| generated(&dir.path().join(name), 4, 4 << 20, 1).unwrap());
        let server = S3Server::start(Config::default()).unwrap();
        for (name, tree) in NAMES.iter().zip(&trees) {
            server.add_bucket(name, Bucket::of_directory(&tree.root).unwrap());
        }
        let home = dir.path().join("home");
        std::fs::create_dir(&home).unwrap();
        let load = Load {
            enough: 8,
            egress: 12 << 20,
            time: Duration::from_secs(8),
        };
        let found = measure(&home, &server.endpoint(), &trees, load).unwrap();
        assert!(found.many.0 > found.enough.0 / 2.0, "{found:?}");
        // An eleventh of the readers are of this one.
        assert!(found.part > 1.5 / 11.0, "{found:?}");
        assert!(found.many.1 - found.enough.1 < 256.0 * MIB, "{found:?}");
    }
}
