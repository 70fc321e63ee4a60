//! 20,000 files of 100 KiB, shuffled: the native file system, a raw S3 client, and Weir, in one run.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde::Serialize;
use weir_bench::data::{Tree, generated};
use weir_bench::metrics::Scrape;
use weir_bench::readers::{compare_files, get_objects, read_files, read_files_at};
use weir_bench::rig::{Mount, S3, drop_kernel_caches};
use weir_bench::stats::{machine, median, memory};

const BUCKET: &str = "bench";
/// Passes over a warm kernel cache in each run, on either side.
const WARM_PAIRS: u64 = 7;
/// Milliseconds to the first byte of a service in the same region, and the files that are read from there.
const LATENCY: u64 = 10;
const FAR_FILES: usize = 4000;
const BEGIN: &str = "<!-- measured: small files -->";
const END: &str = "<!-- end -->";

/// Measures shuffled reads of small files and writes bench/RESULTS.md.
#[derive(Parser)]
struct Args {
    /// Files
    #[arg(long, default_value_t = 20_000)]
    files: usize,
    /// Bytes of each file
    #[arg(long, default_value_t = 100 * 1024)]
    size: usize,
    /// Readers
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// Runs of each row; the median is reported
    #[arg(long, default_value_t = 3)]
    runs: u64,
    /// The memory tier of the mount
    #[arg(long, default_value = "0")]
    mem: String,
    /// Scratch directory
    #[arg(long, default_value = "bench/out/small")]
    dir: PathBuf,
    /// The page that is written
    #[arg(long, default_value = "bench/RESULTS.md")]
    results: PathBuf,
}

/// One thing that was measured in every run.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    /// What it is compared with.
    against: &'static str,
    target: Option<f64>,
    seconds: Vec<f64>,
    /// Ratios of the same run: the other's time by this one's.
    ratios: Vec<f64>,
    megabytes_per_second: f64,
}

#[derive(Default)]
struct Run {
    native_warm: f64,
    native_cold: f64,
    raw: f64,
    first: f64,
    raw_far: f64,
    first_far: f64,
    warm: f64,
    native_aligned: f64,
    aligned: f64,
    cold: f64,
    peak_memory: u64,
    warm_reads: f64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let scratch = std::path::absolute(&args.dir)?;
    std::fs::create_dir_all(&scratch)?;
    let source = scratch.join("source");
    let tree = generated(&source, args.files, args.size, 100)?;
    let server = S3::start(BUCKET, &source, 0)?;
    let far = S3::start(BUCKET, &source, LATENCY)?;
    let mut runs = Vec::new();
    for number in 0..args.runs {
        runs.push(run(&args, number, &scratch, &tree, &server, &far)?);
        eprintln!("run {} of {} done", number + 1, args.runs);
    }
    let page = page(&args, &tree, &runs)?;
    let old = std::fs::read_to_string(&args.results).unwrap_or_default();
    let (head, tail) = match (old.split_once(BEGIN), old.split_once(END)) {
        (Some((head, _)), Some((_, tail))) => (head.to_owned(), tail.to_owned()),
        _ => (format!("# Results\n\n{old}"), "\n".to_owned()),
    };
    std::fs::write(&args.results, format!("{head}{BEGIN}\n{page}{END}{tail}"))?;
    println!("{page}");
    Ok(())
}

