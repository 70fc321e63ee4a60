//! What a worker may say of itself.
//!
//! Every client takes the cluster map for true: who has the largest weight in it is asked for the most blocks, at the
//! address that it named. So a worker with a certificate may claim its certificate's name, no more weight than that allows,
//! the node (also as the machine that its socket is on), zone, group and pool that it names, if it names one, and addresses that it names or that the worker connected from. Of those without
//! one only what no worker can be is refused.
//!
//! Whose a Unix socket is nobody can know here. Each mount asks its own kernel when it connects; here it is only seen to that
//! the path does not depend on the mount's working directory.

use weir_core::{ByteSize, WorkerId};
use weir_proto::v1;
use weir_trust::{Caller, Peer};

use crate::error::MasterError;

/// The largest cache that any worker may claim: 16 PiB, some times what fits into a machine.
pub(crate) const MAX_WEIGHT: ByteSize = ByteSize(1 << 54);
/// Marks the path of a Unix socket, which the master would open as its own user.
const UNIX: &str = "unix:";

/// Whether a caller may announce this worker.
pub(crate) fn check(caller: &Caller, info: &v1::WorkerInfo) -> Result<(), MasterError> {
    let denied = |what: String| {
        Err(MasterError::Denied(format!(
            "{caller} may not claim {what}"
        )))
    };
    let id: WorkerId = info.id.parse()?;
    is_own(caller, &id)?;
    let most = caller.peer().and_then(|peer| peer.subject.max_weight);
    let most = most.unwrap_or(MAX_WEIGHT).min(MAX_WEIGHT);
    if info.weight > most.0 {
        return denied(format!(
            "a weight of {}: {most} is the most",
            ByteSize(info.weight)
        ));
    }
    if !matches!(caller, Caller::Local { .. }) && info.control_address.starts_with(UNIX) {
        return denied("a Unix socket for an address".to_owned());
    }
    let Some(peer) = caller.peer() else {
        return Ok(());
    };
    if let Some(node) = &peer.subject.node {
        if node.as_str() != info.node {
            return denied(format!(
                "to be on node {:?}: its certificate says {node}",
                info.node
            ));
        }
        if !info.machine.is_empty() && node.as_str() != info.machine {
            return denied(format!(
                "to be on machine {:?}: its certificate says {node}",
                info.machine
            ));
        }
    }
    let limits = &peer.subject.place;
    for (what, allowed, claimed) in [
        ("zone", &limits.zone, &info.zone),
        ("group", &limits.group, &info.group),
        ("pool", &limits.pool, &info.pool),
    ] {
        if let Some(allowed) = allowed
            && allowed.as_str() != claimed
        {
            return denied(format!(
                "to be in {what} {claimed:?}: its certificate says {allowed}"
            ));
        }
    }
    for address in [&info.data_address, &info.control_address] {
        if !may_claim(peer, caller, address) {
            return denied(format!(
                "the address {address:?}: its certificate does not name it, and it connected from elsewhere"
            ));
        }
    }
    Ok(())
}

/// The path of a worker's socket as mounts are told of it: none if it is not absolute, as those of earlier versions may be.
pub(crate) fn socket(path: String) -> String {
    if path.starts_with('/') && !path.contains('\0') {
        return path;
    }
    String::new()
}

/// Whether a caller may speak for a worker.
pub(crate) fn is_own(caller: &Caller, id: &WorkerId) -> Result<(), MasterError> {
    match caller.peer() {
        Some(peer) if peer.subject.name.as_str() != id.as_str() => Err(MasterError::Denied(
            format!("{caller} may not claim to be worker {id}"),
        )),
        _ => Ok(()),
    }
}

