//! Generates the code of the parts of CSI and of kubelet's registration that a node plugin has, without a system protoc.

/// Services that a node plugin serves.
const SERVICES: [&str; 3] = ["Identity", "Node", "Registration"];
/// How the names of their messages begin; those of a controller are not generated.
const MESSAGES: [&str; 11] = [
    "CapacityRange",
    "GetPlugin",
    "InfoRequest",
    "Node",
    "Plugin",
    "Probe",
    "Registration",
    "Topology",
    "VolumeCapability",
    "VolumeCondition",
    "VolumeUsage",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["csi.proto", "pluginregistration.proto"];
    for file in files {
        println!("cargo::rerun-if-changed=proto/{file}");
    }
    let mut descriptors = protox::compile(files, ["proto"])?;
    for file in &mut descriptors.file {
        if file.name().starts_with("google/") {
            continue;
        }
        // Comments are found by the numbers of what they belong to, which are about to change.
        file.source_code_info = None;
        file.service
            .retain(|service| SERVICES.contains(&service.name()));
        file.message_type.retain(|message| {
            MESSAGES
                .iter()
                .any(|start| message.name().starts_with(start))
        });
    }
    tonic_prost_build::configure()
        // It may hold secrets of a storage; see `src/proto.rs`.
        .skip_debug([".csi.v1.NodePublishVolumeRequest"])
        .compile_fds(descriptors)?;
    Ok(())
}