/// Every row once, one after the other, so that a ratio compares neighbours in time.
fn run(
    args: &Args,
    number: u64,
    scratch: &Path,
    tree: &Tree,
    server: &S3,
    far: &S3,
) -> anyhow::Result<Run> {
    let (threads, files) = (args.threads, &tree.files);
    let seed = number * 100;
    let cache = scratch.join("cache");
    let _ = std::fs::remove_dir_all(&cache); // the first epoch starts cold
    let mut result = Run {
        raw: get_objects(&server.endpoint, BUCKET, files, seed + 2, threads)?.seconds,
        ..Run::default()
    };
    let mount = new_mount(args, scratch, &cache, server)?;
    result.first = read_files(&mount.dir, files, seed + 3, threads)?.seconds;
    let status = mount.status()?;
    let reads = || -> anyhow::Result<f64> {
        let scrape = Scrape::fetch(&status.metrics)?;
        Ok(scrape.sum("weir_fuse_requests_total", "operation=\"read\""))
    };
    let native_first = turns(args, seed + 20, [&tree.root, &mount.dir], files, &reads)?;
    let own_first = turns(args, seed + 40, [&mount.dir, &tree.root], files, &reads)?;
    result.native_cold = native_first.cold;
    result.cold = own_first.cold;
    result.native_warm = f64::midpoint(native_first.warm[0], own_first.warm[1]);
    result.warm = f64::midpoint(native_first.warm[1], own_first.warm[0]);
    result.native_aligned = f64::midpoint(native_first.aligned[0], own_first.aligned[1]);
    result.aligned = f64::midpoint(native_first.aligned[1], own_first.aligned[0]);
    result.warm_reads = native_first.reads + own_first.reads;
    compare_files(&mount.dir, &tree.root, files, seed + 8, threads)?;
    result.peak_memory = memory(status.server_pid).0;
    mount.end()?;

    let files = &files[..FAR_FILES.min(files.len())];
    result.raw_far = get_objects(&far.endpoint, BUCKET, files, seed + 9, threads)?.seconds;
    let mount = new_mount(args, scratch, &scratch.join("cache/far"), far)?;
    result.first_far = read_files(&mount.dir, files, seed + 10, threads)?.seconds;
    compare_files(&mount.dir, &tree.root, files, seed + 11, threads)?;
    mount.end()?;
    Ok(result)
}

/// What was measured of two directories with the same files, in this order.
struct Turns {
    /// The first one without the kernel's caches.
    cold: f64,
    warm: [f64; 2],
    aligned: [f64; 2],
    /// Reads that reached Weir meanwhile.
    reads: f64,
}

/// Drops the kernel's caches, reads both directories once, and then in turns from the warm cache: one pass takes a
/// fraction of a second, and whose pages came first into the cache is copied from more slowly.
fn turns(
    args: &Args,
    seed: u64,
    roots: [&Path; 2],
    files: &[PathBuf],
    reads: &dyn Fn() -> anyhow::Result<f64>,
) -> anyhow::Result<Turns> {
    anyhow::ensure!(
        drop_kernel_caches(),
        "dropping the kernel's caches needs root"
    );
    let cold = read_files(roots[0], files, seed, args.threads)?.seconds;
    read_files(roots[1], files, seed, args.threads)?;
    let before = reads()?;
    let mut warm = [const { Vec::new() }; 2];
    let mut aligned = [const { Vec::new() }; 2];
    for pair in 0..WARM_PAIRS {
        let seed = seed + 1 + pair;
        for (number, root) in roots.iter().enumerate() {
            warm[number].push(read_files(root, files, seed, args.threads)?.seconds);
            aligned[number].push(read_files_at(root, files, seed, args.threads, 0)?.seconds);
        }
    }
    Ok(Turns {
        cold,
        warm: warm.map(|seconds| median(&seconds)),
        aligned: aligned.map(|seconds| median(&seconds)),
        reads: reads()? - before,
    })
}

fn new_mount(args: &Args, scratch: &Path, cache: &Path, server: &S3) -> anyhow::Result<Mount> {
    let origin = ["--endpoint", &server.endpoint, "--anonymous"];
    let flags = [&origin[..], &["--mem", &args.mem]].concat();
    Mount::new(
        &format!("s3://{BUCKET}"),
        &scratch.join("mnt"),
        cache,
        &flags,
    )
}

