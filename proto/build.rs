//! Generates the gRPC code without a system protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "weir/v1/cluster.proto",
        "weir/v1/master.proto",
        "weir/v1/worker.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        .bytes(".weir.v1.ManifestChunk")
        // It holds a key; see `src/lib.rs`.
        .skip_debug([".weir.v1.OpenStreamReply"])
        .compile_fds(descriptors)?;
    Ok(())
}
