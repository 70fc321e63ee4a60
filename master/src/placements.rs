//! Which workers hold a dataset, as messages and records say it.

use std::sync::Arc;

use weir_core::placement::domains::{Keep, MAX_DOMAINS, Placement, Spread};
use weir_core::{ClusterMap, Hashing, Location, WorkerInfo};
use weir_proto::v1;

/// What placements are chosen by: the workers of a map, without their addresses.
pub(crate) fn cluster(map: &v1::ClusterMap) -> Arc<ClusterMap> {
    // Names were checked before they came into the map.
    let worker = |info: &v1::WorkerInfo| {
        let location = Location::of_names(&info.zone, &info.group).ok()?;
        Some(WorkerInfo {
            id: info.id.parse().ok()?,
            data_address: String::new(),
            control_address: String::new(),
            node: info.node.parse().ok()?,
            location: location.in_pool(&info.pool).ok()?,
            local_socket: String::new(),
            weight: info.weight,
            cordoned_weight: info.cordoned_weight,
        })
    };
    let workers = map.workers.iter().filter_map(worker).collect();
    let hashing = Hashing::of_number(map.hashing);
    Arc::new(ClusterMap::new(map.epoch, hashing, workers))
}

/// A placement as a message.
pub(crate) fn to_message(placement: Placement) -> v1::Placement {
    let spread = match placement.spread {
        Spread::Node => v1::Spread::Node,
        Spread::Group => v1::Spread::Group,
        Spread::Zone => v1::Spread::Zone,
        Spread::Cluster => v1::Spread::Cluster,
    };
    v1::Placement {
        version: placement.version,
        spread: spread.into(),
        domains: placement.domains,
        pool: placement.pool.map(String::from).unwrap_or_default(),
        keep: placement
            .keep
            .map_or(v1::Keep::Unspecified, |Keep::Node| v1::Keep::Node)
            .into(),
    }
}

/// The placement of a record. What this version does not know of it is the cluster.
pub(crate) fn of_message(message: &v1::Placement) -> Placement {
    let spread = match message.spread() {
        v1::Spread::Node => Spread::Node,
        v1::Spread::Group => Spread::Group,
        v1::Spread::Zone => Spread::Zone,
        v1::Spread::Cluster | v1::Spread::Unspecified => Spread::Cluster,
    };
    let domains = message.domains.iter().take(MAX_DOMAINS);
    Placement {
        version: message.version,
        spread,
        domains: domains.cloned().collect(),
        pool: message.pool.parse().ok(),
        keep: (message.keep() == v1::Keep::Node).then_some(Keep::Node),
    }
}
