//! Which labels of nodes say where workers stand, as the CachePools have it.

use std::collections::BTreeSet;

use crate::objects::{CachePoolSpec, ZONE_LABEL};

/// The label that kubelet makes of `--group` of the node plugin.
pub(super) const GROUP_LABEL: &str = "weir.io/group";
/// Longest value of a label, and name in a key, in bytes.
const MAX_LABEL: usize = 63;
/// Longest prefix of a key.
const MAX_PREFIX: usize = 253;

/// Labels of nodes whose values are the zones and groups of workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) zones: BTreeSet<String>,
    /// Those of groups, each with that of the zones around them.
    pub(super) groups: BTreeSet<(String, Option<String>)>,
    /// Flags of workers say some zones, or groups, and nodes may have no label for these: a pod must not require one.
    pub(super) are_zones_guessed: bool,
    pub(super) are_groups_guessed: bool,
}

impl Keys {
    /// The labels that pools name, and the usual ones for what flags say.
    pub(super) fn of<'a>(pools: impl IntoIterator<Item = &'a CachePoolSpec>) -> Self {
        let mut pools = pools.into_iter().peekable();
        if pools.peek().is_none() {
            // Somebody else made the workers, or the pools were not listed yet.
            return Self {
                zones: [ZONE_LABEL.to_owned()].into(),
                groups: [(GROUP_LABEL.to_owned(), Some(ZONE_LABEL.to_owned()))].into(),
                are_zones_guessed: true,
                are_groups_guessed: true,
            };
        }
        let mut keys = Self::default();
        for pool in pools {
            let zone = pool.zone_of_nodes().filter(|key| is_key(key));
            let mut group = pool.group_of_nodes().filter(|key| is_key(key));
            if pool.has_flag("--group") {
                group = Some(GROUP_LABEL);
                keys.are_groups_guessed = true;
            }
            if let Some(group) = group {
                let zone = zone.map(str::to_owned);
                keys.groups.insert((group.to_owned(), zone));
            }
            let says_zone = pool.has_flag("--zone");
            keys.are_zones_guessed |= says_zone;
            keys.zones
                .extend(zone.or(says_zone.then_some(ZONE_LABEL)).map(str::to_owned));
        }
        keys
    }
}

/// Whether a label can have the value, and says something with it. The apiserver refuses a pod with a term for another one.
pub(super) fn is_value(value: &str) -> bool {
    let is_end = |end: Option<&u8>| end.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    let is_inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    bytes.len() <= MAX_LABEL
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes.iter().all(is_inner)
}

/// Whether a label can have the key: a name, which may have a DNS name before it.
fn is_key(key: &str) -> bool {
    let is_part = |part: &str| is_value(part) && !part.contains(['_', '.']);
    let is_lower = |prefix: &str| !prefix.contains(|c: char| c.is_ascii_uppercase());
    match key.split_once('/') {
        None => is_value(key),
        Some((prefix, name)) => {
            prefix.len() <= MAX_PREFIX
                && is_lower(prefix)
                && prefix.split('.').all(is_part)
                && is_value(name)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn keys(pools: Value) -> Keys {
        let pools: Vec<CachePoolSpec> = serde_json::from_value(pools).unwrap();
        Keys::of(&pools)
    }

    #[test]
    fn pools_name_the_labels_and_flags_leave_them_to_guess() {
        let racks = json!({ "groupLabel": "rack" });
        let rooms = json!({ "zoneLabel": "dc.example/room", "groupLabel": "rack" });
        let known = keys(json!([{}, racks, rooms, racks]));
        let expected = ["dc.example/room", ZONE_LABEL].map(str::to_owned);
        assert_eq!(known.zones, expected.clone().into());
        let expected = expected.map(|zone| ("rack".to_owned(), Some(zone)));
        assert_eq!(known.groups, expected.into());
        assert!(!known.are_zones_guessed && !known.are_groups_guessed);

        let said = keys(json!([{ "args": ["--zone=a", "--group", "r1"], "groupLabel": "rack" }]));
        assert_eq!(said.zones, [ZONE_LABEL.to_owned()].into());
        assert_eq!(said.groups, [(GROUP_LABEL.to_owned(), None)].into());
        assert!(said.are_zones_guessed && said.are_groups_guessed);

        let none = keys(json!([{}]));
        assert_eq!(none.groups, BTreeSet::new(), "no worker has a group");
        let unknown = keys(json!([]));
        assert!(unknown.are_zones_guessed && unknown.are_groups_guessed);
    }

    #[test]
    fn what_no_label_can_be_is_no_label() {
        let known = keys(json!([{ "zoneLabel": "no key", "groupLabel": "Dc.example/rack" }]));
        assert_eq!(known, Keys::default());
        for key in ["rack", "dc.example/Rack_1.b", "topology.kubernetes.io/zone"] {
            assert!(is_key(key), "{key}");
        }
        for key in ["", "-", "a/b/c", "/rack", "dc./rack", "d_c/rack", "dc/"] {
            assert!(!is_key(key), "{key}");
        }
        for value in ["r1", "R_1.b-c", &"x".repeat(MAX_LABEL)] {
            assert!(is_value(value), "{value}");
        }
        for value in ["", "-", "~7", "r1.", "a/b", "ä", &"x".repeat(MAX_LABEL + 1)] {
            assert!(!is_value(value), "{value}");
        }
    }
}
