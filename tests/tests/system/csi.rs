//! The node plugin of Kubernetes without Kubernetes: kubelet's calls over the socket, and real mounts of a small cluster.

pub(crate) mod deaths;
pub(crate) mod node;
mod sanity;

use rustix::io::Errno;
use rustix::process::Signal;
use tonic::Code;
use weir_csi::proto::csi::identity_client::IdentityClient;
use weir_csi::proto::csi::node_client::NodeClient;
use weir_csi::proto::csi::volume_capability::{AccessType, BlockVolume, access_mode::Mode};
use weir_csi::proto::csi::{GetPluginInfoRequest, NodeGetInfoRequest, NodePublishVolumeRequest};
use weir_csi::proto::registration::InfoRequest;
use weir_csi::proto::registration::registration_client::RegistrationClient;
use weir_mount::table;
use weir_tests::{Cluster, Lab, free_port, wait_until};

use self::node::{Node, REGISTRATION, SOON, compare, fill, request, within};
use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "kubelet_finds_the_driver_and_a_second_one_is_refused",
        kubelet_finds_the_driver_and_a_second_one_is_refused,
    ),
    (
        "pods_read_a_dataset_and_nothing_of_it_is_left",
        pods_read_a_dataset_and_nothing_of_it_is_left,
    ),
    (
        "calls_at_once_and_out_of_order_make_one_mount",
        calls_at_once_and_out_of_order_make_one_mount,
    ),
    (
        "what_cannot_be_mounted_is_said_in_one_sentence",
        what_cannot_be_mounted_is_said_in_one_sentence,
    ),
    (
        "a_snapshot_that_the_node_knows_is_mounted_while_the_master_is_away",
        a_snapshot_that_the_node_knows_is_mounted_while_the_master_is_away,
    ),
    (
        "csi_sanity_passes_and_what_it_skips_is_documented",
        sanity::csi_sanity_passes_and_what_it_skips_is_documented,
    ),
];

fn kubelet_finds_the_driver_and_a_second_one_is_refused() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let mut node = Node::start(&lab, &cluster);
    let info = |node: &Node<'_>| {
        let mut client = RegistrationClient::new(node.channel(REGISTRATION));
        let call = client.get_info(within(InfoRequest {}));
        node.runtime.block_on(call).unwrap().into_inner()
    };
    let told = info(&node);
    assert_eq!(
        (told.r#type.as_str(), told.name.as_str()),
        ("CSIPlugin", "csi.weir.io")
    );
    assert_eq!(told.endpoint, lab.path("csi.sock").display().to_string());
    let mut identity = IdentityClient::new(node.channel("csi.sock"));
    let call = identity.get_plugin_info(within(GetPluginInfoRequest {}));
    let name = node.runtime.block_on(call).unwrap().into_inner().name;
    assert_eq!(name, "csi.weir.io");
    let mut client = NodeClient::new(node.channel("csi.sock"));
    let call = client.node_get_info(within(NodeGetInfoRequest {}));
    let own = node.runtime.block_on(call).unwrap().into_inner();
    assert_eq!(own.node_id, "node-0");
    assert_eq!(
        own.accessible_topology.unwrap().segments["weir.io/group"],
        "rack-7"
    );

    let said = lab.run(node.command(free_port(), false)).fails(1);
    assert!(said.contains("another node plugin listens"), "{said}");
    assert_eq!(info(&node).name, "csi.weir.io", "it still answers");
    // A killed plugin leaves its sockets, and the next one takes their places.
    node.kill_plugin();
    assert!(lab.path(REGISTRATION).exists());
    node.start_plugin();
    assert_eq!(info(&node).name, "csi.weir.io");
    node.plugin().signal(Signal::TERM);
    wait_until("both sockets are removed", SOON, || {
        !lab.path(REGISTRATION).exists() && !lab.path("csi.sock").exists()
    });
}

