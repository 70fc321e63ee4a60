//! Walking a tree and asking for the attributes of everything in it, as `find -size` and loaders that list do.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;

use crate::readers::Pass;

/// Lists every directory below `root` and asks for every file's attributes.
pub fn walk(root: &Path) -> anyhow::Result<Pass> {
    let started = Instant::now();
    let mut pass = Pass {
        files: 0,
        bytes: 0,
        seconds: 0.0,
    };
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            let attributes = entry.metadata()?;
            if attributes.is_dir() {
                pending.push(entry.path());
            } else {
                pass.files += 1;
                pass.bytes += attributes.len();
            }
        }
    }
    pass.seconds = started.elapsed().as_secs_f64().max(1e-9);
    Ok(pass)
}

/// Makes the directories and the files that `from` has, with no bytes in them but the same sizes, below `to`; unless
/// all `count` are there from an earlier run. Two levels deep.
pub fn mirror(from: &Path, to: &Path, count: u64) -> anyhow::Result<()> {
    let complete = to.with_extension("complete");
    if fs::read_to_string(&complete).is_ok_and(|found| found == count.to_string()) {
        return Ok(());
    }
    let _ = fs::remove_file(&complete);
    let _ = fs::remove_dir_all(to); // left over from an interrupted run
    for directory in fs::read_dir(from)? {
        let directory = directory?;
        let target = to.join(directory.file_name());
        fs::create_dir_all(&target)?;
        for file in fs::read_dir(directory.path())? {
            let file = file?;
            let size = file.metadata()?.len();
            fs::File::create(target.join(file.file_name()))?.set_len(size)?;
        }
    }
    Ok(fs::write(complete, count.to_string())?)
}
