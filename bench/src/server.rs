//! The S3 servers that the data comes from, on loopback and open to everybody.

use std::path::Path;

use clap::ValueEnum;

use crate::data::Tree;

mod minio;

use minio::Minio;
pub use weir_demo::server::Builtin;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// MinIO, built with `go install`.
    Minio,
    /// `weir-s3-server` of this project.
    Builtin,
}

/// A bucket and what it holds.
pub struct Bucket<'a> {
    /// Its name.
    pub name: &'a str,
    /// The files that are its objects.
    pub tree: &'a Tree,
}

/// A running server with its buckets. It ends when it goes out of scope.
pub enum Server {
    /// MinIO.
    Minio(Minio),
    /// This project's own.
    Builtin(Builtin),
}

impl Server {
    /// Starts a server with all `buckets` complete; `out` is where one that has its own copies keeps them.
    pub fn start(kind: Kind, out: &Path, buckets: &[Bucket<'_>]) -> anyhow::Result<Self> {
        Ok(match kind {
            Kind::Minio => Self::Minio(Minio::start(&out.join("minio"), buckets)?),
            Kind::Builtin => {
                let dirs = buckets.iter().map(|b| (b.name, b.tree.root.as_path()));
                Self::Builtin(Builtin::start(dirs, 0)?)
            }
        })
    }

    /// Its URL.
    pub fn endpoint(&self) -> &str {
        match self {
            Self::Minio(server) => server.endpoint(),
            Self::Builtin(server) => &server.endpoint,
        }
    }

    /// What it is, for a table's head.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Minio(_) => "MinIO",
            Self::Builtin(_) => "weir-s3-server",
        }
    }

    /// Whether it lists directories, as other mounts need it.
    pub fn lists_directories(&self) -> bool {
        matches!(self, Self::Minio(_))
    }
}
