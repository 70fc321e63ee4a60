//! The main job from end to end: real files in a real S3 server, mounted, read in two shuffled epochs.

use std::path::PathBuf;

use clap::Parser;
use weir_bench::data::{Tree, dependency_sources};
use weir_bench::metrics::Scrape;
use weir_bench::readers::{Pass, compare_files, get_objects, read_files};
use weir_bench::rig::{Mount, S3};
use weir_bench::stats::{machine, memory};

const BUCKET: &str = "demo";

/// Mounts real files from a real S3 server and reads two shuffled epochs.
#[derive(Parser)]
struct Args {
    /// Other data to mount, such as s3://bucket/prefix or file:///dir
    #[arg(long, default_value = "")]
    url: String,
    /// Files to use
    #[arg(long, default_value_t = 20_000)]
    files: usize,
    /// Readers
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// Scratch directory
    #[arg(long, default_value = "bench/out/demo")]
    dir: PathBuf,
}

/// Waits for the mount's manifest and reads everything twice.
fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let scratch = std::path::absolute(&args.dir)?;
    let _ = std::fs::remove_dir_all(scratch.join("cache")); // the first epoch starts cold
    std::fs::create_dir_all(&scratch)?;
    let (mountpoint, cache) = (scratch.join("mnt"), scratch.join("cache"));
    if args.url.is_empty() {
        own_data(&args, &scratch.join("source"), &mountpoint, &cache)
    } else {
        let mount = Mount::new(&args.url, &mountpoint, &cache, &[])?;
        let tree = Tree::scan(&mountpoint)?;
        println!(
            "{}: {} files, {:.1} MB",
            args.url,
            tree.files.len(),
            tree.bytes as f64 / 1e6
        );
        header();
        for epoch in 1..=2 {
            let pass = read_files(&mountpoint, &tree.files, epoch, args.threads)?;
            row(&format!("Weir, epoch {epoch}"), &pass);
        }
        footer(&mount)?;
        mount.end()
    }
}

fn own_data(
    args: &Args,
    source: &std::path::Path,
    mountpoint: &std::path::Path,
    cache: &std::path::Path,
) -> anyhow::Result<()> {
    let tree = dependency_sources(source, args.files)?;
    let server = S3::start(BUCKET, source)?;
    println!(
        "{} real files, {:.1} MB, served by an S3 server at {} ({})",
        tree.files.len(),
        tree.bytes as f64 / 1e6,
        server.endpoint,
        machine()
    );
    header();
    let native = read_files(source, &tree.files, 1, args.threads)?;
    row("native file system", &native);
    let raw = get_objects(&server.endpoint, BUCKET, &tree.files, 2, args.threads)?;
    row("raw S3 client", &raw);
    let mount = Mount::new(
        &format!("s3://{BUCKET}"),
        mountpoint,
        cache,
        &["--endpoint", &server.endpoint, "--anonymous"],
    )?;
    let first = read_files(mountpoint, &tree.files, 3, args.threads)?;
    row("Weir, epoch 1", &first);
    let second = read_files(mountpoint, &tree.files, 4, args.threads)?;
    row("Weir, epoch 2", &second);
    let verified = compare_files(mountpoint, source, &tree.files, 5, args.threads)?;
    anyhow::ensure!(
        verified.bytes == tree.bytes,
        "{} bytes of {}",
        verified.bytes,
        tree.bytes
    );
    println!(
        "\nevery byte of {} files compared with its source: equal",
        verified.files
    );
    println!(
        "epoch 2 is {:.2}x the native file system, epoch 1 is {:.2}x the raw S3 client",
        native.seconds / second.seconds,
        raw.seconds / first.seconds
    );
    footer(&mount)?;
    mount.end()
}

fn header() {
    println!(
        "\n{:<20} {:>10} {:>10} {:>9}",
        "", "files/s", "MB/s", "seconds"
    );
}

fn row(name: &str, pass: &Pass) {
    println!(
        "{name:<20} {:>10.0} {:>10.1} {:>9.2}",
        pass.files_per_second(),
        pass.megabytes_per_second(),
        pass.seconds
    );
}

fn footer(mount: &Mount) -> anyhow::Result<()> {
    let status = mount.status()?;
    let scrape = Scrape::fetch(&status.metrics)?;
    let bytes = |source: &str| {
        scrape.sum(
            "weir_client_read_bytes_total",
            &format!("source=\"{source}\""),
        )
    };
    let (from_memory, from_ssd, from_origin) = (bytes("memory"), bytes("ssd"), bytes("origin"));
    println!(
        "bytes that the kernel asked Weir for, by source: memory {:.1} MB, SSD {:.1} MB, origin {:.1} MB (what its page cache held never reached Weir)",
        from_memory / 1e6,
        from_ssd / 1e6,
        from_origin / 1e6
    );
    let fetched = scrape.sum("weir_worker_fill_bytes_total", "");
    let read = scrape.sum("weir_fuse_read_bytes_total", "");
    println!(
        "bytes fetched from the origin: {:.1} MB in all; cache hit ratio of the bytes asked for: {:.1}%",
        fetched / 1e6,
        if read > 0.0 {
            100.0 * (from_memory + from_ssd) / read
        } else {
            100.0
        }
    );
    let (peak, now) = memory(status.server_pid);
    let (_, supervisor) = memory(status.supervisor_pid);
    println!(
        "memory of the serving process: {:.0} MiB now, {:.0} MiB at most; of its supervisor: {:.1} MiB",
        now as f64 / 1_048_576.0,
        peak as f64 / 1_048_576.0,
        supervisor as f64 / 1_048_576.0
    );
    Ok(())
}