fn may_claim(peer: &Peer, caller: &Caller, address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    port.parse::<u16>().is_ok() && peer.may_claim(host, caller.from())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use weir_trust::{Place, Role, Subject};

    use super::*;

    fn worker(max_weight: Option<u64>) -> Caller {
        let subject = Subject {
            role: Role::Worker,
            name: "gpu-7".parse().unwrap(),
            max_weight: max_weight.map(ByteSize),
            node: Some("gpu-7".parse().unwrap()),
            place: Place::default(),
        };
        Caller::Peer {
            peer: Arc::new(Peer {
                subject,
                addresses: vec!["gpu-7.lab".to_owned()],
                begins: SystemTime::UNIX_EPOCH,
                expires: SystemTime::UNIX_EPOCH,
            }),
            from: Some("10.0.0.7".parse().unwrap()),
        }
    }

    fn claim(id: &str, weight: u64, data: &str, control: &str) -> v1::WorkerInfo {
        v1::WorkerInfo {
            id: id.to_owned(),
            node: id.to_owned(),
            data_address: data.to_owned(),
            control_address: control.to_owned(),
            weight,
            ..Default::default()
        }
    }

    #[track_caller]
    fn denied(caller: &Caller, claim: &v1::WorkerInfo) -> String {
        match check(caller, claim) {
            Err(MasterError::Denied(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_worker_may_claim_what_its_certificate_says() {
        for (data, control) in [
            ("gpu-7.lab:7450", "gpu-7.lab:7451"),
            ("10.0.0.7:7450", "[::ffff:10.0.0.7]:7451"),
        ] {
            check(&worker(None), &claim("gpu-7", 5, data, control)).unwrap();
            check(&worker(Some(5)), &claim("gpu-7", 5, data, control)).unwrap();
        }
    }

    #[test]
    fn a_name_a_weight_and_addresses_of_others_are_denied() {
        let (own, at) = ("gpu-7", "10.0.0.7:7450");
        let caller = worker(Some(1 << 40));
        let why = denied(&caller, &claim("gpu-8", 5, at, at));
        assert_eq!(
            why,
            "worker gpu-7 at 10.0.0.7 may not claim to be worker gpu-8"
        );
        let why = denied(&caller, &claim(own, 1 << 60, at, at));
        assert!(why.contains("weight of 1024PiB: 1TiB is the most"), "{why}");
        for address in [
            "10.0.0.8:7450",
            "gpu-8.lab:7450",
            "10.0.0.7",
            "10.0.0.7:x",
            "",
            "unix:/run/docker.sock",
            "gpu-7.lab:7450@10.0.0.8:80",
        ] {
            denied(&caller, &claim(own, 5, address, at));
            denied(&caller, &claim(own, 5, at, address));
        }
    }

    #[test]
    fn a_node_that_the_certificate_does_not_name_is_denied() {
        let at = "10.0.0.7:7450";
        let elsewhere = v1::WorkerInfo {
            node: "gpu-8".to_owned(),
            ..claim("gpu-7", 5, at, at)
        };
        let why = denied(&worker(None), &elsewhere);
        assert!(
            why.contains("node \"gpu-8\": its certificate says gpu-7"),
            "{why}"
        );
        check(&Caller::Local { uid: 7 }, &elsewhere).unwrap();
        // Mounts on that machine would try its socket first.
        let on = |machine: &str| v1::WorkerInfo {
            machine: machine.to_owned(),
            ..claim("gpu-7", 5, at, at)
        };
        let why = denied(&worker(None), &on("gpu-8"));
        assert!(
            why.contains("machine \"gpu-8\": its certificate says gpu-7"),
            "{why}"
        );
        for machine in ["", "gpu-7"] {
            check(&worker(None), &on(machine)).unwrap();
        }
        let mut anywhere = worker(None);
        let Caller::Peer { peer, .. } = &mut anywhere else {
            unreachable!("made above");
        };
        Arc::get_mut(peer).unwrap().subject.node = None;
        check(&anywhere, &on("gpu-8")).unwrap();
    }

    #[test]
    fn a_zone_a_group_and_a_pool_that_the_certificate_does_not_name_are_denied() {
        let at = "10.0.0.7:7450";
        let of = |zone: &str, group: &str, pool: &str| v1::WorkerInfo {
            zone: zone.to_owned(),
            group: group.to_owned(),
            pool: pool.to_owned(),
            ..claim("gpu-7", 5, at, at)
        };
        let name = |name: &str| Some(name.parse().unwrap());
        let mut caller = worker(None);
        let Caller::Peer { peer, .. } = &mut caller else {
            unreachable!("made above");
        };
        Arc::get_mut(peer).unwrap().subject.place = Place {
            zone: name("a"),
            group: name("r1"),
            pool: name("gpu"),
        };
        check(&caller, &of("a", "r1", "gpu")).unwrap();
        for (zone, group, pool) in [
            ("b", "r1", "gpu"),
            ("", "r1", "gpu"),
            ("a", "r2", "gpu"),
            ("a", "r1", ""),
        ] {
            let why = denied(&caller, &of(zone, group, pool));
            assert!(why.contains("its certificate says"), "{why}");
        }
        check(&worker(None), &of("b", "r2", "any")).unwrap();
    }

    #[test]
    fn a_socket_is_an_absolute_path_or_none() {
        assert_eq!(socket("/run/w.sock".to_owned()), "/run/w.sock");
        for path in ["", "w.sock", "../w.sock", "/run/\0/x"] {
            assert_eq!(socket(path.to_owned()), "", "{path:?}");
        }
    }

    #[test]
    fn without_a_certificate_what_no_worker_can_be_is_denied() {
        let (own, anybody) = (Caller::Local { uid: 7 }, Caller::Anybody { from: None });
        for caller in [&own, &anybody] {
            check(caller, &claim("a", MAX_WEIGHT.0, "b:1", "c:1")).unwrap();
            denied(caller, &claim("a", 1 << 60, "b:1", "c:1"));
        }
        let unix = claim("a", 5, "", "unix:/run/weir/worker.sock");
        check(&own, &unix).unwrap();
        denied(&anybody, &unix);
    }
}
