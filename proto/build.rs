//! Generates the gRPC code without a system protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "weir/v1/certificates.proto",
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
        // They hold secrets; see `src/lib.rs`.
        .skip_debug([
            ".weir.v1.OpenStreamReply",
            ".weir.v1.Credential",
            ".weir.v1.StaticKeys",
            ".weir.v1.AssumedRole",
            ".weir.v1.Keytab",
            ".weir.v1.HttpHeader",
            ".weir.v1.GoogleFile",
            ".weir.v1.AzureKey",
            ".weir.v1.AzureSas",
            ".weir.v1.SignRequest",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
