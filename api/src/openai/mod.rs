//! OpenAI's HTTP API: what its clients send, and the shapes that they read.

mod cancel;
pub(crate) mod chat;
pub(crate) mod comeback;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod error;
mod field;
mod fields;
pub(crate) mod models;
mod order;
mod parameters;
mod reply;
pub(crate) mod shapes;
mod stream;

pub(crate) use cancel::{cancel, cancel_keyed};
pub(crate) use chat::chat_completions;
pub(crate) use comeback::Comeback;
pub(crate) use completions::completions;
pub(crate) use embeddings::embeddings;
pub(crate) use error::Error;
pub(crate) use field::{Documented, Field, Integer, Other, Text, object_schema};
pub(crate) use fields::{Fields, expected};
pub(crate) use models::{model, models};
pub(crate) use order::{Dialect, Order};
#[cfg(any(test, fuzzing))]
pub(crate) use parameters::CHOICES_MAX;
pub(crate) use parameters::Parameters;
pub(crate) use reply::{Reply, with_node};
