//! Generates the code of the parts of CSI and of kubelet's registration that a node plugin has, without a system protoc.

/// Services that a node plugin serves.
const SERVICES: [&str; 4] = ["Identity", "Controller", "Node", "Registration"];
/// Those calls of a controller that a plugin without capabilities must answer, and those that say what is done instead. Others are
/// not generated, and so not implemented.
const CONTROLLER_CALLS: [&str; 5] = [
    "CreateVolume",
    "DeleteVolume",
    "ValidateVolumeCapabilities",
    "GetCapacity",
    "ControllerGetCapabilities",
];
/// How the names of their messages begin.
const MESSAGES: [&str; 18] = [
    "CapacityRange",
    "ControllerGetCapabilities",
    "ControllerServiceCapability",
    "CreateVolumeRe",
    "DeleteVolumeRe",
    "GetCapacity",
    "GetPlugin",
    "InfoRequest",
    "Node",
    "Plugin",
    "Probe",
    "Registration",
    "Topology",
    "ValidateVolumeCapabilities",
    "VolumeCapability",
    "VolumeCondition",
    "VolumeContentSource",
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
        for service in &mut file.service {
            let is_controller = service.name() == "Controller";
            service
                .method
                .retain(|method| !is_controller || CONTROLLER_CALLS.contains(&method.name()));
        }
        file.message_type.retain(|message| {
            let name = message.name();
            name == "Volume" || MESSAGES.iter().any(|start| name.starts_with(start))
        });
    }
    tonic_prost_build::configure()
        // They may hold secrets of a storage; see `src/proto.rs`.
        .skip_debug([
            ".csi.v1.NodePublishVolumeRequest",
            ".csi.v1.CreateVolumeRequest",
            ".csi.v1.DeleteVolumeRequest",
            ".csi.v1.ValidateVolumeCapabilitiesRequest",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
