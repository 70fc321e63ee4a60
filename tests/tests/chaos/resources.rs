//! Peers that take all there is, and machines that have little.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weir_tests::{Lab, MemoryGroup, content, idle_connections};

use super::table::{Allowed, Outcome, Row};
use super::world::{Effort, to_a_cluster, under_readers};

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "idle_connections",
        what: "a worker is given 5,000 connections that say nothing",
        allowed: Allowed::Longest(Duration::from_secs(4)),
        run: idle,
    },
    Row {
        name: "little_memory",
        what: "a mount with all defaults has 256 MiB of memory, and reads more than that",
        allowed: Allowed::Longest(Duration::from_secs(10)),
        run: little_memory,
    },
];

fn idle(effort: Effort) -> Outcome {
    let mut idle = Vec::new();
    let mut outcome = to_a_cluster(effort, 1, |cluster, readers, _| {
        idle = idle_connections(cluster.data_port(0), 5000);
        readers.read_for(effort.fault());
    });
    outcome.times = idle.len();
    outcome
}

fn little_memory(effort: Effort) -> Outcome {
    let group = match MemoryGroup::new(256 << 20) {
        Ok(group) => group,
        Err(reason) => {
            return Outcome::skipped(format!("no control group can be made ({reason})"));
        }
    };
    let lab = Lab::new();
    let big = (0..8).map(|n| (format!("big/{n}"), content(n, 40 << 20)));
    let small = (0..100).map(|n| (format!("small/{n}"), content(n, 90_000)));
    let files: BTreeMap<String, Vec<u8>> = big.chain(small).collect();
    lab.put_all(&files);
    let limited = lab.path("weir-limited");
    group.wrap(&lab.binary(), &limited);
    lab.use_binary(&limited);
    let mount = lab.mount("", &[]);
    let files = Arc::new(files);
    let mut outcome = under_readers(&mount, &files, (1, effort.fault()), |_, _| ());
    let kills = group.kills();
    if kills > 0 {
        let killed = format!("the kernel killed {kills} processes for their memory");
        outcome.readers.errors.push(killed);
    }
    mount.unmount();
    outcome
}
