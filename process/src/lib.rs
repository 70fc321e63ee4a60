//! The processes of one mount: how they start each other, what they inherit, and how they pass descriptors on.
//!
//! It must not know what a mount is, or what the processes say to each other.

#![deny(unsafe_code)]

pub mod descriptor;
pub mod fdpass;
pub mod init;
pub mod lock;
pub mod peer;
pub mod signals;
pub mod spawn;
