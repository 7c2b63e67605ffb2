//! What a process shows of itself to those who watch over it: metrics in the text format of Prometheus and OpenMetrics,
//! and traces as OpenTelemetry has them.
//!
//! What is measured, and what it means, is its owner's: node and API have a `meters.rs` each. Here is how measures are made and named, how
//! they are written, and where they are served.

mod metrics;
mod process;
mod readings;
mod server;
mod trace;

pub use metrics::{CONTENT_TYPE, Counters, Histograms, Labels, Metrics, Section, buckets};
pub use prometheus_client::metrics::{counter::Counter, histogram::Histogram};
pub use readings::{Reading, Readings, Say};
pub use server::Server;
pub use trace::{Place, Side, Span, TraceError, Tracer};
