//! Where datasets are, as the master says.
//!
//! Readers and workers compute a block's owners from the cluster map and the dataset's placement. Each request and each answer
//! says which version of that its sender knows, so that who has the older one asks the master for the newer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use weir_core::placement::domains::{MAX_DOMAINS, Placement, Spread};
use weir_proto::v1;

/// Least time between two questions to the master because a request was made with a newer placement: readers may name any.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// A placement from the wire. A spread that this version does not know is the cluster: any worker serves any block.
pub fn placement(message: Option<v1::Placement>) -> Placement {
    let Some(message) = message else {
        return Placement::default();
    };
    let spread = match message.spread() {
        v1::Spread::Node => Spread::Node,
        v1::Spread::Group => Spread::Group,
        v1::Spread::Zone => Spread::Zone,
        v1::Spread::Cluster | v1::Spread::Unspecified => Spread::Cluster,
    };
    let mut domains = message.domains;
    domains.truncate(MAX_DOMAINS);
    if spread == Spread::Cluster {
        domains = vec![String::new()];
    }
    Placement {
        version: message.version,
        spread,
        domains,
        pool: message.pool.parse().ok(),
    }
}

/// What is known of a dataset's placement.
#[derive(Clone, Copy, Debug)]
struct Known {
    version: u64,
    /// Its owners are those of the cluster map alone: it is one that was taken back.
    by_map: bool,
}

/// The placements of all datasets that have one, or had one.
#[derive(Debug, Default)]
pub(crate) struct Placements {
    known: RwLock<HashMap<String, Known>>,
    asked: Mutex<Option<Instant>>,
    wanted: Notify,
}

impl Placements {
    /// Takes the table that a master sends.
    pub(crate) fn set(&self, datasets: &[v1::DatasetSources]) {
        let placed = datasets.iter().filter(|of| of.placement.is_some());
        let placed = placed.map(|of| {
            let placement = placement(of.placement.clone());
            let known = Known {
                version: placement.version,
                by_map: placement.spread == Spread::Cluster && placement.pool.is_none(),
            };
            (of.dataset.clone(), known)
        });
        *self.known.write() = placed.collect();
    }

    /// The version of a dataset's placement; 0 if it has none.
    pub(crate) fn version(&self, dataset: &str) -> u64 {
        let known = self.known.read();
        known.get(dataset).map_or(0, |known| known.version)
    }

    /// Whether the owners of a dataset's blocks are those of the cluster map alone.
    pub(crate) fn is_by_map(&self, dataset: &str) -> bool {
        let known = self.known.read();
        known.get(dataset).is_none_or(|known| known.by_map)
    }

    /// Whether those of any dataset are others.
    pub(crate) fn any(&self) -> bool {
        self.known.read().values().any(|known| !known.by_map)
    }

    /// A request was made with this version by somebody who may read the dataset: the master is asked if that is a newer one.
    /// Gives the version that is known.
    pub(crate) fn compare(&self, dataset: &str, version: u64) -> u64 {
        let known = self.version(dataset);
        if version <= known {
            return known;
        }
        let now = Instant::now();
        let mut asked = self.asked.lock();
        if asked.is_none_or(|asked| now.saturating_duration_since(asked) >= ASK_INTERVAL) {
            *asked = Some(now);
            self.wanted.notify_one();
        }
        known
    }

    /// Ends when the master should be asked.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn message(version: u64, spread: v1::Spread, domains: &[&str]) -> v1::Placement {
        v1::Placement {
            version,
            spread: spread.into(),
            domains: domains.iter().map(|name| (*name).to_owned()).collect(),
            pool: String::new(),
        }
    }

    #[test]
    fn what_is_not_known_of_a_placement_is_the_cluster() {
        assert_eq!(placement(None), Placement::default());
        let zones = placement(Some(message(3, v1::Spread::Zone, &["a", "b"])));
        assert_eq!((zones.version, zones.spread), (3, Spread::Zone));
        assert_eq!(zones.domains, ["a", "b"]);
        let newer = v1::Placement {
            spread: 99,
            pool: "no pool".to_owned(),
            ..message(4, v1::Spread::Zone, &["x"; 70])
        };
        let newer = placement(Some(newer));
        let cluster = Placement {
            version: 4,
            ..Placement::default()
        };
        assert_eq!(newer, cluster);
        let many = placement(Some(message(1, v1::Spread::Node, &["x"; 70])));
        assert_eq!(many.domains.len(), MAX_DOMAINS);
    }

    #[test]
    fn a_dataset_whose_placement_was_taken_back_is_placed_by_the_map_again() {
        let placements = Placements::default();
        let set = |placement| {
            placements.set(&[v1::DatasetSources {
                dataset: "set".to_owned(),
                placement,
                ..v1::DatasetSources::default()
            }]);
            let seen = (placements.is_by_map("set"), placements.any());
            assert!(placements.is_by_map("other"));
            seen
        };
        assert_eq!(set(None), (true, false));
        assert_eq!(
            set(Some(message(1, v1::Spread::Zone, &["a"]))),
            (false, true)
        );
        let in_pool = v1::Placement {
            pool: "fast".to_owned(),
            ..message(2, v1::Spread::Cluster, &[])
        };
        assert_eq!(set(Some(in_pool)), (false, true));
        assert_eq!(
            set(Some(message(3, v1::Spread::Cluster, &[]))),
            (true, false)
        );
        assert_eq!(placements.version("set"), 3);
    }

    #[test]
    fn a_request_with_a_newer_placement_has_the_master_asked_once() {
        let placements = Placements::default();
        let of = |dataset: &str, placement| v1::DatasetSources {
            dataset: dataset.to_owned(),
            placement,
            ..v1::DatasetSources::default()
        };
        let zones = message(7, v1::Spread::Zone, &["a"]);
        placements.set(&[of("set", Some(zones)), of("other", None)]);
        assert_eq!(placements.version("set"), 7);
        assert_eq!(placements.version("other"), 0);
        let is_asked = || placements.wanted().now_or_never().is_some();
        for (dataset, version) in [("set", 0), ("set", 7), ("other", 0)] {
            let known = placements.version(dataset);
            assert_eq!(placements.compare(dataset, version), known);
            assert!(!is_asked());
        }
        assert_eq!(placements.compare("set", 8), 7);
        assert!(is_asked());
        for version in 9..1000 {
            placements.compare("set", version);
        }
        assert!(!is_asked(), "it was asked a moment ago");
    }
}
