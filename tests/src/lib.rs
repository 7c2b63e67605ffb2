//! What the whole-system suites are built of: clusters in one process, real processes, and clients for both.
//!
//! Helpers panic where a test can't go on, and say what was there instead. The suites are in `tests/`: `cluster` (one
//! process, engines without weights), `processes` (the built binary and the embedded registry), `store` (what the API remembers,
//! and what it does with it), `real_parts` (etcd, PostgreSQL,
//! PyPI's openai client, Chromium: `./test --all` installs them), `faults` and `real_faults` (what goes wrong, and what must
//! happen then: docs/reliability.md), `leaving` (what ends on purpose, under load), `real_version_faults` (this version with the
//! one before it, which `./test --long` builds), `simulation` (ten thousand nodes under virtual time: docs/simulation.md).

pub mod authority;
pub mod certified;
pub mod clients;
pub mod cluster;
pub mod etcds;
pub mod eventually;
pub mod footprint;
pub mod forest;
pub mod gate;
pub mod history;
pub mod http;
pub mod nemesis;
pub mod nginx;
pub mod otlp;
pub mod postgres;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod query;
pub mod random;
pub mod real;
pub mod simulator;
pub mod socket;
pub mod store;
pub mod upstream;

pub use cluster::Cluster;
pub use eventually::eventually;
pub use forest::Forest;
pub use process::{Banyan, Finished};
