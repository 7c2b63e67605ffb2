//! `POST /v1/completions`: reads raw prompts.

use axum::{extract::State, http::HeaderMap, response::Response};
use banyan_proto::v1::{self, generation::Prompt};
use serde_json::{Value, json};

use super::{
    Dialect, Error, Order,
    comeback::Comeback,
    field::{Boolean, Documented, Field, Other, Refused, object_schema},
    fields::{Fields, expected, whole},
    parameters::{COMMON, GENERATING, Parameters, TOP_LOGPROBS_MAX},
    reply,
};
use crate::{body::Whole, routes::Context};

/// OpenAI's, and what its clients count on.
const MAX_TOKENS: u32 = 16;

/// What a request says beside what all say.
static OWN: &[&dyn Documented] = &[&PROMPT, &ECHO, &LOGPROBS, &BEST_OF, &SUFFIX];

static PROMPT: Field<Other> = Field {
    name: "prompt",
    holds: Other(prompts_schema),
    about: "A text to continue, or its token ids; or a list of texts and lists of token ids.",
};
static ECHO: Field<Boolean> = Field {
    name: "echo",
    holds: Boolean,
    about: "Begins the answer with its prompt; with logprobs, also theirs. False by default.",
};
static LOGPROBS: Field<Other> = Field {
    name: "logprobs",
    holds: Other(|| json!({ "anyOf": [{ "type": "integer", "minimum": 0, "maximum": TOP_LOGPROBS_MAX }, { "const": false }] })),
    about: "How many of the likeliest tokens to show at each position, beside the one that was chosen.",
};
static BEST_OF: Field<Refused> = Field {
    name: "best_of",
    holds: Refused { is_neutral: |value| *value == 1, neutral: || json!({ "const": 1 }) },
    about: "Not offered.",
};
static SUFFIX: Field<Refused> = Field {
    name: "suffix",
    holds: Refused { is_neutral: |value| value == "", neutral: || json!({ "const": "" }) },
    about: "Not offered.",
};

/// A request, as a JSON schema.
pub(crate) fn schema() -> Value {
    object_schema(&[COMMON, OWN, GENERATING], &["model", "prompt"])
}

/// Continues prompts.
pub(crate) async fn completions(State(context): State<Context>, headers: HeaderMap, whole: Whole) -> Result<Response, Error> {
    let order = read(&mut Fields::parse(&whole.bytes)?)?;
    let comeback = Comeback::read(&headers, "/v1/completions", &whole.arrival.caller.owner, &whole.bytes)?;
    reply::complete(&context, order, &comeback, whole.arrival).await
}

pub(crate) fn read(fields: &mut Fields) -> Result<Order, Error> {
    // Some clients send `false` where they mean nothing.
    let logprobs = match fields.other(&LOGPROBS) {
        None | Some(Value::Bool(false)) => None,
        Some(value) => {
            let number = whole(&value).filter(|number| (0..=TOP_LOGPROBS_MAX).contains(number));
            Some(number.ok_or_else(|| expected("logprobs", &format_args!("an integer from 0 to {TOP_LOGPROBS_MAX}"), &value))?)
        }
    };
    let mut parameters = Parameters::read(fields)?;
    let echo = fields.boolean(&ECHO)?.unwrap_or(false);
    if !echo {
        parameters.generates()?;
    }
    let generation = &mut parameters.generation;
    if generation.max_tokens == 0 && !generation.prompt_only {
        generation.max_tokens = MAX_TOKENS.max(generation.min_tokens);
    }
    parameters.sampling_mut().logprobs = logprobs.is_some();
    parameters.sampling_mut().top_logprobs = logprobs.unwrap_or(0) as u32;
    fields.refuse(&BEST_OF)?;
    fields.refuse(&SUFFIX)?;
    let prompts = prompts(&PROMPT, fields.other(&PROMPT))?;
    // A text we know ourselves, and can send before its answer begins; what tokens say and how likely they were, a node knows.
    if echo && (logprobs.is_some() || prompts.iter().any(|prompt| !matches!(prompt, Prompt::Text(_)))) {
        parameters.generation.tell = v1::Tell::Echo.into();
    }
    Order { dialect: Dialect::Completions, parameters, prompts, echo }.bounded()
}

/// A string, a list of strings, token ids, or a list of those.
pub(super) fn prompts(field: &Field<Other>, value: Option<Value>) -> Result<Vec<Prompt>, Error> {
    let name = field.name;
    let wrong = |value: &Value| expected(name, &"a string, a list of strings, token ids, or a list of those", value);
    match value {
        None => Err(Error::parameter(name, format!("'{name}' is missing: send a text"))),
        Some(Value::String(text)) => Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(items)) if items.is_empty() => Err(wrong(&Value::Array(items))),
        Some(Value::Array(items)) if items.iter().all(Value::is_number) => Ok(vec![tokens(name, &items)?]),
        Some(Value::Array(items)) => items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(ids) if !ids.is_empty() => tokens(name, &ids),
                other => Err(wrong(&other)),
            })
            .collect(),
        Some(other) => Err(wrong(&other)),
    }
}

pub(super) fn prompts_schema() -> Value {
    let ids = json!({ "type": "array", "minItems": 1, "items": { "type": "integer", "minimum": 0, "maximum": u32::MAX } });
    let one = json!({ "anyOf": [{ "type": "string" }, ids] });
    json!({ "anyOf": [{ "type": "string" }, ids, { "type": "array", "minItems": 1, "items": one }] })
}

fn tokens(name: &'static str, ids: &[Value]) -> Result<Prompt, Error> {
    let one = |id: &Value| {
        let number = whole(id).and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| expected(name, &"made of token ids, which are integers from 0", id))
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
            ("max_tokens", json!({ "prompt": "a", "max_tokens": 0 })),
            ("echo", json!({ "prompt": "a", "echo": 1 })),
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

    #[test]
    fn a_node_is_asked_for_an_echo_that_only_it_knows() {
        let asked = |body: Value| {
            let order = order(body).unwrap();
            (order.parameters.generation.tell(), order.parameters.generation.prompt_only, order.echoed(0).is_some())
        };
        assert_eq!(asked(json!({ "prompt": "a", "echo": true })), (v1::Tell::Nothing, false, true));
        assert_eq!(asked(json!({ "prompt": "a", "echo": true, "max_tokens": 0 })), (v1::Tell::Nothing, true, true));
        assert_eq!(asked(json!({ "prompt": "a", "echo": true, "logprobs": 0 })), (v1::Tell::Echo, false, false));
        assert_eq!(asked(json!({ "prompt": [[1], [2]], "echo": true })), (v1::Tell::Echo, false, false));
        assert_eq!(asked(json!({ "prompt": ["a", [2]], "echo": true })), (v1::Tell::Echo, false, false));
    }

    #[test]
    fn the_document_has_every_field_that_is_read_and_no_other() {
        let mut fields = Fields::parse(br#"{"model": "m", "prompt": "a"}"#).unwrap();
        read(&mut fields).unwrap();
        let documented = schema()["properties"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields.asked, documented);
    }

    proptest! {
        #[test]
        fn any_list_is_read_or_refused(json in r#"\[(("a"|1|-1|1e9|null|\[1,2\]|\[\]|\["a"\]),){0,4}("b"|2|\[3\])\]"#) {
            let _ = order(json!({ "prompt": serde_json::from_str::<Value>(&json).unwrap() }));
        }
    }
}
