//! Workers that are drained, join and leave for good while the storm goes on.

use serde_json::Value;
use weir_tests::wait_until;

use super::plan::Change;
use super::{SETTLED, World, disk, name_of};

impl World<'_> {
    /// Begins a change, which then goes on by itself.
    pub(super) fn begin(&mut self, change: Change) {
        match change {
            Change::Drain(worker) => self.drain(worker),
            Change::Relieve { old, new } => {
                self.join(new, old);
                self.drain(old);
            }
            Change::Replace { old, new } => {
                self.leave(old);
                self.join(new, old);
            }
        }
    }

    /// Ends it, when all is well again.
    pub(super) fn end(&mut self, change: Change) {
        match change {
            Change::Drain(worker) => {
                self.until_drained(worker);
                let uncordoned = ["worker", "uncordon", &name_of(worker)];
                self.cluster.weir(&uncordoned).ok();
            }
            Change::Relieve { old, .. } => {
                self.until_drained(old);
                self.cluster.workers[old].take().unwrap().stop();
                self.leave(old);
            }
            // The master gives the old one up by itself.
            Change::Replace { .. } => {}
        }
    }

    fn drain(&self, worker: usize) {
        let drain = ["worker", "drain", &name_of(worker)];
        self.cluster.weir(&drain).ok();
    }

    /// A drain fails when those that take over die or are full: then it is begun again, as docs/operations.md says.
    fn until_drained(&self, worker: usize) {
        let get = ["worker", "get", &name_of(worker), "-o", "json"];
        wait_until("the worker is drained", SETTLED, || {
            let shown = self.cluster.weir(&get).ok();
            let shown: Value = serde_json::from_str(&shown).unwrap();
            if shown["state"] == "cordoned" {
                self.drain(worker);
            }
            shown["state"] == "drained"
        });
    }

    /// A new worker joins, in the zone of another one.
    fn join(&mut self, new: usize, like: usize) {
        assert_eq!(
            self.disks.len(),
            new,
            "workers join in the order of their numbers"
        );
        self.disks.push(disk(self.lab, new));
        self.cluster.add_worker_like(like);
        self.workers.push(new);
    }

    /// A worker is killed, unless it has ended, and does not come back.
    fn leave(&mut self, worker: usize) {
        self.cluster.workers[worker] = None;
        self.workers.retain(|member| *member != worker);
    }
}
