//! The builder as it was while all entries were held in memory: what the present one is compared with.
//!
//! Of two things that had no rule it now has the builder's order: which of the files that lost are the examples, and
//! which fresh inode goes to which entry.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::format::{self, Header, Record};
use super::{BuildError, MAX_EXAMPLES, MAX_OBJECT, MAX_VERSION};
use crate::block::block_count;
use crate::id::SnapshotId;
use crate::keypath::{self, KeyPath, LeftOut};
use crate::manifest::{EntryKind, Manifest, Mount, ROOT, Summary};

struct Node {
    name: Box<str>,
    size: u64,
    mtime_ns: i64,
    mount: u16,
    kind: NodeKind,
}

enum NodeKind {
    File { version: Box<str> },
    Directory { children: Vec<u32> },
}

/// Collects entries and makes a [`Manifest`].
pub(super) struct Model {
    mounts: Vec<Mount>,
    mount_nodes: Vec<u32>,
    nodes: Vec<Node>,
    directories: HashMap<(u32, Box<str>), u32>,
    left_out: BTreeMap<LeftOut, u64>,
    examples: Vec<String>,
}

impl Model {
    /// An empty dataset.
    pub(super) fn new() -> Self {
        Self {
            mounts: Vec::new(),
            mount_nodes: Vec::new(),
            nodes: vec![Node::directory("")],
            directories: HashMap::new(),
            left_out: BTreeMap::new(),
            examples: Vec::new(),
        }
    }

    /// Adds a mount and gives its number for [`add`](Self::add).
    pub(super) fn add_mount(&mut self, mount: Mount) -> Result<u16, BuildError> {
        let number =
            u16::try_from(self.mounts.len()).map_err(|_| BuildError::TooLarge("mounts"))?;
        let components =
            keypath::parse_path(&mount.path).map_err(|reason| BuildError::MountPath {
                path: mount.path.clone(),
                reason,
            })?;
        let path = components.join("/");
        let node = self.directory(ROOT, &path);
        self.mount_nodes.push(node);
        self.mounts.push(Mount { path, ..mount });
        Ok(number)
    }

    /// Adds one object of a mount's origin; `key` is the full key.
    pub(super) fn add(
        &mut self,
        mount: u16,
        key: &[u8],
        size: u64,
        mtime_ns: i64,
        version: &str,
    ) -> Result<(), BuildError> {
        let object_error = |what| BuildError::Object {
            key: String::from_utf8_lossy(key).into_owned(),
            what,
        };
        let prefix = self.mounts[usize::from(mount)].prefix.as_bytes();
        let Some(relative) = key.strip_prefix(prefix) else {
            return Ok(()); // a sibling such as `data2/` of the prefix `data/`: not part of the dataset
        };
        if size > MAX_OBJECT {
            return Err(object_error("a size"));
        }
        if version.len() > MAX_VERSION {
            return Err(object_error("a version"));
        }
        let top = self.mount_nodes[usize::from(mount)];
        match keypath::classify(relative, size) {
            Err(reason) => self.leave_out(reason, key),
            Ok(KeyPath::Directory(path)) => {
                let directory = self.directory(top, path);
                // Shown as long as nothing in it has a date.
                let shown = &mut self.nodes[directory as usize].mtime_ns;
                *shown = (*shown).max(mtime_ns);
            }
            Ok(KeyPath::File(path)) => {
                let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
                let parent = self.directory(top, directory);
                let node = self.push(Node {
                    name: name.into(),
                    size,
                    mtime_ns,
                    mount,
                    kind: NodeKind::File {
                        version: version.into(),
                    },
                })?;
                self.adopt(parent, node);
            }
        }
        Ok(())
    }

    /// Counts what is not served.
    pub(super) fn leave_out(&mut self, reason: LeftOut, key: &[u8]) {
        let count = self.left_out.entry(reason).or_default();
        *count += 1;
        if *count <= MAX_EXAMPLES {
            self.examples
                .push(format!("{}: {}", reason.label(), key.escape_ascii()));
        }
    }

    fn push(&mut self, node: Node) -> Result<u32, BuildError> {
        let index = u32::try_from(self.nodes.len()).map_err(|_| BuildError::TooLarge("entries"))?;
        self.nodes.push(node);
        Ok(index)
    }

    fn adopt(&mut self, parent: u32, child: u32) {
        if let NodeKind::Directory { children } = &mut self.nodes[parent as usize].kind {
            children.push(child);
        }
    }

