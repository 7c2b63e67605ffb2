//! Compiles the protocol with protox, a protobuf compiler in Rust, so that a build needs no protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(["banyan.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("banyan.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Payloads and chunks pass through by reference count, not by copy.
        .bytes(".")
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
