//! How upstreams speak: a query as the call that asks it, and a stream's events as news of its answer.

mod anthropic;
mod openai;

use banyan_engine::{FinishReason, Request, Tell, TokenLogprob};
use serde_json::{Number, Value};

use crate::{
    config::{Dialect, Upstream},
    sse::Event,
};

/// A query as an upstream is asked it.
#[derive(Debug, PartialEq)]
pub(crate) struct Ask {
    /// Behind the upstream's address.
    pub(crate) path: &'static str,
    pub(crate) body: Value,
}

/// An upstream does not offer what a query asks for.
#[derive(Debug, PartialEq)]
pub(crate) struct NotOffered {
    pub(crate) param: &'static str,
    pub(crate) message: String,
}

/// What an event says.
#[derive(Debug, PartialEq)]
pub(crate) enum News {
    /// More text.
    Piece { text: String, logprobs: Vec<TokenLogprob> },
    /// Token counts; those that it does not say are `None`.
    Usage { prompt: Option<u32>, completion: Option<u32>, cached: Option<u32> },
    /// Why the answer ended.
    Reason(FinishReason),
    /// Nothing follows.
    End,
    /// There will be no (further) answer.
    Failed(String),
}

/// What an upstream is asked, if it offers that.
pub(crate) fn ask(upstream: &Upstream, model: &str, request: &Request) -> Result<Ask, NotOffered> {
    let told = match request.tell {
        Tell::Nothing => None,
        Tell::Echo => Some(("echo", "tell of a prompt's tokens")),
        Tell::Embedding => Some(("input", "make embeddings")),
    };
    if let Some((param, what)) = told {
        let message = format!("the provider {} is not asked to {what}: name a model of the tree's own nodes", upstream.name);
        return Err(NotOffered { param, message });
    }
    match upstream.dialect {
        Dialect::OpenAi => openai::ask(upstream, model, request),
        Dialect::Anthropic => anthropic::ask(upstream, model, request),
    }
}

/// The headers that carry a key, and those that the dialect wants beside.
pub(crate) fn headers(dialect: Dialect, secret: &str) -> Vec<(&'static str, String)> {
    match dialect {
        Dialect::OpenAi if secret.is_empty() => Vec::new(),
        Dialect::OpenAi => vec![("authorization", format!("Bearer {secret}"))],
        Dialect::Anthropic => {
            let key = (!secret.is_empty()).then(|| ("x-api-key", secret.to_owned()));
            key.into_iter().chain([("anthropic-version", anthropic::VERSION.to_owned())]).collect()
        }
    }
}

/// What an event of the stream says, in order.
pub(crate) fn read(dialect: Dialect, event: &Event) -> Vec<News> {
    match dialect {
        Dialect::OpenAi => openai::read(event),
        Dialect::Anthropic => anthropic::read(event),
    }
}

/// What a refusal's body says, for the client: both dialects put it in the same place.
pub(crate) fn error_message(body: &[u8]) -> Option<String> {
    /// Enough to say what is wrong.
    const CHARACTERS_MAX: usize = 500;
    let body: Value = serde_json::from_slice(body).ok()?;
    let error = body.get("error")?;
    let message = error.get("message").and_then(Value::as_str).or(error.as_str())?;
    Some(message.chars().take(CHARACTERS_MAX).collect())
}

/// A parameter as a person would write it: 0.7, not its f32's 0.699999988.
fn decimal(number: f32) -> Value {
    number.to_string().parse().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

fn count(value: &Value) -> Option<u32> {
    value.as_u64().map(|count| u32::try_from(count).unwrap_or(u32::MAX))
}

fn not_offered(upstream: &Upstream, param: &'static str) -> NotOffered {
    NotOffered { param, message: format!("the provider {} does not offer '{param}': leave it out", upstream.name) }
}
