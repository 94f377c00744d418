//! The wire: what `kiln/v1/*.proto` generates, and how it converts to and from the core's types.
//!
//! Only the edges name these types: `server::grpc`, the agent's connection, the SDK and the CLI.

pub mod convert;
mod redact;

/// Package `kiln.v1`.
#[allow(clippy::all, clippy::pedantic, missing_debug_implementations, unreachable_pub)]
#[allow(rustdoc::broken_intra_doc_links)] // comments of the protocol are not rustdoc
pub mod v1 {
    tonic::include_proto!("kiln.v1");
}

/// The encoded `FileDescriptorSet` of `kiln.v1`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kiln.v1.bin"));

/// The oldest protocol version that this build speaks.
pub const PROTOCOL_MIN: i32 = 1;
/// The newest protocol version that this build speaks.
pub const PROTOCOL_MAX: i32 = 1;
