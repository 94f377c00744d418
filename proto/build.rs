//! Compiles kiln/v1/*.proto with protox: no protoc is needed.

use prost::Message;
use std::{env, fs, path::PathBuf};

const FILES: &[&str] = &["spec", "build", "project", "log", "artifact", "agent", "admin", "secret"];

/// Messages that hold what must not be seen; their `Debug` is in src/redact.rs.
const HIDDEN: [&str; 4] = [
    ".kiln.v1.Secret",
    ".kiln.v1.SetSecretRequest",
    ".kiln.v1.CreateTokenResponse",
    ".kiln.v1.EnrollAgentRequest",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files: Vec<_> = FILES.iter().map(|name| format!("kiln/v1/{name}.proto")).collect();
    println!("cargo:rerun-if-changed=kiln");
    let descriptors = protox::compile(&files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("kiln.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".kiln.v1.PushLogChunk.data")
        .bytes(".kiln.v1.ReadLogResponse.data")
        .bytes(".kiln.v1.FollowLogResponse.data")
        .bytes(".kiln.v1.PutArtifactRequest.data")
        .bytes(".kiln.v1.GetArtifactResponse.data")
        .skip_debug(HIDDEN)
        .compile_fds(descriptors)?;
    Ok(())
}
