//! One file for each command.

pub(crate) mod dataset;
pub(crate) mod job;
pub(crate) mod master;
pub(crate) mod mount;
pub(crate) mod status;
pub(crate) mod unmount;
pub(crate) mod worker;

use clap::CommandFactory;

/// `weir completions SHELL`.
pub(crate) fn completions(shell: clap_complete::Shell) {
    let mut command = crate::args::Cli::command();
    clap_complete::generate(shell, &mut command, "weir", &mut std::io::stdout());
}
