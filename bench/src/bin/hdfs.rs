//! Reads the files of an HDFS directory by the raw client: what mounts of Weir are compared with.

use std::io::Write;

use clap::Parser;
use weir_bench::hdfs::Raw;

/// Reads all files of a directory of HDFS, in passes
#[derive(Parser)]
struct Args {
    /// hdfs://NAMENODE:PORT/dir, or hdfs://SERVICE/dir with HADOOP_CONF_DIR
    url: String,
    /// Readers at once
    #[arg(long, default_value_t = 16)]
    readers: usize,
    /// Passes over all files, each in another order
    #[arg(long, default_value_t = 2)]
    passes: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let raw = Raw::open(&args.url, None)?;
    let (paths, seconds) = raw.list()?;
    let mut out = std::io::stdout();
    writeln!(out, "{} files listed in {seconds:.2} s", paths.len())?;
    for seed in 0..args.passes {
        let pass = raw.read(paths.clone(), seed, args.readers)?;
        writeln!(
            out,
            "{} files, {:.0} a second, {:.0} MB/s",
            pass.files,
            pass.files_per_second(),
            pass.megabytes_per_second()
        )?;
    }
    Ok(())
}
