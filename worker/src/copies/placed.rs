//! Datasets with a placement: who may have a block that this worker lacks.
//!
//! Of a dataset's copies only the first is filled from the origin. The owner of another copy asks the first one's owner for the
//! block ([`Route::Filler`]), which fetches it if it lacks it. The first one's owner asks those who were owners before it, when the
//! placement or the map was another a while ago, and the owners of the other copies, for what they hold ([`Route::Held`]).
//!
//! Workers that know different placements may each take the other for the first owner. None waits for the other then: who is
//! asked by a worker asks none that would fetch in its turn, see [`crate::fill::Fill::forward`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use weir_core::placement::domains::{Owners, Placement};
use weir_core::{BlockKey, ClusterMap, WorkerId, WorkerInfo};

use super::former::{Former, still_there};
use crate::placements::Known;

/// Former maps and placements of a dataset that count.
const MAX_FORMER: usize = 7;
/// Of these, maps together with placements.
const MAX_BOTH: usize = 2;
/// Workers that are asked for what they hold of one block.
const MAX_HOLDERS: usize = 4;
/// Datasets whose owners are kept: those of one may take a megabyte in a large cluster.
const MAX_VIEWS: usize = 128;
/// How long owners are used before it is looked again which former ones still count.
const MADE_FOR: Duration = Duration::from_hours(1);

/// Where a block may be had from.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Route {
    /// From the origin, by this worker.
    Origin,
    /// From the first of these that holds it, asked in the dataset's name; else from the origin.
    Held(Arc<str>, Vec<WorkerInfo>),
    /// From this one, which has it or fetches it.
    Filler(Arc<str>, WorkerInfo),
    /// As from a filler, for a worker that owns no copy and keeps what its node reads.
    Kept(Arc<str>, WorkerInfo),
}

impl Route {
    /// Whether some worker is to be asked for what it holds.
    pub(super) fn has_holders(&self) -> bool {
        matches!(self, Self::Held(_, holders) if !holders.is_empty())
    }
}

/// Owners of the blocks of datasets, made once for each placement and map.
#[derive(Default)]
pub(super) struct Placed {
    views: Mutex<HashMap<Arc<str>, Arc<View>>>,
}

/// The owners of a dataset's blocks, and those before them.
pub(super) struct View {
    known: Arc<Known>,
    maps: Arc<Former>,
    made: Instant,
    owners: Owners,
    former: Vec<Owners>,
}

impl View {
    fn new(known: Arc<Known>, maps: Arc<Former>, now: Instant) -> Self {
        let owners =
            |map: &Arc<ClusterMap>, placement: &Placement| Owners::new(map.clone(), placement);
        let by_placements = known.former(now);
        let by_placements = by_placements.map(|placement| owners(maps.uncordoned(), placement));
        // Both may have changed a moment ago.
        let is_other = |map: &&Arc<ClusterMap>| !Arc::ptr_eq(map, maps.uncordoned());
        let before_both = maps.maps(now).filter(is_other);
        let by_both = before_both.flat_map(|map| known.former(now).map(move |it| owners(map, it)));
        let by_maps = maps.maps(now).map(|map| owners(map, known.current()));
        let former = by_placements
            .chain(by_both.take(MAX_BOTH))
            .chain(by_maps)
            .take(MAX_FORMER);
        Self {
            owners: owners(maps.current(), known.current()),
            former: former.collect(),
            made: now,
            known,
            maps,
        }
    }

    fn is_of(&self, known: &Arc<Known>, maps: &Arc<Former>, now: Instant) -> bool {
        Arc::ptr_eq(&self.known, known)
            && Arc::ptr_eq(&self.maps, maps)
            && now < self.made + MADE_FOR
    }

    /// Whether a worker is to hold a copy of a block.
    pub(super) fn is_owner(&self, key: &BlockKey, own: &WorkerId) -> bool {
        self.owners.of(key).any(|owner| owner.id == *own)
    }

