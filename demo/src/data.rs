//! The files that are read: real ones that every machine with this project has, or made ones of one size.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

/// Bytes that are made at once.
const PIECE: usize = 1 << 20;

/// Files below a directory, by their path inside it.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The directory.
    pub root: PathBuf,
    /// Paths below it, sorted.
    pub files: Vec<PathBuf>,
    /// Sum of the files' sizes.
    pub bytes: u64,
}

impl Tree {
    /// All regular files below `root`.
    pub fn scan(root: &Path) -> anyhow::Result<Self> {
        let mut tree = Self {
            root: root.to_owned(),
            files: Vec::new(),
            bytes: 0,
        };
        let mut pending = vec![root.to_owned()];
        while let Some(directory) = pending.pop() {
            let entries = fs::read_dir(&directory)
                .with_context(|| format!("cannot list {}", directory.display()))?;
            for entry in entries {
                let entry = entry?;
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    pending.push(entry.path());
                } else if kind.is_file() {
                    tree.bytes += entry.metadata()?.len();
                    tree.files.push(entry.path().strip_prefix(root)?.to_owned());
                }
            }
        }
        tree.files.sort();
        Ok(tree)
    }
}

/// Links (or copies) up to `count` of the dependency sources that building this project has downloaded to `into`.
pub fn dependency_sources(into: &Path, count: usize) -> anyhow::Result<Tree> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    let source = home.join("registry/src");
    let all = Tree::scan(&source)?;
    if all.files.is_empty() {
        bail!(
            "no dependency sources in {}; build the project first",
            source.display()
        );
    }
    let _ = fs::remove_dir_all(into); // left over from an interrupted run
    for file in all.files.iter().take(count) {
        let target = into.join(file);
        fs::create_dir_all(target.parent().unwrap_or(into))?;
        let from = source.join(file);
        if fs::hard_link(&from, &target).is_err() {
            fs::copy(&from, &target).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    Tree::scan(into)
}

/// Makes `count` files of `size` random bytes in `directories` directories, unless they are there.
pub fn generated(root: &Path, count: usize, size: u64, directories: usize) -> anyhow::Result<Tree> {
    let what = format!("{count} x {size} in {directories}");
    let complete = root.with_extension("complete");
    if fs::read_to_string(&complete).is_ok_and(|found| found == what) {
        return Tree::scan(root);
    }
    let _ = fs::remove_file(&complete);
    let _ = fs::remove_dir_all(root); // left over from an interrupted run
    for directory in 0..directories {
        fs::create_dir_all(root.join(format!("d{directory:03}")))?;
    }
    let mut random = SmallRng::seed_from_u64(42);
    let mut content = vec![0; PIECE];
    for number in 0..count {
        let path = root.join(format!("d{:03}/f{number:06}.bin", number % directories));
        let mut file = fs::File::create(&path)?;
        let mut left = size;
        while left > 0 {
            let piece = &mut content[..left.min(PIECE as u64) as usize];
            random.fill_bytes(piece);
            file.write_all(piece)?;
            left -= piece.len() as u64;
        }
    }
    fs::write(&complete, what)?;
    Tree::scan(root)
}
