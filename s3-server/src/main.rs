//! `weir-s3-server --dir BUCKET=PATH … --generated BUCKET=COUNT …`: serves directories and made-up objects over S3
//! until it is ended.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use weir_s3_server::{Bucket, Config, Fault, Rule, S3Server, Target};

/// An S3 server for tests and measurements. Serves directories read-only.
#[derive(Parser)]
struct Args {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "HOST:PORT")]
    listen: SocketAddr,
    /// A bucket and the directory with its objects, read when the server starts
    #[arg(long, required_unless_present = "generated", value_name = "BUCKET=PATH", value_parser = parse_dir)]
    dir: Vec<(String, PathBuf)>,
    /// A bucket and the number of its objects, which are made up when they are asked for and take no memory
    #[arg(long, value_name = "BUCKET=COUNT", value_parser = parse_generated)]
    generated: Vec<(String, u64)>,
    /// Every answer begins this much later, as those of a service that is far away
    #[arg(long, default_value_t = 0, value_name = "MILLISECONDS")]
    latency: u64,
    /// Requests must be signed with this key
    #[arg(long, requires = "secret_key")]
    access_key: Option<String>,
    /// The secret of the access key
    #[arg(long, requires = "access_key")]
    secret_key: Option<String>,
}

fn parse_dir(text: &str) -> Result<(String, PathBuf), String> {
    let (bucket, path) = text.split_once('=').ok_or("write BUCKET=PATH")?;
    Ok((bucket.to_owned(), path.into()))
}

fn parse_generated(text: &str) -> Result<(String, u64), String> {
    let (bucket, count) = text.split_once('=').ok_or("write BUCKET=COUNT")?;
    let count = count
        .parse()
        .map_err(|error| format!("{count:?}: {error}"))?;
    Ok((bucket.to_owned(), count))
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let server = S3Server::start(Config {
        listen: args.listen,
        credentials: args.access_key.zip(args.secret_key),
        ..Config::default()
    })?;
    for (name, path) in &args.dir {
        let bucket = Bucket::of_directory(path).map_err(|error| {
            std::io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        server.add_bucket(name, bucket);
    }
    for (name, count) in &args.generated {
        server.add_bucket(name, Bucket::generated(*count));
    }
    if args.latency > 0 {
        let stall = Fault::Stall(Duration::from_millis(args.latency));
        server.faults().set([Rule::new(stall).target(Target::All)]);
    }
    println!("listening on {}", server.endpoint());
    loop {
        std::thread::park();
    }
}