    /// The way to a block of the dataset, which has this name; `None` if `own` is neither to hold a copy of it nor to keep one.
    pub(super) fn route(
        &self,
        dataset: &Arc<str>,
        key: &BlockKey,
        own: &WorkerId,
    ) -> Option<Route> {
        if !self.is_owner(key, own) {
            self.known.current().keep?;
            let filler = self.owners.filler(key)?.clone();
            return Some(Route::Kept(dataset.clone(), filler));
        }
        let filler = self.owners.filler(key).filter(|filler| filler.id != *own);
        Some(if let Some(filler) = filler {
            Route::Filler(dataset.clone(), filler.clone())
        } else {
            let all = self.former(key).chain(self.owners.of(key));
            let holders = still_there(all, self.maps.current(), own, MAX_HOLDERS);
            Route::Held(dataset.clone(), holders)
        })
    }

    /// The workers that may hold a block of the dataset since they were to before its owners, the likeliest first. Whoever is asked in
    /// the place of an owner that does not answer asks these: what they have is not lost with it.
    pub(super) fn before(&self, key: &BlockKey, own: &WorkerId) -> Vec<WorkerInfo> {
        if self.former.is_empty() {
            return Vec::new();
        }
        let owners: Vec<&WorkerInfo> = self.owners.of(key).collect();
        let is_owner = |id: &WorkerId| owners.iter().any(|owner| owner.id == *id);
        let before = self.former(key).filter(|it| !is_owner(&it.id));
        still_there(before, self.maps.current(), own, MAX_HOLDERS)
    }

    /// The workers that may hold a block of the dataset, the likeliest first: the owners of its copies, and those before them.
    pub(super) fn holders(&self, key: &BlockKey, own: &WorkerId) -> Vec<WorkerInfo> {
        let all = self.owners.of(key).chain(self.former(key));
        still_there(all, self.maps.current(), own, MAX_HOLDERS)
    }

    fn former(&self, key: &BlockKey) -> impl Iterator<Item = &WorkerInfo> {
        self.former.iter().flat_map(|owners| owners.of(key))
    }
}

impl Placed {
    /// The owners of the blocks of a dataset of this placement.
    pub(super) fn view(
        &self,
        dataset: &Arc<str>,
        known: Arc<Known>,
        maps: &Arc<Former>,
    ) -> Arc<View> {
        let now = Instant::now();
        if let Some(view) = self.views.lock().get(dataset)
            && view.is_of(&known, maps, now)
        {
            return view.clone();
        }
        // Not under the lock: for a large map it takes a while.
        let view = Arc::new(View::new(known, maps.clone(), now));
        let mut views = self.views.lock();
        if views.len() >= MAX_VIEWS && !views.contains_key(dataset) {
            let any = views.keys().next().cloned();
            any.and_then(|any| views.remove(&any));
        }
        views.insert(dataset.clone(), view.clone());
        view
    }

