//! A master, workers and readers in one process, whose network and clocks are simulated by [turmoil]: messages are late, come in another
//! order, or are lost; hosts crash and come back; clocks run at different speeds, jump, and show different days. What goes wrong, and
//! when, follows from a seed.
//!
//! What runs is the program's own code: the master with its gRPC service, the workers' heartbeats, control services, fills, copies and
//! block streams, and how clients follow the map and read blocks. What it needs for that are four seams, each at an edge where
//! nothing is lost by it: `Dial::simulated` and `incoming_simulated` of `weir-trust` for connections, the block stream's
//! `SimulatedSocket` and `serve_simulated`, `SourcePolicy::simulated` for origins, and `weir_core::wall_clock` for the time of day. All
//! other time is tokio's, which each host has its own of.
//!
//! Not simulated, and so not here:
//!
//! - Disks: the SSD tier writes from threads of its own with O_DIRECT, and readers on the same machine get descriptors over a Unix
//!   socket. Workers here have memory alone, and each reader is on a machine of its own.
//! - Warm jobs: they run on threads with runtimes of their own, which no simulated host has.
//! - TLS and the challenge that opens connections: rustls and the stream's keys need the kernel's sockets.
//!
//! The storm of `tests/` and the system tests have those.
//!
//! The crate is nothing but its tests: turmoil is for them alone. It must not know what is inside the crates that it runs; what it
//! needs of them is public.
//!
//! [turmoil]: https://docs.rs/turmoil

#![forbid(unsafe_code)]
