//! One file for each command.

pub(crate) mod apply;
pub(crate) mod certs;
pub(crate) mod credentials;
#[cfg(feature = "csi")]
pub(crate) mod csi;
pub(crate) mod dataset;
pub(crate) mod dev;
pub(crate) mod job;
pub(crate) mod master;
pub(crate) mod mount;
#[cfg(feature = "kubernetes")]
pub(crate) mod operator;
pub(crate) mod status;
pub(crate) mod unmount;
pub(crate) mod worker;
pub(crate) mod workers;

use clap::CommandFactory;

/// `weir completions SHELL`.
pub(crate) fn completions(shell: clap_complete::Shell) -> Result<(), crate::exit::Failure> {
    let mut command = crate::args::Cli::command();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "weir", &mut script);
    crate::output::document(&String::from_utf8_lossy(&script))
}
