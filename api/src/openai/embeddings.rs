//! `POST /v1/embeddings`: the mean of a model's last hidden states (behind its final norm) over a text's tokens.
//!
//! Any model that generates gives them, and by the same passes. They are not scaled to unit length, and models that were not
//! trained for it place texts less well than those that were: docs/api.md says so to users.

use axum::{
    Json,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse as _, Response},
};
use banyan_proto::v1;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Error,
    comeback::Comeback,
    completions::{prompts, prompts_schema},
    field::{Documented, Field, Other, Refused, object_schema},
    fields::{Fields, expected},
    order,
    parameters::{COMMON, Parameters},
    reply,
    shapes::Origin,
};
use crate::{
    answer::{self, Event, Failure, Query},
    body::Whole,
    caller::Caller,
    routes::Context,
};

/// OpenAI's, and what its clients cut lists to.
const INPUTS_MAX: usize = 2048;

/// Of one request; the rest is asked as these are answered. About as many as the largest engine runs together.
const ASKED_AT_ONCE: usize = 64;

/// What a request says beside what all say.
static OWN: &[&dyn Documented] = &[&INPUT, &ENCODING_FORMAT, &DIMENSIONS];

static INPUT: Field<Other> = Field {
    name: "input",
    holds: Other(|| {
        let mut schema = prompts_schema();
        schema["anyOf"][2]["maxItems"] = INPUTS_MAX.into();
        schema
    }),
    about: "A text, or its token ids; or a list of texts and lists of token ids.",
};
static ENCODING_FORMAT: Field<Other> = Field {
    name: "encoding_format",
    holds: Other(|| json!({ "enum": ["float", "base64"] })),
    about: "How the numbers are written: as JSON, or as the base64 of 32-bit floats, little-endian. \"float\" by default.",
};
static DIMENSIONS: Field<Refused> = Field {
    name: "dimensions",
    holds: Refused { is_neutral: |_| false, neutral: || json!({ "type": "null" }) },
    about: "Not offered: as many as the model is wide.",
};

/// A request, as a JSON schema.
pub(crate) fn schema() -> Value {
    object_schema(&[COMMON, OWN], &["model", "input"])
}

/// What is answered.
#[derive(JsonSchema, Serialize)]
pub(crate) struct Embeddings<'a> {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: Usage,
    /// Where the first one comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    banyan: Option<Origin<'a>>,
}

/// Of one text.
#[derive(JsonSchema, Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Numbers,
}

#[derive(JsonSchema, Serialize)]
#[serde(untagged)]
enum Numbers {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(JsonSchema, Serialize)]
struct Usage {
    prompt_tokens: u32,
    total_tokens: u32,
}

/// A request, understood.
pub(crate) struct Wanted {
    parameters: Parameters,
    inputs: Vec<v1::generation::Prompt>,
    base64: bool,
}

/// Says where texts lie.
pub(crate) async fn embeddings(State(context): State<Context>, headers: HeaderMap, whole: Whole) -> Result<Response, Error> {
    let Wanted { parameters, inputs, base64 } = read(&mut Fields::parse(&whole.bytes)?)?;
    let comeback = Comeback::read(&headers, "/v1/embeddings", &whole.arrival.caller.owner, &whole.bytes)?;
    let queries = order::queries(&parameters, &inputs, &context, &comeback, &whole.arrival);
    let first = queries[0].id;
    let tokens = queries.iter().map(|query| u64::from(query.tokens_max)).sum();
    let mut tally = context.admit(&whole.arrival.caller, &parameters.model, tokens).await?;
    tally.choices(first, queries.len(), 1, inputs.iter().map(order::bytes).sum());
    tally.asks(&inputs);
    let caller = &whole.arrival.caller;
    let queries = queries.into_iter().map(|query| Query { place: tally.place(), ..query });
    let asked = stream::iter(queries).map(|query| ask(context.clone(), caller, query)).buffered(ASKED_AT_ONCE).try_collect();
    let answers: Vec<Answered> = tokio::select! {
        biased;
        answers = asked => answers,
        () = context.ending.cancelled() => Err(Failure::Closing),
    }
    .map_err(|failure| {
        let error = reply::error(&context, &whole.arrival, &parameters.model, INPUT.name, failure);
        tally.failed(&error);
        error
    })?;
    for (index, answer) in answers.iter().enumerate() {
        tally.ended(index, answer.tokens, answer.placed.as_ref());
    }
    let prompt_tokens = answers.iter().fold(0, |sum: u32, answer| sum.saturating_add(answer.tokens));
    let placed = answers[0].placed.clone();
    let one = |(index, answer): (usize, Answered)| Embedding {
        object: "embedding",
        index,
        embedding: if base64 { Numbers::Base64(encoded(&answer.numbers)) } else { Numbers::Floats(answer.numbers) },
    };
    let body = Embeddings {
        object: "list",
        data: answers.into_iter().enumerate().map(one).collect(),
        model: &parameters.model,
        usage: Usage { prompt_tokens, total_tokens: prompt_tokens },
        banyan: placed.as_ref().map(|placed| Origin::new(first, placed)),
    };
    Ok(reply::with_node(Json(body).into_response(), placed.as_ref().and_then(reply::node)))
}

