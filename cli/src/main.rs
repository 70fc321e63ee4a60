//! The `weir` binary: arguments, output and exit codes; everything else is in the crates below.
//!
//! It puts the parts together. It must not know how they do their work: what needs a test of its own is in a crate.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "output.rs prints"
)]

mod args;
mod commands;
mod connect;
mod documents;
mod exit;
mod http;
mod memory;
mod mount_program;
mod mounted;
mod output;
mod process;
mod renewal;
mod trust;

use std::ffi::OsString;
use std::io::Write;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::exit::Failure;

/// glibc's allocator keeps freed blocks of 4 MiB in per-thread arenas; jemalloc gives them back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Two arenas: by default there are four for each core, and each keeps freed blocks of its own, which for blocks of
/// 4 MiB is as much as the memory tier's share again. What is freed goes back to the system within a second.
#[allow(unsafe_code, non_upper_case_globals)]
// SAFETY: jemalloc reads this symbol as a pointer to a string that ends with a zero, once, before main; a slice begins
// with that pointer.
#[unsafe(export_name = "malloc_conf")]
pub static malloc_conf: &[u8] = b"narenas:2,dirty_decay_ms:1000\0";

fn main() -> std::process::ExitCode {
    forget_empty_variables();
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = mount_program::run(&args, run) {
        return code;
    }
    let outcome = match Cli::try_parse_from(args) {
        Ok(cli) => run(cli),
        Err(instead) => explain(&instead),
    };
    match outcome {
        Ok(code) => code,
        Err(failure) => output::report(&failure),
    }
}

/// Forgets variables of Weir, AWS and proxies that are set to nothing, which is how many set-ups leave out a value.
fn forget_empty_variables() {
    let is_ours = |name: &str| {
        ["WEIR_", "AWS_", "XDG_"]
            .iter()
            .any(|start| name.starts_with(start))
            || name.to_ascii_uppercase().ends_with("_PROXY")
    };
    for (name, value) in std::env::vars_os() {
        if value.to_string_lossy().trim().is_empty() && name.to_str().is_some_and(is_ours) {
            #[allow(unsafe_code)]
            // SAFETY: this is the first thing that the process does; no other thread of it reads variables.
            unsafe {
                std::env::remove_var(name);
            }
        }
    }
}

/// Prints the help that was asked for, or what is wrong with the command line.
fn explain(instead: &clap::Error) -> Result<std::process::ExitCode, Failure> {
    let printed = instead.print().and_then(|()| std::io::stdout().flush());
    if !instead.use_stderr() {
        output::written(printed)?;
    }
    let code = u8::try_from(instead.exit_code()).unwrap_or(1);
    Ok(std::process::ExitCode::from(code))
}

fn run(cli: Cli) -> Result<std::process::ExitCode, Failure> {
    let success = std::process::ExitCode::SUCCESS;
    if let Some(name) = cli.command.process_name() {
        process::begin(name);
    }
    match cli.command {
        Command::Mount(args) => commands::mount::run(args)?,
        Command::Unmount(args) => commands::unmount::run(&args)?,
        Command::Master(args) => commands::master::run(args)?,
        Command::Worker(args) => commands::worker::run(*args)?,
        Command::Dataset(command) => commands::dataset::run(command)?,
        Command::Apply(args) => commands::apply::apply(&args)?,
        Command::Diff(args) => return commands::apply::diff(&args),
        Command::Credentials(command) => commands::credentials::run(command)?,
        Command::Warm(args) => commands::job::warm(&args)?,
        Command::Evict(args) => commands::job::evict(&args)?,
        Command::Status(args) => commands::status::run(&args)?,
        Command::Certs(command) => commands::certs::run(command)?,
        Command::Dev(args) => commands::dev::run(&args)?,
        #[cfg(feature = "kubernetes")]
        Command::Operator(args) => commands::operator::run(&args)?,
        #[cfg(feature = "csi")]
        Command::Csi(args) => return commands::csi::run(*args),
        Command::Completions { shell } => commands::completions(shell)?,
        Command::Supervise => return Ok(commands::mount::supervise()),
        Command::Hold => {
            process::init_logging();
            weir_mount::supervisor::hold().map_err(anyhow::Error::from)?;
        }
        Command::ServeMount { config } => return Ok(mounted::run(&config)),
        Command::ReadAhead => weir_fuse::page_cache::run().map_err(anyhow::Error::from)?,
    }
    Ok(success)
}