    /// Forgets the owners by a map that was replaced.
    pub(super) fn forget(&self) {
        self.views.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use weir_core::{Hashing, Location};
    use weir_proto::v1;

    use super::*;
    use crate::placements::Placements;

    /// A cluster as one of its workers sees it.
    struct Cluster {
        own: WorkerId,
        maps: Former,
        placements: Placements,
        placed: Placed,
    }

    impl Cluster {
        fn of(own: &str) -> Self {
            let cluster = Self {
                own: own.parse().unwrap(),
                maps: Former::default(),
                placements: Placements::default(),
                placed: Placed::default(),
            };
            cluster.placements.set(&[]);
            cluster
        }

        /// Workers with their zones and weights; those without are cordoned.
        fn map(&mut self, workers: &[(&str, &str, u64)]) {
            let workers = workers.iter().map(|(id, zone, weight)| WorkerInfo {
                id: id.parse().unwrap(),
                data_address: format!("{id}:1"),
                control_address: String::new(),
                node: id.parse().unwrap(),
                location: Location::of_names(zone, "").unwrap(),
                local_socket: String::new(),
                weight: *weight,
                cordoned_weight: 1 - weight,
            });
            let map = ClusterMap::new(1, Hashing::NEWEST, workers.collect());
            self.maps.see(&Arc::new(map), &self.own, Instant::now());
        }

        fn place(&self, version: u64, domains: &[&str]) {
            self.placements.set(&[v1::DatasetSources {
                dataset: "set".to_owned(),
                placement: Some(v1::Placement {
                    version,
                    spread: v1::Spread::Zone.into(),
                    domains: domains.iter().map(|name| (*name).to_owned()).collect(),
                    ..v1::Placement::default()
                }),
                ..v1::DatasetSources::default()
            }]);
        }

        /// The way to a block, as `filler a1`, `former a1 b1` or `not its own`.
        fn route(&self, key: u8) -> String {
            let known = self.placements.get("set").unwrap();
            let key = BlockKey([key; 16]);
            let maps = Arc::new(self.maps.clone());
            let view = self.placed.view(&"set".into(), known, &maps);
            match view.route(&"set".into(), &key, &self.own) {
                None => "not its own".to_owned(),
                Some(Route::Origin) => "origin".to_owned(),
                Some(Route::Filler(_, filler)) => format!("filler {}", filler.id),
                Some(Route::Kept(_, filler)) => format!("kept from {}", filler.id),
                Some(Route::Held(_, holders)) => {
                    let names = holders.iter().map(|holder| holder.id.as_str());
                    ["former"]
                        .into_iter()
                        .chain(names)
                        .collect::<Vec<_>>()
                        .join(" ")
                }
            }
        }
    }

    const THREE: [(&str, &str, u64); 3] = [("a1", "a", 1), ("b1", "b", 1), ("c1", "c", 1)];

    #[test]
    fn the_first_copy_is_filled_from_the_origin_and_the_others_from_that() {
        for (own, expected) in [("a1", "filler b1"), ("b1", "former"), ("c1", "not its own")] {
            let mut cluster = Cluster::of(own);
            cluster.place(1, &["b", "a"]);
            cluster.map(&THREE);
            cluster.map(&THREE);
            // All have just come: whoever was there before may hold it.
            let route = cluster.route(1);
            assert!(route.starts_with(expected), "{own}: {route}");
        }
    }

    #[test]
    fn who_becomes_the_first_owner_asks_those_before_it() {
        let mut cluster = Cluster::of("b1");
        cluster.map(&THREE);
        cluster.place(1, &["a"]);
        assert_eq!(cluster.route(1), "not its own");
        cluster.place(2, &["b"]);
        // Then whoever had its blocks while it was not there.
        assert!(cluster.route(1).starts_with("former a1"));
        // Also of the zone that it leaves because it is cordoned.
        cluster.map(&[("a1", "a", 0), ("b1", "b", 1), ("c1", "c", 1)]);
        assert!(cluster.route(1).starts_with("former a1"));
        // One that has gone since is not asked.
        cluster.map(&[("b1", "b", 1)]);
        assert_eq!(cluster.route(1), "former");
    }

    #[test]
    fn a_worker_that_came_asks_the_one_of_its_domain_that_was_there() {
        let mut cluster = Cluster::of("b2");
        cluster.place(1, &["b"]);
        cluster.map(&[("a1", "a", 1), ("b1", "b", 1), ("b2", "b", 1)]);
        let routes: Vec<String> = (0..50).map(|key| cluster.route(key)).collect();
        let own: Vec<_> = routes
            .iter()
            .filter(|route| *route != "not its own")
            .collect();
        assert!(own.len() > 10 && own.len() < 40, "{routes:?}");
        assert!(own.iter().all(|route| *route == "former b1"), "{routes:?}");
    }

    #[test]
    fn a_worker_that_came_while_a_dataset_moved_asks_where_it_was_before_both() {
        let mut cluster = Cluster::of("a2");
        cluster.place(1, &["a"]);
        cluster.place(2, &["a", "b"]);
        cluster.map(&[("a1", "a", 1), ("a2", "a", 1), ("b1", "b", 1)]);
        cluster.place(3, &["b"]);
        cluster.place(4, &["a"]);
        let routes = (0..50).map(|key| cluster.route(key));
        let own: Vec<String> = routes.filter(|route| route != "not its own").collect();
        assert!(own.len() > 10 && own.len() < 40, "{own:?}");
        // Of zone b by one placement, and of zone a before this worker was there.
        assert!(own.iter().all(|route| route == "former b1 a1"), "{own:?}");
    }

    #[test]
    fn a_copy_that_is_new_is_to_be_had_from_the_owners_of_the_others() {
        let mut cluster = Cluster::of("c1");
        cluster.map(&THREE);
        cluster.place(1, &["a", "b"]);
        let holders = |cluster: &Cluster| -> Vec<String> {
            let known = cluster.placements.get("set").unwrap();
            let (maps, key) = (Arc::new(cluster.maps.clone()), BlockKey([1; 16]));
            let view = cluster.placed.view(&"set".into(), known, &maps);
            let holders = view.holders(&key, &cluster.own);
            holders.iter().map(|holder| holder.id.to_string()).collect()
        };
        // It may be asked for it by who takes it for an owner.
        assert_eq!(holders(&cluster), ["a1", "b1"]);
        cluster.place(2, &["a", "c"]);
        assert_eq!(holders(&cluster), ["a1", "b1"]);
    }

    #[test]
    fn who_is_asked_in_an_owner_s_place_asks_those_before_it() {
        let mut cluster = Cluster::of("c1");
        cluster.place(1, &["a"]);
        let before = |cluster: &Cluster, key: u8| -> Vec<String> {
            let known = cluster.placements.get("set").unwrap();
            let (maps, key) = (Arc::new(cluster.maps.clone()), BlockKey([key; 16]));
            let view = cluster.placed.view(&"set".into(), known, &maps);
            assert_eq!(view.route(&"set".into(), &key, &cluster.own), None);
            let before = view.before(&key, &cluster.own);
            before.iter().map(|holder| holder.id.to_string()).collect()
        };
        cluster.map(&[("a1", "a", 1), ("a2", "a", 1), ("c1", "c", 1)]);
        assert!((0..50).all(|key| before(&cluster, key).is_empty()));
        // One of the two is drained: what was its own it has still.
        cluster.map(&[("a1", "a", 0), ("a2", "a", 1), ("c1", "c", 1)]);
        let of_drained = (0..50).filter(|key| before(&cluster, *key) == ["a1"]);
        let of_drained: Vec<u8> = of_drained.collect();
        assert!(of_drained.len() > 10 && of_drained.len() < 40);
        let mut others = (0..50).filter(|key| !of_drained.contains(key));
        assert!(others.all(|key| before(&cluster, key).is_empty()));
        // It is gone.
        cluster.map(&[("a2", "a", 1), ("c1", "c", 1)]);
        assert!((0..50).all(|key| before(&cluster, key).is_empty()));
    }

    #[test]
    fn owners_are_found_anew_only_when_the_placement_or_the_map_has_changed() {
        let mut cluster = Cluster::of("a1");
        cluster.map(&THREE);
        cluster.place(1, &["a"]);
        let maps = Arc::new(cluster.maps.clone());
        let view = || {
            let known = cluster.placements.get("set").unwrap();
            cluster.placed.view(&"set".into(), known, &maps)
        };
        let first = view();
        assert!(Arc::ptr_eq(&first, &view()));
        cluster.place(2, &["b"]);
        assert!(!Arc::ptr_eq(&first, &view()));
        for number in 0..2 * MAX_VIEWS {
            let known = cluster.placements.get("set").unwrap();
            let dataset = format!("set{number}").into();
            cluster.placed.view(&dataset, known, &maps);
        }
        assert_eq!(cluster.placed.views.lock().len(), MAX_VIEWS);
    }
}
