pub mod config;
pub mod dial;
pub(crate) mod idle_timeout;
pub(crate) mod suspects;
