//! The mount's own copy of its manifest.
//!
//! What the kernel has cached must stay true for as long as the mount lives, so a server that is started again serves the
//! very same manifest: from this copy, whatever has become of the dataset or the snapshot at the master meanwhile.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::Bytes;
use weir_core::Manifest;

const FILE: &str = "manifest";

/// Keeps the manifest that is mounted, and gives its file. `original` is a file with the same bytes that never changes, if there is
/// one: a second name for it costs no space.
pub(super) fn keep(
    state_dir: &Path,
    manifest: &Manifest,
    original: Option<&Path>,
) -> anyhow::Result<PathBuf> {
    let file = state_dir.join(FILE);
    let new = file.with_extension("new");
    let linked = original.is_some_and(|original| {
        // Left over from a server that was killed.
        let _ = std::fs::remove_file(&new);
        std::fs::hard_link(original, &new).is_ok()
    });
    if linked {
        std::fs::rename(&new, &file).with_context(|| format!("cannot write {}", file.display()))?;
        return Ok(file);
    }
    save(&file, manifest.as_bytes())?;
    Ok(file)
}

/// The manifest that was kept.
pub(super) fn load(state_dir: &Path) -> anyhow::Result<Manifest> {
    read(state_dir.join(FILE))
}

/// Reads a manifest file.
pub(super) fn read(file: PathBuf) -> anyhow::Result<Manifest> {
    let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    Manifest::from_bytes(Bytes::from(bytes)).with_context(|| file.display().to_string())
}

/// Writes a file so that a reader sees the old one or the new one.
pub(super) fn save(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let temporary = file.with_extension("new");
    let written =
        std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, file));
    if written.is_err() {
        // Half of it would only take space. It may not be there at all.
        let _ = std::fs::remove_file(&temporary);
    }
    written.with_context(|| format!("cannot write {}", file.display()))
}