fn pods_read_a_dataset_and_nothing_of_it_is_left() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 2);
    let files = fill(&lab, &cluster);
    let node = Node::start(&lab, &cluster);
    node.unpublish("never-there").unwrap();
    node.publish("all", &[("dataset", "x")]).unwrap();
    compare(&node.target("all"), &files, "");
    let part = [
        ("dataset", "team-a/x"),
        ("snapshot", "1"),
        ("path", "train/d1"),
    ];
    let mut inline = request(&node.target("part"), &part, Mode::SingleNodeWriter);
    let ephemeral = "csi.storage.k8s.io/ephemeral".to_owned();
    inline.volume_context.insert(ephemeral, "true".to_owned());
    inline.readonly = false;
    node.ask(inline).unwrap();
    compare(&node.target("part"), &files, "train/d1/");
    assert_eq!(node.mounts().len(), 3, "one mount and two volumes of it");

    let written = std::fs::write(node.target("all").join("new"), "x").unwrap_err();
    assert_eq!(written.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let target = node.target("part").display().to_string();
    let line = table.lines().find(|line| line.contains(&target)).unwrap();
    let options = line.split(' ').nth(5).unwrap();
    for option in ["ro", "nosuid", "nodev"] {
        assert!(options.split(',').any(|set| set == option), "{line}");
    }

    let stats = node.stats("all").unwrap();
    assert!(!stats.volume_condition.unwrap().abnormal);
    let bytes: usize = files.values().map(Vec::len).sum();
    assert!(stats.usage[0].total >= bytes as i64, "{:?}", stats.usage);
    assert!(
        stats.usage[1].total >= files.len() as i64,
        "{:?}",
        stats.usage
    );
    assert_eq!(node.stats("nowhere").unwrap_err().code(), Code::NotFound);
    let plugin = node.plugin();
    let counted = |name: &str| plugin.metric(name, "") as u64;
    assert_eq!(
        (counted("weir_csi_mounts"), counted("weir_csi_volumes")),
        (1, 2)
    );

    for name in ["all", "all", "part", "part"] {
        node.unpublish(name).unwrap();
    }
    node.is_clean();
    assert!(plugin.metric("weir_csi_calls_total", "code=\"Ok\"") >= 7.0);
}

fn calls_at_once_and_out_of_order_make_one_mount() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    let files = fill(&lab, &cluster);
    let node = Node::start(&lab, &cluster);
    let all = |calls: usize, undo: bool| {
        std::thread::scope(|scope| {
            let run = |number: usize| {
                let name = format!("pod-{}", number % 3);
                if undo {
                    node.unpublish(&name)
                } else {
                    node.publish(&name, &[("dataset", "x")])
                }
            };
            let threads: Vec<_> = (0..calls).map(|n| scope.spawn(move || run(n))).collect();
            let ended = threads.into_iter().map(|thread| thread.join().unwrap());
            ended.collect::<Vec<_>>()
        })
    };
    for call in all(12, false) {
        call.unwrap();
    }
    assert_eq!(node.mounts().len(), 4);
    compare(&node.target("pod-2"), &files, "");
    // Both at once end in one or the other, and never in half of either.
    std::thread::scope(|scope| {
        scope.spawn(|| all(6, true));
        scope.spawn(|| all(6, false));
    });
    for name in ["pod-0", "pod-1", "pod-2"] {
        let layers = |entry: &&table::Entry| entry.mountpoint.ends_with(name);
        assert!(node.mounts().iter().filter(layers).count() <= 1);
        node.publish(name, &[("dataset", "x")]).unwrap();
    }
    compare(&node.target("pod-0"), &files, "");
    for call in all(9, true) {
        call.unwrap();
    }
    node.is_clean();
}

