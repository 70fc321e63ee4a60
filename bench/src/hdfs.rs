//! The raw client of HDFS: the files of a directory, each read once by some of many readers, with nothing between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use hdfs_native::{Client, ClientBuilder};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::readers::Pass;

/// A cluster, read as `HADOOP_CONF_DIR` says.
pub struct Raw {
    runtime: Runtime,
    client: Client,
    dir: String,
}

impl Raw {
    /// A client for the files below `hdfs://HOST:PORT/dir` or `hdfs://SERVICE/dir`.
    pub fn open(url: &str) -> anyhow::Result<Self> {
        let Some((authority, dir)) = url
            .strip_prefix("hdfs://")
            .and_then(|rest| rest.split_once('/'))
        else {
            bail!("{url} is not hdfs://NAMENODE:PORT/dir");
        };
        let runtime = Runtime::new()?;
        let client = ClientBuilder::new()
            .with_url(format!("hdfs://{authority}"))
            .with_io_runtime(runtime.handle().clone())
            .build()?;
        Ok(Self {
            runtime,
            client,
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
        let paths = Arc::new(paths);
        let next = Arc::new(AtomicUsize::new(0));
        let bytes = Arc::new(AtomicU64::new(0));
        let started = Instant::now();
        self.runtime.block_on(async {
            let mut running = JoinSet::new();
            for _ in 0..readers {
                let (client, paths) = (self.client.clone(), paths.clone());
                let (next, bytes) = (next.clone(), bytes.clone());
                running.spawn(async move {
                    while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let file = client.read(path).await?;
                        let content = file.read_range(0, file.file_length()).await?;
                        bytes.fetch_add(content.len() as u64, Ordering::Relaxed);
                    }
                    anyhow::Ok(())
                });
            }
            while let Some(ended) = running.join_next().await {
                ended??;
            }
            anyhow::Ok(())
        })?;
        Ok(Pass {
            files: paths.len() as u64,
            bytes: bytes.load(Ordering::Relaxed),
            seconds: started.elapsed().as_secs_f64().max(1e-9),
        })
    }
}
