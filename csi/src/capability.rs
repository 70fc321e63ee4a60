//! How a dataset can be mounted: read-only, as a directory, by many.

use crate::error::CsiError;
use crate::proto::csi::VolumeCapability;
use crate::proto::csi::volume_capability::access_mode::Mode;
use crate::proto::csi::volume_capability::{AccessMode, AccessType};

/// Refuses what a read-only file system of many readers cannot be.
pub(crate) fn check_capability(
    capability: Option<&VolumeCapability>,
    is_inline: bool,
) -> Result<(), CsiError> {
    let invalid = |text: &str| Err(CsiError::Invalid(text.to_owned()));
    let Some(capability) = capability else {
        return invalid("the call has no volume capability");
    };
    match &capability.access_type {
        Some(AccessType::Mount(_)) => {}
        Some(AccessType::Block(_)) => {
            return invalid(
                "a dataset is a directory and no block device; set volumeMode: Filesystem",
            );
        }
        None => return invalid("the volume capability has no access type"),
    }
    let mode = capability.access_mode.as_ref().map(AccessMode::mode);
    match mode {
        Some(Mode::MultiNodeReaderOnly | Mode::SingleNodeReaderOnly) => Ok(()),
        // Kubelet has no other mode for a volume that is written into a pod.
        Some(Mode::SingleNodeWriter) if is_inline => Ok(()),
        _ => invalid("a dataset can only be read; set accessModes: [ReadOnlyMany]"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::proto::csi::volume_capability::{BlockVolume, MountVolume};

    /// Of a directory that is used so.
    pub(crate) fn mounted(mode: Mode) -> VolumeCapability {
        capability(AccessType::Mount(MountVolume::default()), mode)
    }

    fn capability(access: AccessType, mode: Mode) -> VolumeCapability {
        VolumeCapability {
            access_type: Some(access),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }
    }

    #[test]
    fn only_volumes_that_many_read_are_mounted() {
        for (mode, inline, persistent) in [
            (Mode::MultiNodeReaderOnly, true, true),
            (Mode::SingleNodeReaderOnly, true, true),
            (Mode::SingleNodeWriter, true, false),
            (Mode::MultiNodeMultiWriter, false, false),
            (Mode::Unknown, false, false),
        ] {
            let capability = mounted(mode);
            assert_eq!(check_capability(Some(&capability), true).is_ok(), inline);
            assert_eq!(
                check_capability(Some(&capability), false).is_ok(),
                persistent
            );
        }
        let block = AccessType::Block(BlockVolume {});
        let block = capability(block, Mode::MultiNodeReaderOnly);
        assert!(check_capability(Some(&block), false).is_err());
        assert!(check_capability(None, true).is_err());
        assert!(check_capability(Some(&VolumeCapability::default()), true).is_err());
    }
}