    /// Finds or makes the directory at `path` below `top`.
    fn directory(&mut self, top: u32, path: &str) -> u32 {
        path.split('/')
            .filter(|name| !name.is_empty())
            .fold(top, |parent, name| {
                if let Some(found) = self.directories.get(&(parent, name.into())) {
                    return *found;
                }
                let index = self.nodes.len() as u32;
                self.nodes.push(Node::directory(name));
                self.directories.insert((parent, name.into()), index);
                self.adopt(parent, index);
                index
            })
    }

    /// Makes the manifest. Entries that are unchanged since `previous` keep their inode numbers.
    pub(super) fn build(
        mut self,
        snapshot: SnapshotId,
        created_ns: i64,
        previous: Option<&Manifest>,
    ) -> Result<Manifest, BuildError> {
        self.sort_and_resolve();
        let mut table = Table::default();
        table.fill(&mut self.nodes)?;
        let mut hasher = blake3::Hasher::new();
        for part in [&table.entries, &table.names, &table.versions] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        for mount in &self.mounts {
            hasher.update(format!("{mount:?}").as_bytes());
        }
        let mut header = Header {
            summary: Summary {
                snapshot,
                created_ns,
                mounts: self.mounts,
                files: table.files,
                directories: table.directories,
                bytes: table.bytes,
                blocks: table.blocks,
                left_out: self
                    .left_out
                    .iter()
                    .map(|(reason, count)| (reason.label().to_owned(), *count))
                    .collect(),
                left_out_examples: self.examples,
                digest: hasher.finalize().to_hex().to_string(),
                next_inode: u64::from(table.count) + 1,
            },
            count: table.count,
            own_inodes: false,
            names_len: table.names.len() as u64,
            versions_len: table.versions.len() as u64,
        };
        let plain = table.assemble(&header, None);
        let Some(previous) = previous else {
            return Ok(plain);
        };
        let (inodes, next_inode) = carry_inodes(previous, &plain);
        header.own_inodes = true;
        header.summary.next_inode = next_inode;
        Ok(table.assemble(&header, Some(&inodes)))
    }

    /// Sorts each directory by name and settles which of several entries of one name is served.
    fn sort_and_resolve(&mut self) {
        let mut lost: Vec<(LeftOut, usize, u32)> = Vec::new();
        let mut parents = vec![0; self.nodes.len()];
        let mut queue = std::collections::VecDeque::from([ROOT]);
        while let Some(index) = queue.pop_front() {
            let index = index as usize;
            let NodeKind::Directory { children } = &mut self.nodes[index].kind else {
                continue;
            };
            let mut children = std::mem::take(children);
            let nodes = &self.nodes;
            // Of one name the directory comes first, then the file of the mount that was given first, of one mount the
            // newest, of one date the one that was listed last.
            let rank = |index: u32| {
                let node = &nodes[index as usize];
                let file = matches!(node.kind, NodeKind::File { .. });
                let newest = Reverse((node.mtime_ns, index));
                (node.name.as_bytes(), file, node.mount, newest)
            };
            children.sort_unstable_by(|a, b| rank(*a).cmp(&rank(*b)));
            children.dedup_by(|later, kept| {
                let (later_node, kept_node) = (&nodes[*later as usize], &nodes[*kept as usize]);
                if later_node.name != kept_node.name {
                    return false;
                }
                let reason = match kept_node.kind {
                    NodeKind::Directory { .. } => LeftOut::ShadowedByDirectory,
                    NodeKind::File { .. } if kept_node.mount == later_node.mount => {
                        LeftOut::ListedTwice
                    }
                    NodeKind::File { .. } => LeftOut::ShadowedByMount,
                };
                lost.push((reason, index, *later));
                true
            });
            queue.extend(&children);
            for child in &children {
                parents[*child as usize] = index;
            }
            self.nodes[index].kind = NodeKind::Directory { children };
        }
        self.date_directories();
        for (reason, directory, node) in lost {
            let node = &self.nodes[node as usize];
            let mount = usize::from(node.mount);
            let (mut names, mut at) = (vec![&*node.name], directory);
            while at != self.mount_nodes[mount] as usize {
                names.push(&*self.nodes[at].name);
                at = parents[at];
            }
            names.reverse();
            let key = format!("{}{}", self.mounts[mount].prefix, names.join("/"));
            self.leave_out(reason, key.as_bytes());
        }
    }

    /// Gives each directory the date of its newest entry. One without entries keeps its marker's.
    fn date_directories(&mut self) {
        // A directory is made before what is in it, so from behind each one comes after its entries.
        for index in (0..self.nodes.len()).rev() {
            if let NodeKind::Directory { children } = &self.nodes[index].kind {
                let dates = children
                    .iter()
                    .map(|child| self.nodes[*child as usize].mtime_ns);
                if let Some(newest) = dates.max() {
                    self.nodes[index].mtime_ns = newest;
                }
            }
        }
    }
}

