//! 20,000 files of 100 KiB, shuffled: the native file system, a raw S3 client, and Weir, in one run.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde::Serialize;
use weir_bench::data::{Tree, generated};
use weir_bench::metrics::Scrape;
use weir_bench::readers::{Pass, compare_files, get_objects, read_files, read_files_at};
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
    warm_requests: f64,
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
    let cold = |root: &Path, seed: u64| -> anyhow::Result<Pass> {
        anyhow::ensure!(
            drop_kernel_caches(),
            "dropping the kernel's caches needs root"
        );
        read_files(root, files, seed, threads)
    };
    let cache = scratch.join("cache");
    let _ = std::fs::remove_dir_all(&cache); // the first epoch starts cold
    let mut result = Run {
        raw: get_objects(&server.endpoint, BUCKET, files, seed + 2, threads)?.seconds,
        ..Run::default()
    };
    let mount = new_mount(args, scratch, &cache, server)?;
    result.first = read_files(&mount.dir, files, seed + 3, threads)?.seconds;
    let status = mount.status()?;
    let requests = || -> anyhow::Result<(f64, f64)> {
        let scrape = Scrape::fetch(&status.metrics)?;
        let name = "weir_fuse_requests_total";
        Ok((scrape.sum(name, "operation=\"read\""), scrape.sum(name, "")))
    };
    result.native_cold = cold(&tree.root, seed + 6)?.seconds;
    result.cold = cold(&mount.dir, seed + 7)?.seconds;
    for root in [&tree.root, &mount.dir] {
        read_files(root, files, seed + 4, threads)?;
    }
    let before = requests()?;
    // One pass takes a fraction of a second, so several are made in turns. Both sides have been dropped from the
    // kernel's cache and read again by now: how pages came into it changes how fast they leave it.
    let (mut native, mut own) = (Vec::new(), Vec::new());
    let (mut native_aligned, mut own_aligned) = (Vec::new(), Vec::new());
    for pair in 0..WARM_PAIRS {
        let seed = seed + 20 + pair;
        native.push(read_files(&tree.root, files, seed, threads)?.seconds);
        own.push(read_files(&mount.dir, files, seed, threads)?.seconds);
        native_aligned.push(read_files_at(&tree.root, files, seed, threads, 0)?.seconds);
        own_aligned.push(read_files_at(&mount.dir, files, seed, threads, 0)?.seconds);
    }
    (result.native_warm, result.warm) = (median(&native), median(&own));
    (result.native_aligned, result.aligned) = (median(&native_aligned), median(&own_aligned));
    let after = requests()?;
    result.warm_reads = after.0 - before.0;
    result.warm_requests = after.1 - before.1;
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
    let requests = median(&runs.iter().map(|run| run.warm_requests).collect::<Vec<_>>());
    writeln!(
        page,
        "Requests that reached Weir during the warm epochs of {} files: {reads:.0} reads, {requests:.0} in all (`weir_fuse_requests_total`).",
        args.files
    )?;
    let json = serde_json::to_string(&rows)?;
    writeln!(
        page,
        "\n<details><summary>JSON</summary>\n\n```json\n{json}\n```\n</details>\n"
    )?;
    Ok(page)
}