fn page(args: &Args, tree: &Tree, runs: &[Run]) -> anyhow::Result<String> {
    let row =
        |name, against, target, count: usize, own: fn(&Run) -> f64, other: fn(&Run) -> f64| {
            let seconds: Vec<f64> = runs.iter().map(own).collect();
            let bytes = (count * args.size) as f64;
            Row {
                name,
                against,
                target,
                ratios: runs.iter().map(|run| other(run) / own(run)).collect(),
                megabytes_per_second: bytes / median(&seconds) / 1e6,
                seconds,
            }
        };
    let (all, some) = (tree.files.len(), FAR_FILES.min(tree.files.len()));
    let rows = [
        row(
            "native, kernel cache warm",
            "",
            None,
            all,
            |r| r.native_warm,
            |r| r.native_warm,
        ),
        row(
            "Weir, kernel cache warm",
            "native",
            Some(0.9),
            all,
            |r| r.warm,
            |r| r.native_warm,
        ),
        row(
            "native, kernel cache warm, page-aligned buffers",
            "",
            None,
            all,
            |r| r.native_aligned,
            |r| r.native_aligned,
        ),
        row(
            "Weir, kernel cache warm, page-aligned buffers",
            "native",
            Some(0.9),
            all,
            |r| r.aligned,
            |r| r.native_aligned,
        ),
        row(
            "native, kernel cache dropped",
            "",
            None,
            all,
            |r| r.native_cold,
            |r| r.native_cold,
        ),
        row(
            "Weir, kernel cache dropped, blocks on SSD",
            "native",
            Some(0.6),
            all,
            |r| r.cold,
            |r| r.native_cold,
        ),
        row("raw S3 client", "", None, all, |r| r.raw, |r| r.raw),
        row(
            "Weir, first epoch",
            "raw client",
            Some(0.6),
            all,
            |r| r.first,
            |r| r.raw,
        ),
        row(
            "raw S3 client, answers 10 ms late, 4,000 files",
            "",
            None,
            some,
            |r| r.raw_far,
            |r| r.raw_far,
        ),
        row(
            "Weir, first epoch, answers 10 ms late, 4,000 files",
            "raw client",
            None,
            some,
            |r| r.first_far,
            |r| r.raw_far,
        ),
    ];
    let mut page = String::new();
    writeln!(
        page,
        "## {} files of {} bytes in 100 directories, shuffled, {} threads\n",
        args.files, args.size, args.threads
    )?;
    writeln!(
        page,
        "`make bench` on {}; medians of {} runs, ratios within each run; every byte compared with its source in an extra pass.\n",
        machine(),
        runs.len()
    )?;
    writeln!(
        page,
        "| row | seconds | MB/s | ratio | target |\n|---|---|---|---|---|"
    )?;
    for row in &rows {
        let ratio = match row.against {
            "" => "-".to_owned(),
            against => format!("{:.2}x {against}", median(&row.ratios)),
        };
        let target = row
            .target
            .map_or("-".to_owned(), |target| format!(">= {target:.2}x"));
        writeln!(
            page,
            "| {} | {:.2} | {:.0} | {ratio} | {target} |",
            row.name,
            median(&row.seconds),
            row.megabytes_per_second
        )?;
    }
    let peak = runs.iter().map(|run| run.peak_memory).max().unwrap_or(0);
    writeln!(
        page,
        "\nPeak memory of the serving process: {:.0} MiB with a memory tier of {} (target: tier + 150 MiB).",
        peak as f64 / 1_048_576.0,
        args.mem
    )?;
    let reads = median(&runs.iter().map(|run| run.warm_reads).collect::<Vec<_>>());
    writeln!(
        page,
        "Reads that reached Weir in {} warm epochs of {} files: {reads:.0} (`weir_fuse_requests_total`).",
        4 * WARM_PAIRS,
        args.files
    )?;
    let json = serde_json::to_string(&rows)?;
    writeln!(
        page,
        "\n<details><summary>JSON</summary>\n\n```json\n{json}\n```\n</details>\n"
    )?;
    Ok(page)
}
