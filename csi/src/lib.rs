//! The node plugin of Kubernetes: datasets become volumes of pods (CSI, <https://github.com/container-storage-interface/spec>).
//!
//! Kubelet calls the [node service](serve) over a Unix socket, which it finds by the registration socket. For each snapshot
//! that pods of this node use there is one mount; each [volume](Volumes) is a bind of a directory of it. What is mounted is
//! known from the kernel's table of mounts alone, so any process here may die at any time.
//!
//! This crate must not know how a mount is served or kept alive, nor call Kubernetes' API.

#![forbid(unsafe_code)]

pub mod access;
mod calls;
mod capability;
pub mod catalog;
mod controller;
mod error;
mod identity;
mod kernel;
mod memory;
mod metrics;
mod node;
pub mod proto;
mod registration;
mod server;
mod socket;
pub mod system;
mod target;
pub mod topology;
mod turns;
mod volume;
mod volumes;

pub use error::CsiError;
pub use metrics::CsiMetrics;
pub use server::{ServerConfig, serve};
pub use target::{KubeletDir, Target};
pub use volume::{Pod, Shown, Volume};
pub use volumes::{Condition, Volumes};

/// The driver's name in Kubernetes.
pub const DRIVER: &str = "csi.weir.io";
