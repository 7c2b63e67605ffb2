//! The provider engine: outside services as leaves of the tree.
//!
//! Offers what a node needs of an engine, and lets others compute: each query becomes a call of an upstream that speaks OpenAI's
//! or Anthropic's dialect. Which key pays is decided in plain code; the rest moves bytes. Knows no tree.

mod call;
mod config;
mod dialect;
mod engine;
mod http;
mod keys;
mod sse;
mod window;

pub use config::{Config, ConfigError, Policy};
pub use engine::{StartError, start};
