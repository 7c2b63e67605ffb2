//! Banyan's HTTP API: OpenAI's endpoints, the legacy one, health, and the pages.
//!
//! It knows no model and no tokenizer: it turns requests into queries, asks the root that the registry names, and turns
//! what comes back into the shapes that clients know. Who runs a query, and what happens when that one dies, is the tree's.

mod answer;
mod body;
mod catalogue;
mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzzed;
mod health;
mod hosts;
mod legacy;
mod openai;
mod openapi;
mod pages;
mod request_id;
mod returns;
mod root;
mod routes;
mod server;
mod sse;
mod stall;
mod under_way;

pub use config::{Config, Limits};
pub use server::{Api, StartError};