fn what_cannot_be_mounted_is_said_in_one_sentence() {
    let lab = Lab::new();
    let mut cluster = Cluster::start(&lab, 1);
    fill(&lab, &cluster);
    cluster.create_dataset("team-b/y");
    std::os::unix::fs::symlink("/etc", lab.path("link")).unwrap();
    {
        let node = Node::start(&lab, &cluster);
        let x = ("dataset", "x");
        let refused = |attributes: &[(&str, &str)], code: Code, said: &str| {
            let status = node.publish("a", attributes).unwrap_err();
            assert_eq!(status.code(), code, "{status:?}");
            let text = status.message();
            assert!(text.contains(said), "{text}");
            assert!(!text.contains('\n') && text.len() < 800, "{text}");
        };
        refused(
            &[("dataset", "missing")],
            Code::NotFound,
            "team-a/missing does not exist",
        );
        refused(&[("dataset", "team-b/y")], Code::PermissionDenied, "team-a");
        refused(
            &[("dataset", "team-b/missing")],
            Code::PermissionDenied,
            "team-a",
        );
        refused(&[x, ("snapshot", "9")], Code::NotFound, "its newest is 1");
        refused(
            &[x, ("path", "train/nowhere")],
            Code::NotFound,
            "no directory",
        );
        refused(
            &[x, ("path", "train/d0/f0")],
            Code::NotFound,
            "no directory",
        );
        refused(&[x, ("path", "../..")], Code::InvalidArgument, "has ..");
        refused(
            &[x, ("snapshots", "1")],
            Code::InvalidArgument,
            "`snapshot`",
        );
        refused(&[], Code::InvalidArgument, "names no dataset");
        // What the operator knows, and the master by it.
        node.note(
            "team-a/denied",
            "AccessDenied",
            "s3://b: access denied (403)",
        );
        refused(
            &[("dataset", "denied")],
            Code::FailedPrecondition,
            "team-a/denied is not ready (AccessDenied): s3://b: access denied (403); see kubectl",
        );
        node.note("team-b/denied", "AccessDenied", "secret of team-b");
        refused(
            &[("dataset", "team-b/denied")],
            Code::PermissionDenied,
            "does not let in",
        );
        node.note("team-a/denied", "", "");
        refused(&[("dataset", "denied")], Code::NotFound, "does not exist");

        let invalid = |request: NodePublishVolumeRequest| {
            let status = node.ask(request).unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        };
        let reader = Mode::MultiNodeReaderOnly;
        invalid(request(&lab.path("elsewhere"), &[x], reader));
        invalid(request(&node.target("../../elsewhere"), &[x], reader));
        invalid(request(&node.source("x"), &[x], reader));
        invalid(request(&node.target("a"), &[x], Mode::MultiNodeMultiWriter));
        let mut block = request(&node.target("a"), &[x], reader);
        let capability = block.volume_capability.as_mut().unwrap();
        capability.access_type = Some(AccessType::Block(BlockVolume {}));
        invalid(block);
        let mut nameless = request(&node.target("a"), &[x], reader);
        nameless.volume_id.clear();
        invalid(nameless);
        std::os::unix::fs::symlink(lab.path(""), node.target("link")).unwrap();
        invalid(request(&node.target("link/a"), &[x], reader));
        assert!(!lab.path("a").exists());
        std::fs::remove_file(node.target("link")).unwrap();
        let _ = node.unpublish("a");
        node.is_clean();
    }
    cluster.master.take().unwrap().kill();
    let node = Node::start(&lab, &cluster);
    let status = node.publish("a", &[("dataset", "x")]).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("does not answer"), "{status:?}");
}

fn a_snapshot_that_the_node_knows_is_mounted_while_the_master_is_away() {
    let lab = Lab::new();
    let mut cluster = Cluster::start(&lab, 1);
    let files = fill(&lab, &cluster);
    let known = [("dataset", "x@1")];
    let is_mounted_without_it = |node: &Node<'_>| {
        node.publish("b", &known).unwrap();
        compare(&node.target("b"), &files, "");
        node.unpublish("b").unwrap();
        node.is_clean();
    };
    {
        let node = Node::start(&lab, &cluster);
        node.publish("a", &known).unwrap();
        node.unpublish("a").unwrap();
        node.is_clean();
        // Nothing has been read yet: mounts have to find the worker, which reads the source.
        let master = cluster.master.as_ref().unwrap();
        master.signal(Signal::STOP);
        is_mounted_without_it(&node);
        master.signal(Signal::CONT);
    }
    cluster.master.take().unwrap().kill();
    // Another plugin knows what the one before knew.
    let node = Node::start(&lab, &cluster);
    is_mounted_without_it(&node);
    let status = node.publish("c", &[("dataset", "x")]).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("mounts snapshot 1"), "{status:?}");
    let status = node.publish("c", &[("dataset", "x@2")]).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}
