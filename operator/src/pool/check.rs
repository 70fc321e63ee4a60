//! What of a pool makes no sense, in one sentence that says what to change.

use std::collections::HashSet;

use weir_core::{ByteSize, FreeSpace, PlaceName};

use super::schedule;
use crate::objects::{CachePoolSpec, ScheduledSize, SsdTier};

/// Longest name: those of its workload and of that one's pods are made of it.
const MAX_NAME: usize = 40;
/// Least bytes of a tier on a disk: four segments that each hold a full block.
const LEAST_SSD: u64 = 17 << 20;
/// Flags that the specification has fields for, and those by which the installation finds a worker.
const TAKEN: [(&str, &str); 10] = [
    ("--mem", "tiers.memory"),
    ("--ssd", "tiers.ssd"),
    ("--ssd-free", "tiers.free"),
    ("--pool", "pool"),
    ("--dir", ""),
    ("--master", ""),
    ("--certs", ""),
    ("--id", ""),
    ("--node", ""),
    ("--listen", ""),
];

/// Judges a pool.
pub(crate) fn check(name: &str, spec: &CachePoolSpec) -> Result<(), String> {
    let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.len() > MAX_NAME || !name.bytes().all(is_label) {
        return Err(format!(
            "metadata.name: {name:?} cannot be a pool's; write at most {MAX_NAME} lower-case letters, digits or '-'"
        ));
    }
    if let Some(pool) = &spec.pool {
        pool.parse::<PlaceName>()
            .map_err(|error| format!("spec.pool: {error}"))?;
    }
    for (index, tier) in spec.tiers.ssd.iter().enumerate() {
        ssd(tier).map_err(|problem| format!("spec.tiers.ssd[{index}]{problem}"))?;
    }
    let mut paths = HashSet::new();
    let twice = spec.tiers.ssd.iter().find(|tier| !paths.insert(&tier.path));
    if let Some(twice) = twice {
        let path = twice.path.as_deref().unwrap_or("without a path");
        return Err(format!(
            "spec.tiers.ssd: a directory can be one tier, and {path} is there twice; take one away"
        ));
    }
    if let Some(memory) = &spec.tiers.memory {
        let size = memory.parse::<ByteSize>();
        size.map_err(|error| format!("spec.tiers.memory: {error}"))?;
    }
    if let Some(free) = &spec.tiers.free {
        let space = free.parse::<FreeSpace>();
        space.map_err(|error| format!("spec.tiers.free: {error}"))?;
    }
    for (index, arg) in spec.args.iter().enumerate() {
        flag(arg).map_err(|problem| format!("spec.args[{index}]: {problem}"))?;
    }
    sizes(spec)
}

fn ssd(tier: &SsdTier) -> Result<(), String> {
    let size = tier.size.parse::<ByteSize>();
    let size = size.map_err(|error| format!(".size: {error}"))?;
    if size.0 < LEAST_SSD {
        return Err(format!(
            ".size: {} is too small for a tier; write 17MiB or more",
            tier.size
        ));
    }
    let Some(path) = &tier.path else {
        return Ok(());
    };
    let is_one = path.starts_with('/')
        && path.len() > 1
        && !path.ends_with('/')
        && path
            .split('/')
            .skip(1)
            .all(|part| !matches!(part, "" | "." | ".."))
        && !path.contains([',', ':'])
        && !path.contains(char::is_control);
    if is_one {
        Ok(())
    } else {
        Err(format!(
            ".path: {path:?} is not the path of a directory on a node; write one from / on, without . and .., ',' and ':'"
        ))
    }
}

fn flag(arg: &str) -> Result<(), String> {
    let name = arg.split('=').next().unwrap_or_default();
    if !name.starts_with("--") {
        return Err(format!(
            "{arg:?} is not a flag; write --NAME=VALUE in one word"
        ));
    }
    match TAKEN.iter().find(|(taken, _)| *taken == name) {
        None => Ok(()),
        Some((_, "")) => Err(format!("{name} is the installation's to say; leave it out")),
        Some((_, field)) => Err(format!("write spec.{field} in place of {name}")),
    }
}

