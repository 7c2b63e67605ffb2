//! What the whole-system suites are built of: clusters in one process, real processes, and clients for both.
//!
//! Helpers panic where a test can't go on, and say what was there instead. The suites are in `tests/`: `cluster` (one
//! process, engines without weights), `processes` (the built binary and the embedded registry), `real_parts` (etcd,
//! PyPI's openai client, Chromium: `./test --all` installs them).

pub mod cluster;
pub mod eventually;
pub mod http;
pub mod process;
pub mod query;
pub mod real;

pub use cluster::Cluster;
pub use eventually::eventually;
pub use process::{Banyan, Finished};
