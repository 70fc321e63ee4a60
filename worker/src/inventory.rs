//! Which blocks of a snapshot this worker holds, as a bitmap over the blocks' numbers.

mod keys;
pub(crate) mod reports;

use keys::{NewTable, Table};
use roaring::RoaringBitmap;
use weir_core::blocknumber::numbered_files;
use weir_core::{BlockKey, Manifest, SnapshotId};
use weir_proto::v1;

use crate::worker::{Unowned, Worker};

/// The part of a snapshot that a worker holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Inventory {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Numbers of the blocks that are held.
    pub blocks: RoaringBitmap,
    /// Sum of their lengths.
    pub bytes: u64,
}

impl Inventory {
    /// Looks every block of the manifest up in the worker's index; takes around a microsecond for each.
    pub fn take(worker: &Worker, manifest: &Manifest) -> Self {
        Self::take_noting(worker, manifest, None, None).0
    }

    /// The same, with the blocks added to a new table, which is given unless writing it failed. What is held is shown to
    /// `unowned`.
    fn take_noting(
        worker: &Worker,
        manifest: &Manifest,
        mut new: Option<NewTable>,
        mut unowned: Option<&mut Unowned>,
    ) -> (Self, Option<Table>) {
        let mut inventory = Self::none(manifest.summary().snapshot.clone());
        for (index, numbers) in numbered_files(manifest) {
            for (block, number) in manifest.blocks(index).zip(numbers) {
                let (key, length) = (block.key(), block.len());
                if let Some(table) = &mut new
                    && let Err(error) = table.add(&key, length)
                {
                    tracing::debug!(snapshot = %inventory.snapshot, %error, "no table of keys");
                    new = None;
                }
                let unowned = unowned.as_deref_mut();
                inventory.look(worker, number, (&key, length), unowned);
            }
        }
        let table = new.and_then(|new| new.finish().ok());
        (inventory, table)
    }

    /// Looks every block of a table up, which takes a tenth of the time.
    fn take_of_table(
        worker: &Worker,
        snapshot: SnapshotId,
        table: &Table,
        mut unowned: Option<&mut Unowned>,
    ) -> std::io::Result<Self> {
        let mut inventory = Self::none(snapshot);
        table.read(|number, key, length| {
            inventory.look(worker, number, (key, length), unowned.as_deref_mut());
        })?;
        Ok(inventory)
    }

    fn none(snapshot: SnapshotId) -> Self {
        Self {
            snapshot,
            blocks: RoaringBitmap::new(),
            bytes: 0,
        }
    }

    fn look(
        &mut self,
        worker: &Worker,
        number: u32,
        (key, length): (&BlockKey, u32),
        unowned: Option<&mut Unowned>,
    ) {
        if worker.holds(key) {
            if let Some(unowned) = unowned {
                unowned.see(key, length);
            }
            // Numbers only grow, so this appends.
            self.blocks.insert(number);
            self.bytes += u64::from(length);
        }
    }

    /// The inventory as it is reported.
    pub fn to_proto(&self) -> v1::Inventory {
        let mut serialized = Vec::with_capacity(self.blocks.serialized_size());
        // Writing to memory does not fail.
        let _ = self.blocks.serialize_into(&mut serialized);
        v1::Inventory {
            dataset: self.snapshot.dataset.to_string(),
            version: self.snapshot.version,
            blocks: serialized,
            bytes: self.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use weir_core::manifest::Mount;
    use weir_core::{ByteSize, ManifestBuilder};
    use weir_origin::{OriginSpec, SourcePolicy};

    use super::*;
    use crate::config::WorkerConfig;
    use crate::testing;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_table_finds_what_the_manifest_finds() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        for number in 0..6_usize {
            let content = vec![7; number * 1000];
            std::fs::write(data.join(number.to_string()), content).unwrap();
        }
        let spec = OriginSpec::parse(&format!("file://{}", data.display())).unwrap();
        let origin = weir_origin::open(&spec, &SourcePolicy::unlimited())
            .await
            .unwrap();
        let mut builder = ManifestBuilder::new();
        let mount = Mount {
            origin: spec.id(),
            spec: String::new(),
            prefix: String::new(),
            path: String::new(),
        };
        let mount = builder.add_mount(mount).unwrap();
        let mut pages = origin.list("");
        while let Some(page) = pages.next().await {
            for file in page.unwrap() {
                let (size, mtime) = (file.size, file.mtime_ns);
                let added = builder.add(mount, &file.key, size, mtime, &file.version);
                added.unwrap();
            }
        }
        let snapshot = SnapshotId {
            dataset: "set".parse().unwrap(),
            version: 1,
        };
        let manifest = builder.build(snapshot.clone(), 0, None).unwrap();

        let config = WorkerConfig {
            memory: ByteSize(1 << 20),
            origins_file: Some(dir.path().join("origins.json")),
            ..testing::config("w").unwrap()
        };
        let scratch = config.scratch_dir();
        assert_eq!(scratch.as_deref(), Some(dir.path()));
        let worker = testing::open(config).unwrap();
        worker.origins().add(spec);
        for name in ["1", "4"] {
            let index = manifest.resolve(name).unwrap();
            let block = manifest.blocks(index).next().unwrap();
            worker.read(&block, 0..block.len()).await.unwrap();
        }

        let new = NewTable::create(dir.path()).unwrap();
        let (noting, table) = Inventory::take_noting(&worker, &manifest, Some(new), None);
        // The empty file has no block, so the others' count from 0.
        assert_eq!(noting.blocks.iter().collect::<Vec<_>>(), [0, 3]);
        assert_eq!(noting.bytes, 5000);
        assert_eq!(noting, Inventory::take(&worker, &manifest));
        let of_table = Inventory::take_of_table(&worker, snapshot, &table.unwrap(), None);
        assert_eq!(of_table.unwrap(), noting);
    }
}