impl Node {
    fn directory(name: &str) -> Self {
        Self {
            name: name.into(),
            size: 0,
            mtime_ns: 0,
            mount: 0,
            kind: NodeKind::Directory {
                children: Vec::new(),
            },
        }
    }
}

#[derive(Default)]
struct Table {
    entries: Vec<u8>,
    names: Vec<u8>,
    versions: Vec<u8>,
    count: u32,
    files: u64,
    directories: u64,
    bytes: u64,
    blocks: u64,
}

impl Table {
    /// Writes the nodes in breadth-first order, so that the children of each directory are side by side.
    fn fill(&mut self, nodes: &mut [Node]) -> Result<(), BuildError> {
        let mut queue: Vec<(u32, u32)> = vec![(ROOT, ROOT)]; // node, index of its parent's entry
        let mut at = 0;
        while at < queue.len() {
            let (node, parent) = queue[at];
            let index = at as u32;
            at += 1;
            let first_child = queue.len() as u64;
            let node = &mut nodes[node as usize];
            let start = self.names.len();
            self.names.extend_from_slice(node.name.as_bytes());
            let mut record = Record {
                parent,
                name: start..self.names.len(),
                kind: EntryKind::File,
                mount: node.mount,
                version: 0,
                a: node.size,
                mtime_ns: node.mtime_ns,
            };
            match &mut node.kind {
                NodeKind::File { version } => {
                    record.version = format::write_version(&mut self.versions, version);
                    self.files += 1;
                    self.bytes += node.size;
                    self.blocks += u64::from(block_count(node.size));
                }
                NodeKind::Directory { children } => {
                    record.kind = EntryKind::Directory;
                    record.a = (first_child << 32) | children.len() as u64;
                    self.directories += 1;
                    queue.extend(std::mem::take(children).into_iter().map(|c| (c, index)));
                }
            }
            if self.names.len() > u32::MAX as usize || self.versions.len() > u32::MAX as usize {
                return Err(BuildError::TooLarge("bytes of names"));
            }
            self.entries.extend_from_slice(&record.bytes());
        }
        self.count = queue.len() as u32;
        Ok(())
    }

    fn assemble(&self, header: &Header, inodes: Option<&[u64]>) -> Manifest {
        let mut inode_bytes = Vec::new();
        let mut order_bytes = Vec::new();
        if let Some(inodes) = inodes {
            inode_bytes.extend(inodes.iter().flat_map(|inode| inode.to_le_bytes()));
            let mut order: Vec<u32> = (0..self.count).collect();
            order.sort_unstable_by_key(|index| inodes[*index as usize]);
            order_bytes.extend(order.iter().flat_map(|index| index.to_le_bytes()));
        }
        let mut bytes = format::head(header);
        for table in [
            &inode_bytes,
            &order_bytes,
            &self.entries,
            &self.names,
            &self.versions,
        ] {
            bytes.extend_from_slice(table);
        }
        let mut sum = format::Checksum::new();
        sum.update(&bytes);
        bytes.extend_from_slice(&sum.bytes());
        Manifest::from_bytes(Bytes::from(bytes)).unwrap()
    }
}

/// Gives each entry of `new` the inode of the same path in `old` if it did not change, else a fresh one.
fn carry_inodes(old: &Manifest, new: &Manifest) -> (Vec<u64>, u64) {
    let mut inodes = vec![0; new.len() as usize];
    let mut next = old.summary().next_inode;
    let mut pairs = std::collections::VecDeque::from([(ROOT, Some(ROOT))]);
    while let Some((index, old_index)) = pairs.pop_front() {
        let kept = old_index.filter(|old_index| {
            let entry = new.entry(index);
            entry.kind == EntryKind::Directory
                || old.is_same_file(
                    *old_index,
                    new.mount(index),
                    entry.size,
                    entry.mtime_ns,
                    &new.version(index),
                )
        });
        inodes[index as usize] = kept.map_or_else(
            || {
                let fresh = next;
                next += 1;
                fresh
            },
            |old_index| old.inode(old_index),
        );
        pairs.extend(new.children(index).map(|child| {
            let twin = old_index
                .and_then(|directory| old.lookup(directory, new.entry(child).name))
                .filter(|twin| old.entry(*twin).kind == new.entry(child).kind);
            (child, twin)
        }));
    }
    (inodes, next)
}