fn sizes(spec: &CachePoolSpec) -> Result<(), String> {
    for (index, entry) in spec.schedule.iter().enumerate() {
        schedule::parse(entry).map_err(|problem| format!("spec.schedule[{index}].{problem}"))?;
        let ScheduledSize { replicas, .. } = entry;
        if *replicas < 0 {
            return Err(format!(
                "spec.schedule[{index}].replicas: {replicas} is no number of workers; write 0 or more"
            ));
        }
    }
    let has_size = spec.replicas.is_some();
    if !has_size && !spec.schedule.is_empty() {
        return Err(
            "spec.schedule: a pool with a worker on every node has no size; write spec.replicas, too"
                .to_owned(),
        );
    }
    let Some(auto) = &spec.autoscaling else {
        return Ok(());
    };
    if !has_size {
        return Err(
            "spec.autoscaling: a pool with a worker on every node has no size; write spec.replicas, too"
                .to_owned(),
        );
    }
    if auto.min_replicas > auto.max_replicas {
        return Err(format!(
            "spec.autoscaling: minReplicas is {} and maxReplicas only {}; write the smaller one first",
            auto.min_replicas, auto.max_replicas
        ));
    }
    if auto.cached_percent.is_none() && auto.hit_percent.is_none() {
        return Err(
            "spec.autoscaling: there is nothing to be aimed at; write cachedPercent, hitPercent or both"
                .to_owned(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn judge(spec: Value) -> Result<(), String> {
        check("gpu", &serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn what_makes_no_sense_is_told_in_one_sentence_that_says_what_to_change() {
        let ssd = |tier: Value| json!({ "tiers": { "ssd": [tier] } });
        let auto = |auto: Value| json!({ "replicas": 1, "autoscaling": auto });
        for (spec, part) in [
            (json!({ "pool": "a b" }), "spec.pool"),
            (
                json!({ "tiers": { "memory": "much" } }),
                "spec.tiers.memory",
            ),
            (json!({ "tiers": { "free": "100%" } }), "spec.tiers.free"),
            (json!({ "args": ["--ssd-free=0"] }), "spec.tiers.free"),
            (ssd(json!({ "size": "1MiB" })), "17MiB"),
            (ssd(json!({ "size": "" })), "spec.tiers.ssd[0].size"),
            (ssd(json!({ "size": "1GiB", "path": "data" })), "from / on"),
            (
                ssd(json!({ "size": "1GiB", "path": "/a/../b" })),
                "from / on",
            ),
            (ssd(json!({ "size": "1GiB", "path": "/a:b" })), "from / on"),
            (ssd(json!({ "size": "1GiB", "path": "/" })), "from / on"),
            (
                json!({ "tiers": { "ssd": [{ "size": "1GiB" }, { "size": "2GiB" }] } }),
                "twice",
            ),
            (json!({ "args": ["--mem=1GiB"] }), "spec.tiers.memory"),
            (json!({ "args": ["--master=evil:1"] }), "installation"),
            (json!({ "args": ["keep"] }), "--NAME=VALUE"),
            (
                json!({ "replicas": 1, "schedule": [{ "cron": "x", "replicas": 1 }] }),
                "spec.schedule[0].cron",
            ),
            (
                json!({ "schedule": [{ "cron": "0 8 * * *", "replicas": 1 }] }),
                "spec.replicas, too",
            ),
            (
                json!({ "autoscaling": { "minReplicas": 1, "maxReplicas": 2, "hitPercent": 90 } }),
                "spec.replicas, too",
            ),
            (
                auto(json!({ "minReplicas": 3, "maxReplicas": 2, "hitPercent": 90 })),
                "the smaller one first",
            ),
            (
                auto(json!({ "minReplicas": 1, "maxReplicas": 2 })),
                "aimed at",
            ),
        ] {
            let error = judge(spec.clone()).expect_err(&spec.to_string());
            assert!(error.contains(part), "{spec}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        for name in ["Gpu", "a.b", &"a".repeat(41)] {
            check(name, &CachePoolSpec::default()).expect_err(name);
        }
    }

    #[test]
    fn what_can_be_is_let_through() {
        judge(json!({})).unwrap();
        judge(json!({
            "replicas": 3,
            "tiers": { "memory": "1.5GiB", "ssd": [{ "size": "100GiB" }, { "path": "/mnt/a", "size": "1TB" }] },
            "args": ["--keep=0", "--zone=b"],
            "schedule": [{ "cron": "0 8 * * 1-5", "timeZone": "Asia/Shanghai", "replicas": 0 }],
            "autoscaling": { "minReplicas": 1, "maxReplicas": 9, "cachedPercent": 80 },
        }))
        .unwrap();
    }
}
