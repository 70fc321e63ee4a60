//! A master, workers and readers of its cluster map in one process, whose network and clocks are simulated by [turmoil]: messages are
//! late, come in another order, or are lost; hosts crash and come back. All of it follows from a seed, so a failure can be had again.
//!
//! What runs is the program's own code: the master with its gRPC service, the workers' heartbeats and control services, and how clients
//! follow the map. Not simulated, and so not here, are disks and the block stream, which use the kernel's sockets; the storm
//! of `tests/` has those.
//!
//! The crate is nothing but its tests: turmoil is for them alone. It must not know what is inside the crates that it runs; what it
//! needs of them is public.
//!
//! [turmoil]: https://docs.rs/turmoil

#![forbid(unsafe_code)]
