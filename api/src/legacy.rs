//! `POST /arranca/`: what the page of the article that Banyan goes back to speaks. It posts `{"text", "timestamp"}` and reads
//! back the same object with the prompt and its continuation as `text`, and a `request_id` that counts arrivals.

use std::sync::atomic::Ordering;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use banyan_proto::v1::generation::Prompt;
use serde_json::{Map, Value};

use crate::{
    body::Whole,
    openai::{Comeback, Dialect, Error, Order, Parameters, Reply, with_node},
    routes::Context,
};

/// The article's.
const MAX_TOKENS: u32 = 50;

/// Continues a text with the first model there is.
pub(crate) async fn arranca(State(context): State<Context>, whole: Whole) -> Result<Response, Error> {
    let mut request: Map<String, Value> = serde_json::from_slice(&whole.bytes)
        .map_err(|error| Error::invalid(format!("the body is not a JSON object with 'text' and 'timestamp': {error}")))?;
    let Some(Value::String(text)) = request.remove("text") else {
        return Err(Error::parameter("text", "'text' must be a string: the text to continue"));
    };
    let number = context.legacy_count.fetch_add(1, Ordering::Relaxed) + 1;
    let model = context.roots.first(whole.arrival.caller.key.as_deref());
    let mut parameters = Parameters::of(model);
    parameters.generation.max_tokens = MAX_TOKENS;
    let order = Order { dialect: Dialect::Completions, parameters, prompts: vec![Prompt::Text(text)], echo: true };
    let mut reply = Reply::start(&context, order, &Comeback::default(), whole.arrival).await?;
    reply.gather().await?;
    request.insert("text".to_owned(), std::mem::take(&mut reply.choices[0].text).into());
    request.insert("request_id".to_owned(), number.into());
    Ok(with_node(Json(request).into_response(), reply.node()))
}
