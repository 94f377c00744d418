//! What a caller can do who means no good, or knows no better: a real server process on SQLite, real gRPC. Each attack
//! gets a clear answer, changes nothing that it may not, and costs the server a bounded amount of memory.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may fail")]

#[path = "hostile/agents.rs"]
mod agents;
#[path = "hostile/frames.rs"]
mod frames;
#[path = "hostile/server.rs"]
mod server;
#[path = "hostile/submissions.rs"]
mod submissions;
