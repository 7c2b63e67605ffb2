//! `POST /v1/completions`: reads raw prompts.

use axum::{extract::State, http::HeaderMap, response::Response};
use banyan_proto::v1::{self, generation::Prompt};
use serde_json::Value;

use super::{
    Dialect, Error, Order,
    comeback::Comeback,
    fields::{Fields, expected},
    order::EVERYBODY,
    parameters::{Parameters, TOP_LOGPROBS_MAX},
    reply,
};
use crate::{body::Whole, routes::Context};

/// OpenAI's, and what its clients count on.
const MAX_TOKENS: u32 = 16;

/// Continues prompts.
pub(crate) async fn completions(State(context): State<Context>, headers: HeaderMap, whole: Whole) -> Result<Response, Error> {
    let order = read(&mut Fields::parse(&whole.bytes)?)?;
    let comeback = Comeback::read(&headers, "/v1/completions", EVERYBODY, &whole.bytes)?;
    reply::complete(&context, order, &comeback, whole.arrival).await
}

fn read(fields: &mut Fields) -> Result<Order, Error> {
    // Some clients send `false` where they mean nothing.
    let logprobs = match fields.take("logprobs") {
        None | Some(Value::Bool(false)) => None,
        Some(value) => {
            let number = super::fields::whole(&value).filter(|number| (0..=TOP_LOGPROBS_MAX).contains(number));
            Some(number.ok_or_else(|| expected("logprobs", &format_args!("an integer from 0 to {TOP_LOGPROBS_MAX}"), &value))?)
        }
    };
    let mut parameters = Parameters::read(fields)?;
    if parameters.generation.max_tokens == 0 {
        parameters.generation.max_tokens = MAX_TOKENS.max(parameters.generation.min_tokens);
    }
    parameters.sampling_mut().logprobs = logprobs.is_some();
    parameters.sampling_mut().top_logprobs = logprobs.unwrap_or(0) as u32;
    fields.refuse("best_of", |value| *value == 1)?;
    fields.refuse("suffix", |value| value == "")?;
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let prompts = prompts(fields.take("prompt"))?;
    if echo && logprobs.is_some() {
        return Err(Error::parameter("echo", "'echo' does not go with 'logprobs' here: the prompt's are not computed"));
    }
    if echo && prompts.iter().any(|prompt| !matches!(prompt, Prompt::Text(_))) {
        return Err(Error::parameter("echo", "'echo' goes with prompts of text only, not with token ids"));
    }
    Order { dialect: Dialect::Completions, parameters, prompts, echo }.bounded()
}

/// A string, a list of strings, token ids, or a list of those.
fn prompts(value: Option<Value>) -> Result<Vec<Prompt>, Error> {
    let wrong = |value: &Value| expected("prompt", &"a string, a list of strings, token ids, or a list of those", value);
    match value {
        None => Err(Error::parameter("prompt", "'prompt' is missing: send the text to continue")),
        Some(Value::String(text)) => Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(items)) if items.is_empty() => Err(wrong(&Value::Array(items))),
        Some(Value::Array(items)) if items.iter().all(Value::is_number) => Ok(vec![tokens(&items)?]),
        Some(Value::Array(items)) => items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(ids) if !ids.is_empty() => tokens(&ids),
                other => Err(wrong(&other)),
            })
            .collect(),
        Some(other) => Err(wrong(&other)),
    }
}

fn tokens(ids: &[Value]) -> Result<Prompt, Error> {
    let one = |id: &Value| {
        let number = id.as_u64().and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| expected("prompt", &"made of token ids, which are integers from 0", id))
    };
    Ok(Prompt::Tokens(v1::TokenIds { ids: ids.iter().map(one).collect::<Result<_, _>>()? }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn order(mut body: Value) -> Result<Order, String> {
        body["model"] = json!("m");
        read(&mut Fields::parse(body.to_string().as_bytes()).unwrap())
            .map_err(|error| serde_json::to_string(&error.shape()).unwrap())
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let text = |text: &str| Prompt::Text(text.into());
        let ids = |ids: &[u32]| Prompt::Tokens(v1::TokenIds { ids: ids.to_vec() });
        for (value, prompts) in [
            (json!("a"), vec![text("a")]),
            (json!(""), vec![text("")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![ids(&[1, 2])]),
            (json!([[1], [2, 3]]), vec![ids(&[1]), ids(&[2, 3])]),
        ] {
            assert_eq!(order(json!({ "prompt": value })).unwrap().prompts, prompts);
        }
    }

    #[test]
    fn wrong_ones_are_refused_by_name() {
        for (param, body) in [
            ("prompt", json!({})),
            ("prompt", json!({ "prompt": [] })),
            ("prompt", json!({ "prompt": [[]] })),
            ("prompt", json!({ "prompt": {} })),
            ("prompt", json!({ "prompt": [1, -2] })),
            ("prompt", json!({ "prompt": [1.5] })),
            ("prompt", json!({ "prompt": [4294967296u64] })),
            ("prompt", json!({ "prompt": ["a", 1] })),
            ("prompt", json!({ "prompt": vec!["a"; 65] })),
            ("prompt", json!({ "prompt": vec!["a"; 9], "n": 8 })),
            ("best_of", json!({ "prompt": "a", "best_of": 2 })),
            ("suffix", json!({ "prompt": "a", "suffix": "b" })),
            ("logprobs", json!({ "prompt": "a", "logprobs": 21 })),
            ("logprobs", json!({ "prompt": "a", "logprobs": true })),
            ("echo", json!({ "prompt": [1], "echo": true })),
            ("echo", json!({ "prompt": "a", "echo": true, "logprobs": 1 })),
        ] {
            let error = order(body).unwrap_err();
            assert!(error.contains(&format!("\"param\":\"{param}\"")), "{error}");
        }
    }

    #[test]
    fn sixteen_tokens_are_asked_for_by_default() {
        assert_eq!(order(json!({ "prompt": "a" })).unwrap().parameters.generation.max_tokens, 16);
        assert_eq!(order(json!({ "prompt": "a", "max_tokens": 5 })).unwrap().parameters.generation.max_tokens, 5);
        assert!(!order(json!({ "prompt": "a", "best_of": 1, "suffix": null, "logprobs": false })).unwrap().echo);
    }

    proptest! {
        #[test]
        fn any_list_is_read_or_refused(json in r#"\[(("a"|1|-1|1e9|null|\[1,2\]|\[\]|\["a"\]),){0,4}("b"|2|\[3\])\]"#) {
            let _ = order(json!({ "prompt": serde_json::from_str::<Value>(&json).unwrap() }));
        }
    }
}
