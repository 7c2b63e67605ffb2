//! Banyan's HTTP API: OpenAI's endpoints, the legacy one, health, and the pages.
//!
//! It knows no model and no tokenizer: it turns requests into queries, asks the root that the registry names, and turns
//! what comes back into the shapes that clients know. Who runs a query, and what happens when that one dies, is the tree's.

mod aliases;
mod answer;
mod asked;
mod batches;
mod body;
mod caller;
mod catalogue;
mod chain;
mod chat;
mod config;
mod conversations;
mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzzed;
mod health;
mod hosts;
mod https;
mod keyring;
mod keys;
mod legacy;
mod meters;
mod openai;
mod openapi;
mod pages;
mod recorder;
mod request_id;
mod returns;
mod root;
mod routes;
mod server;
mod session;
mod sse;
mod stall;
mod tally;
mod tree;
mod under_way;
mod usage;

pub use aliases::{AliasError, Aliases};
pub use config::{Config, Limits};
pub use https::{Https, HttpsError};
pub use server::{Api, StartError};