pub(crate) fn read(fields: &mut Fields) -> Result<Wanted, Error> {
    let mut parameters = Parameters::common(fields)?;
    parameters.generation.prompt_only = true;
    parameters.generation.tell = v1::Tell::Embedding.into();
    let base64 = match fields.other(&ENCODING_FORMAT) {
        None => false,
        Some(Value::String(format)) if format == "float" => false,
        Some(Value::String(format)) if format == "base64" => true,
        Some(other) => return Err(expected(ENCODING_FORMAT.name, &"\"float\" or \"base64\"", &other)),
    };
    fields.refuse(&DIMENSIONS)?;
    let inputs = prompts(&INPUT, fields.other(&INPUT))?;
    if inputs.len() > INPUTS_MAX {
        let message = format!("'input' must be a list of at most {INPUTS_MAX}, not of {}: send several requests", inputs.len());
        return Err(Error::parameter(INPUT.name, message));
    }
    Ok(Wanted { parameters, inputs, base64 })
}

/// What came of one text.
struct Answered {
    numbers: Vec<f32>,
    tokens: u32,
    placed: Option<v1::Placed>,
}

async fn ask(context: Context, caller: &Caller, query: Query) -> Result<Answered, Failure> {
    let mut events = std::pin::pin!(answer::ask(context.roots.clone(), query, context.ending.clone()));
    let mut placed = None;
    while let Some(event) = events.next().await {
        match event? {
            Event::Placed(now) => {
                if now.running {
                    caller.runs();
                }
                placed = Some(now);
            }
            Event::Tokens(..) => {}
            Event::End(finish) => {
                let numbers = finish.told.unwrap_or_default().embedding;
                // An older node does not know the question, and generates.
                let complete = !numbers.is_empty() && numbers.iter().all(|number| number.is_finite());
                let tokens = finish.prompt_tokens;
                return complete.then_some(Answered { numbers, tokens, placed }).ok_or(Failure::Garbled("no embedding"));
            }
        }
    }
    Err(Failure::Lost)
}

/// Little-endian floats as base64, as OpenAI's clients take them.
fn encoded(numbers: &[f32]) -> String {
    STANDARD.encode(numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use banyan_proto::v1::generation::Prompt;
    use serde_json::json;

    use super::*;

    fn wanted(mut body: Value) -> Result<Wanted, String> {
        body["model"] = json!("m");
        read(&mut Fields::parse(body.to_string().as_bytes()).unwrap())
            .map_err(|error| serde_json::to_string(&error.shape()).unwrap())
    }

    #[test]
    fn inputs_come_in_four_forms_and_nothing_is_generated() {
        let text = |text: &str| Prompt::Text(text.into());
        let ids = |ids: &[u32]| Prompt::Tokens(v1::TokenIds { ids: ids.to_vec() });
        for (input, inputs) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![ids(&[1, 2])]),
            (json!([[1], [2, 3]]), vec![ids(&[1]), ids(&[2, 3])]),
        ] {
            let wanted = wanted(json!({ "input": input, "encoding_format": "float" })).ok().unwrap();
            assert_eq!(wanted.inputs, inputs);
            let generation = &wanted.parameters.generation;
            assert!(generation.prompt_only && generation.tell() == v1::Tell::Embedding && !wanted.base64);
        }
    }

    #[test]
    fn wrong_ones_are_refused_by_name() {
        for (param, body) in [
            ("input", json!({})),
            ("input", json!({ "input": [] })),
            ("input", json!({ "input": [["a"]] })),
            ("input", json!({ "input": vec!["a"; 2049] })),
            ("encoding_format", json!({ "input": "a", "encoding_format": "int8" })),
            ("dimensions", json!({ "input": "a", "dimensions": 64 })),
            ("priority", json!({ "input": "a", "priority": 1000 })),
        ] {
            let error = wanted(body).err().unwrap();
            assert!(error.contains(&format!("\"param\":\"{param}\"")), "{error}");
        }
    }

    #[test]
    fn the_document_has_every_field_that_is_read_and_no_other() {
        let mut fields = Fields::parse(br#"{"model": "m", "input": "a"}"#).unwrap();
        read(&mut fields).ok().unwrap();
        let documented = schema()["properties"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields.asked, documented);
    }

    #[test]
    fn base64_holds_little_endian_floats() {
        assert_eq!(encoded(&[1.0, -2.5]), "AACAPwAAIMA=");
    }
}
