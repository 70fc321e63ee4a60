//! HDFS: a cluster to measure on, and the raw client, by which each file of a directory is read once by some of many
//! readers, with nothing between.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use bytes::BytesMut;
use futures::StreamExt;
use hdfs_native::{Client, ClientBuilder, WriteOptions};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::data::Tree;
use crate::readers::Pass;

mod calls;
mod cluster;
mod image;

pub use cluster::{Cluster, LISTED};

/// Files that are put at once: each waits for the NameNode most of the time.
const PUTS: usize = 64;
/// Bytes that are put at once.
const PIECE: usize = 1 << 20;

/// A directory of a cluster.
pub struct Raw {
    runtime: Runtime,
    client: Client,
    dir: String,
}

impl Raw {
    /// A client for the files below `hdfs://HOST:PORT/dir` or `hdfs://SERVICE/dir`, with the configuration of a
    /// directory, else of `HADOOP_CONF_DIR`.
    pub fn open(url: &str, configuration: Option<&Path>) -> anyhow::Result<Self> {
        let Some((authority, dir)) = url
            .strip_prefix("hdfs://")
            .and_then(|rest| rest.split_once('/'))
        else {
            bail!("{url} is not hdfs://NAMENODE:PORT/dir");
        };
        let runtime = Runtime::new()?;
        let mut builder = ClientBuilder::new()
            .with_url(format!("hdfs://{authority}"))
            .with_io_runtime(runtime.handle().clone());
        if let Some(configuration) = configuration {
            builder = builder.with_config_dir(configuration.to_string_lossy());
        }
        Ok(Self {
            client: builder.build()?,
            runtime,
            dir: format!("/{dir}"),
        })
    }

    /// The paths of all files, and how long the listing took in seconds.
    pub fn list(&self) -> anyhow::Result<(Vec<String>, f64)> {
        let started = Instant::now();
        let listing = self.client.list_status(&self.dir, true);
        let all = self.runtime.block_on(listing).context(self.dir.clone())?;
        let files = all.into_iter().filter(|entry| !entry.isdir);
        let paths = files.map(|entry| entry.path).collect();
        Ok((paths, started.elapsed().as_secs_f64()))
    }

    /// Reads every file once, in an order that `seed` decides, with so many readers.
    pub fn read(&self, mut paths: Vec<String>, seed: u64, readers: usize) -> anyhow::Result<Pass> {
        paths.shuffle(&mut SmallRng::seed_from_u64(seed));
        let files = paths.len() as u64;
        let bytes = Arc::new(AtomicU64::new(0));
        let started = Instant::now();
        let total = bytes.clone();
        self.each(paths, readers, move |client, path| {
            let bytes = bytes.clone();
            async move {
                let file = client.read(&path).await?;
                let mut pieces = file.read_range_stream(0, file.file_length());
                while let Some(piece) = pieces.next().await {
                    bytes.fetch_add(piece?.len() as u64, Ordering::Relaxed);
                }
                Ok(())
            }
        })?;
        Ok(Pass {
            files,
            bytes: total.load(Ordering::Relaxed),
            seconds: started.elapsed().as_secs_f64().max(1e-9),
        })
    }

    /// Puts the files of a tree below the directory.
    pub fn put(&self, tree: &Tree) -> anyhow::Result<()> {
        let (root, dir) = (tree.root.clone(), self.dir.clone());
        self.each(tree.files.clone(), PUTS, move |client, path| {
            let (from, to) = (root.join(&path), format!("{dir}/{}", path.display()));
            async move {
                let mut source = File::open(&from)?;
                let mut target = client.create(&to, WriteOptions::default()).await?;
                loop {
                    let mut piece = BytesMut::zeroed(PIECE);
                    let read = source.read(&mut piece)?;
                    if read == 0 {
                        break;
                    }
                    piece.truncate(read);
                    Box::pin(target.write_bytes(piece.freeze())).await?;
                }
                Ok(Box::pin(target.close()).await?)
            }
        })
    }

    /// Does something with each item: so many tasks take them from one list until it is empty.
    fn each<T, F>(
        &self,
        items: Vec<T>,
        tasks: usize,
        work: impl Fn(Client, T) -> F + Clone + Send + 'static,
    ) -> anyhow::Result<()>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = anyhow::Result<()>> + Send,
    {
        let items = Arc::new(items);
        let next = Arc::new(AtomicUsize::new(0));
        self.runtime.block_on(async {
            let mut running = JoinSet::new();
            for _ in 0..tasks {
                let (client, work) = (self.client.clone(), work.clone());
                let (items, next) = (items.clone(), next.clone());
                running.spawn(async move {
                    while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                        work(client.clone(), item.clone()).await?;
                    }
                    anyhow::Ok(())
                });
            }
            while let Some(ended) = running.join_next().await {
                ended??;
            }
            Ok(())
        })
    }
}
