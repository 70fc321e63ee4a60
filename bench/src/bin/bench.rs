//! `weir-bench`: measures Weir beside the native file system, raw clients and other mounts.

use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use weir_bench::pairs::{self, Pairs};
use weir_bench::report::{merge_json, merge_markdown};
use weir_bench::server::Kind;
use weir_bench::suite::{Bench, Suite};
use weir_bench::system::PeerCommand;

/// Measures Weir and writes bench/RESULTS.md.
#[derive(Parser)]
struct Args {
    /// What to measure; may be repeated [default: everything]
    #[arg(long, value_enum, value_name = "NAME")]
    suite: Vec<Suite>,
    /// Use a twentieth of the data, and the server of this project: shows in minutes that everything works
    #[arg(long)]
    quick: bool,
    /// Runs of each row; the median is reported [default: 3, 1 for a quick run]
    #[arg(long)]
    runs: Option<u64>,
    /// Where the data comes from [default: minio, builtin for a quick run]
    #[arg(long, value_enum)]
    server: Option<Kind>,
    /// Another mount to measure, in the foreground: NAME=COMMAND with {endpoint}, {bucket}, {cache} and {dir}
    #[arg(long, value_name = "NAME=COMMAND")]
    peers: Vec<PeerCommand>,
    /// Compare with another build's `weir`, pass by pass in turns: small, big, random and stream, 15 pairs unless --runs
    /// says otherwise, 3 for a quick run
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// Scratch directory; keeps the data for the next run
    #[arg(long, default_value = "bench/out")]
    dir: PathBuf,
    /// The page that is written, with results.json beside it [default: bench/RESULTS.md, or in the scratch directory
    /// for a quick run]
    #[arg(long)]
    results: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    weir_demo::ending::on_signals()?;
    let (out, server, runs) = if args.quick {
        (args.dir.join("quick"), Kind::Builtin, 1)
    } else {
        (args.dir.clone(), Kind::Minio, 3)
    };
    let runs = match (&args.against, args.quick) {
        (None, _) => runs,
        (Some(_), true) => 3,
        (Some(_), false) => 15,
    };
    std::fs::create_dir_all(&out)?;
    let out = std::path::absolute(&out)?;
    let results = args.results.unwrap_or_else(|| {
        if args.quick {
            out.join("RESULTS.md")
        } else {
            "bench/RESULTS.md".into()
        }
    });
    let bench = Bench {
        quick: args.quick,
        runs: args.runs.unwrap_or(runs).max(1),
        server: args.server.unwrap_or(server),
        peers: PeerCommand::known().into_iter().chain(args.peers).collect(),
        out,
    };
    let suites = match (args.suite.is_empty(), &args.against) {
        (false, _) => args.suite,
        (true, None) => Suite::value_variants().to_vec(),
        (true, Some(_)) => pairs::SUITES.to_vec(),
    };
    let json = results.with_file_name("results.json");
    for suite in suites {
        let (section, markdown) = match &args.against {
            None => {
                let section = suite.run(&bench)?;
                let markdown = section.markdown();
                (section, markdown)
            }
            Some(against) => {
                let bench = &bench;
                let section = Pairs { bench, against }.run(suite)?;
                let markdown = pairs::markdown(&section);
                (section, markdown)
            }
        };
        // After each suite: a later one that fails does not take its figures along.
        let page = std::fs::read_to_string(&results).unwrap_or_default();
        std::fs::write(&results, merge_markdown(&page, &section.suite, &markdown))?;
        let known = std::fs::read_to_string(&json).unwrap_or_default();
        std::fs::write(&json, merge_json(&known, &section)?)?;
        // That nobody reads it any more ends nothing.
        let _ = writeln!(std::io::stdout(), "{markdown}");
    }
    Ok(())
}
