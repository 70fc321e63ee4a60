//! The main job from end to end: real files in a real S3 server, mounted, read in two shuffled epochs.

use std::path::{Path, PathBuf};

use clap::Parser;
use weir_demo::data::{Tree, dependency_sources};
use weir_demo::ending;
use weir_demo::kernel::drop_caches;
use weir_demo::metrics::Scrape;
use weir_demo::mount::Mount;
use weir_demo::readers::{Pass, compare_files, get_objects, read_files};
use weir_demo::server::Builtin;
use weir_demo::stats::machine;
use weir_demo::usage::memory;

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

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ending::on_signals()?;
    let scratch = std::path::absolute(&args.dir)?;
    let (mountpoint, cache) = (scratch.join("mnt"), scratch.join("cache"));
    let _ = std::fs::remove_dir_all(&cache); // the first epoch starts cold
    std::fs::create_dir_all(&scratch)?;
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
        epochs(&mount, &tree, args.threads)?;
        footer(&mount)?;
        mount.end()
    }
}

/// The dependency sources of this project, with what they can be compared with.
fn own_data(args: &Args, source: &Path, mountpoint: &Path, cache: &Path) -> anyhow::Result<()> {
    let tree = dependency_sources(source, args.files)?;
    let server = Builtin::start([(BUCKET, source)], 0)?;
    println!(
        "{} real files, {:.1} MB, served by an S3 server at {} ({})",
        tree.files.len(),
        tree.bytes as f64 / 1e6,
        server.endpoint,
        machine()
    );
    header();
    // The second time it is as warm as it gets.
    read_files(source, &tree.files, 1, args.threads)?;
    let native = read_files(source, &tree.files, 2, args.threads)?;
    row("native file system", &native, None);
    let raw = get_objects(&server.endpoint, BUCKET, &tree.files, 3, args.threads)?;
    row("raw S3 client", &raw, None);
    let mount = Mount::new(
        &format!("s3://{BUCKET}"),
        mountpoint,
        cache,
        &["--endpoint", &server.endpoint, "--anonymous"],
    )?;
    let [first, second] = epochs(&mount, &tree, args.threads)?;
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

/// Bytes that a mount gave to the kernel, by where they came from.
#[derive(Clone, Copy)]
struct Sources {
    memory: f64,
    ssd: f64,
    origin: f64,
}

impl Sources {
    fn now(mount: &Mount) -> anyhow::Result<Self> {
        let scrape = Scrape::fetch(&mount.status()?.metrics)?;
        let bytes = |source: &str| {
            let label = format!("source=\"{source}\"");
            scrape.sum("weir_client_read_bytes_total", &label)
        };
        Ok(Self {
            memory: bytes("memory"),
            ssd: bytes("ssd"),
            origin: bytes("origin"),
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            memory: self.memory - before.memory,
            ssd: self.ssd - before.ssd,
            origin: self.origin - before.origin,
        }
    }
}

/// Two shuffled epochs; a third one without the kernel's caches, where they may be dropped.
fn epochs(mount: &Mount, tree: &Tree, threads: usize) -> anyhow::Result<[Pass; 2]> {
    let epoch = |name: &str, seed: u64| -> anyhow::Result<Pass> {
        let before = Sources::now(mount)?;
        let pass = read_files(&mount.dir, &tree.files, seed, threads)?;
        row(name, &pass, Some(Sources::now(mount)?.since(before)));
        Ok(pass)
    };
    let first = epoch("Weir, epoch 1", 11)?;
    let second = epoch("Weir, epoch 2", 12)?;
    if drop_caches().is_ok() {
        epoch("Weir, caches dropped", 13)?;
    }
    Ok([first, second])
}

fn header() {
    println!(
        "\n{:<21} {:>9} {:>8} {:>8}   {:>9} {:>9} {:>9} {:>9} {:>7}",
        "", "files/s", "MB/s", "seconds", "kernel MB", "memory MB", "SSD MB", "origin MB", "hits"
    );
}

/// One line of the table. What did not come from Weir came from the kernel's page cache. What a reader and whoever reads
/// ahead of it have waited for together counts for both.
fn row(name: &str, pass: &Pass, sources: Option<Sources>) {
    print!(
        "{name:<21} {:>9.0} {:>8.1} {:>8.2}",
        pass.files_per_second(),
        pass.megabytes_per_second(),
        pass.seconds
    );
    if let Some(Sources {
        memory,
        ssd,
        origin,
    }) = sources
    {
        let all = pass.bytes as f64;
        let kernel = (all - memory - ssd - origin).max(0.0);
        print!(
            "   {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>6.1}%",
            kernel / 1e6,
            memory / 1e6,
            ssd / 1e6,
            origin / 1e6,
            100.0 * (1.0 - origin / all.max(1.0)).max(0.0)
        );
    }
    println!();
}

fn footer(mount: &Mount) -> anyhow::Result<()> {
    let status = mount.status()?;
    let (peak, now) = memory(status.server_pid);
    let (_, supervisor) = memory(status.supervisor_pid);
    println!(
        "memory of the serving process: {:.0} MiB now, {:.0} MiB at most, memory tier included; of its supervisor: {:.1} MiB",
        now as f64 / 1_048_576.0,
        peak as f64 / 1_048_576.0,
        supervisor as f64 / 1_048_576.0
    );
    Ok(())
}
