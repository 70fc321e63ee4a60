//! The keys of big snapshots' blocks, in files: to make them from a manifest again for each inventory takes ten times as
//! long as to look them up, and the manifests of many big snapshots do not fit in memory.
//!
//! The files have no names, so they go with the process. What they take is bounded, and without them everything works,
//! only slower.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weir_core::{BlockKey, SnapshotId};

/// Bytes of a record: a block's key and its length.
const RECORD: usize = KEY + 4;
const KEY: usize = 16;
/// Records that are read at once.
const BATCH: usize = 4096;
/// Snapshots of fewer blocks are looked up with their manifests, of which many are kept.
const LEAST_BLOCKS: u64 = 1 << 16;
/// Most tables, each of which is an open file, and most bytes of all: those of 50 million blocks.
const MAX_TABLES: usize = 64;
const MAX_BYTES: u64 = 1 << 30;

/// The keys and lengths of a snapshot's blocks, by their numbers.
#[derive(Debug)]
pub(crate) struct Table {
    file: File,
    blocks: u32,
}

impl Table {
    /// Calls `see` with the number, key and length of each block; blocks on the disk.
    pub(crate) fn read(&self, mut see: impl FnMut(u32, &BlockKey, u32)) -> std::io::Result<()> {
        let mut buffer = vec![0; BATCH * RECORD];
        let mut next = 0;
        while next < self.blocks {
            let count = BATCH.min((self.blocks - next) as usize);
            let batch = &mut buffer[..count * RECORD];
            let at = u64::from(next) * RECORD as u64;
            self.file.read_exact_at(batch, at)?;
            for record in batch.chunks_exact(RECORD) {
                let (mut key, mut length) = (BlockKey([0; KEY]), [0; RECORD - KEY]);
                key.0.copy_from_slice(&record[..KEY]);
                length.copy_from_slice(&record[KEY..]);
                see(next, &key, u32::from_le_bytes(length));
                next += 1;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        u64::from(self.blocks) * RECORD as u64
    }
}

/// A table in the making. Blocks are added in the order of their numbers.
pub(crate) struct NewTable {
    writer: BufWriter<File>,
    blocks: u32,
}

impl NewTable {
    pub(super) fn create(dir: &Path) -> std::io::Result<Self> {
        let path = dir.join(format!("inventory-{}.new", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(Self {
            writer: BufWriter::with_capacity(BATCH * RECORD, file),
            blocks: 0,
        })
    }

    /// Adds the next block.
    pub(crate) fn add(&mut self, key: &BlockKey, length: u32) -> std::io::Result<()> {
        self.blocks += 1;
        self.writer.write_all(&key.0)?;
        self.writer.write_all(&length.to_le_bytes())
    }

    /// The table, once all blocks were added.
    pub(crate) fn finish(self) -> std::io::Result<Table> {
        Ok(Table {
            file: self.writer.into_inner()?,
            blocks: self.blocks,
        })
    }
}

/// The tables of one worker.
#[derive(Debug)]
pub(crate) struct Tables {
    /// Where their files are made. Without it there are none.
    dir: Option<PathBuf>,
    tables: HashMap<SnapshotId, Arc<Table>>,
}

impl Tables {
    pub(crate) fn new(dir: Option<PathBuf>) -> Self {
        Self {
            dir,
            tables: HashMap::new(),
        }
    }

    /// The table of a snapshot, if there is one.
    pub(crate) fn get(&self, snapshot: &SnapshotId) -> Option<Arc<Table>> {
        self.tables.get(snapshot).cloned()
    }

    /// Begins the table of a snapshot of so many blocks, if it is worth one and there is room.
    pub(crate) fn begin(&self, blocks: u64) -> Option<NewTable> {
        let used: u64 = self.tables.values().map(|table| table.bytes()).sum();
        let fits = used + blocks * RECORD as u64 <= MAX_BYTES && self.tables.len() < MAX_TABLES;
        if blocks < LEAST_BLOCKS || !fits {
            return None;
        }
        NewTable::create(self.dir.as_deref()?).ok()
    }

    /// Keeps a finished table.
    pub(crate) fn keep(&mut self, snapshot: SnapshotId, table: Table) {
        self.tables.insert(snapshot, table.into());
    }

    /// Gives up all tables but those of the snapshots that `wanted` names.
    pub(crate) fn retain(&mut self, wanted: impl Fn(&SnapshotId) -> bool) {
        self.tables.retain(|snapshot, _| wanted(snapshot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> BlockKey {
        let mut key = BlockKey([0; KEY]);
        key.0[..4].copy_from_slice(&number.to_le_bytes());
        key
    }

    fn id(version: u64) -> SnapshotId {
        SnapshotId {
            dataset: "set".parse().unwrap(),
            version,
        }
    }

    fn made(mut new: NewTable, blocks: u32) -> Table {
        for number in 0..blocks {
            new.add(&key(number), number + 1).unwrap();
        }
        new.finish().unwrap()
    }

    #[test]
    fn a_table_gives_back_its_blocks_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        for blocks in [0, 1, BATCH as u32, 2 * BATCH as u32 + 3] {
            let table = made(NewTable::create(dir.path()).unwrap(), blocks);
            let mut next = 0;
            let see = |number, found: &BlockKey, length| {
                assert_eq!((number, found, length), (next, &key(next), next + 1));
                next += 1;
            };
            table.read(see).unwrap();
            assert_eq!(next, blocks);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_table_that_was_cut_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let table = made(NewTable::create(dir.path()).unwrap(), 9);
        table.file.set_len(8 * RECORD as u64 + 1).unwrap();
        assert!(table.read(|_, _, _| ()).is_err());
    }

    #[test]
    fn tables_are_for_big_snapshots_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut tables = Tables::new(Some(dir.path().to_owned()));
        assert!(tables.begin(LEAST_BLOCKS - 1).is_none());
        assert!(tables.begin(MAX_BYTES / RECORD as u64 + 1).is_none());
        for version in 0..MAX_TABLES as u64 {
            let new = tables.begin(LEAST_BLOCKS).unwrap();
            tables.keep(id(version), made(new, 1));
        }
        assert!(tables.begin(LEAST_BLOCKS).is_none(), "there are too many");
        tables.retain(|snapshot| snapshot.version == 3);
        assert!(tables.get(&id(2)).is_none() && tables.get(&id(3)).is_some());
        assert!(tables.begin(LEAST_BLOCKS).is_some());
        let nowhere = Tables::new(Some(dir.path().join("gone")));
        assert!(nowhere.begin(LEAST_BLOCKS).is_none());
        assert!(Tables::new(None).begin(LEAST_BLOCKS).is_none());
    }
}
