//! OpenAI's HTTP API: what its clients send, and the shapes that they read.

mod cancel;
mod chat;
mod comeback;
mod completions;
mod error;
mod fields;
mod models;
mod order;
mod parameters;
mod reply;
mod shapes;
mod stream;

pub(crate) use cancel::cancel;
pub(crate) use chat::chat_completions;
pub(crate) use comeback::Comeback;
pub(crate) use completions::completions;
pub(crate) use error::Error;
pub(crate) use models::{model, models};
pub(crate) use order::{Dialect, Order};
pub(crate) use parameters::Parameters;
pub(crate) use reply::{Reply, with_node};
