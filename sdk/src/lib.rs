//! The client side of Kiln: connect, submit, watch, follow logs, move artifacts.
//!
//! Owns what every client must get right: the bearer token, keep-alive, retries that can't do a thing twice, and streams
//! that go on where they were after the connection was cut. It knows no terminal and no configuration file.
//!
//! ```no_run
//! use futures::TryStreamExt;
//! use kiln_sdk::{Client, Options, v1};
//!
//! # async fn example() -> Result<(), kiln_sdk::Error> {
//! let client = Client::connect(Options::new("http://127.0.0.1:7420").token("kiln_…")).await?;
//! let spec = v1::BuildSpec {
//!     jobs: vec![v1::JobSpec {
//!         name: "hello".into(),
//!         backend: "shell".into(),
//!         script: "echo hello".into(),
//!         ..Default::default()
//!     }],
//!     ..Default::default()
//! };
//! let build = client.submit(v1::SubmitBuildRequest { spec: Some(spec), ..Default::default() }).await?;
//! let id = build.build.unwrap_or_default().id;
//! let mut events = client.watch(&id, 0);
//! while let Some(event) = events.try_next().await? {
//!     println!("{}: {:?}", event.number, event.change);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `examples/submit.rs` is the same as a whole program.

mod calls;
mod client;
mod connect;
mod download;
mod error;
mod logs;
mod retry;
mod tls;
mod upload;
mod watch;

pub use client::{Bearer, Client, Options, Token, Transport};
pub use download::Downloaded;
pub use error::{Error, Violation};
pub use kiln_proto::v1;
pub use logs::LogRequest;
pub use retry::Policy;
pub use tls::{Fingerprint, Identity, Trust};
pub use upload::Uploaded;
