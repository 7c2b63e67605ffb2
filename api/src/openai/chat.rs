//! `POST /v1/chat/completions`: reads conversations.

use axum::{extract::State, http::HeaderMap, response::Response};
use banyan_proto::v1::{self, generation::Prompt};
use serde_json::{Value, json};

use super::{
    Dialect, Error, Order,
    comeback::Comeback,
    field::{Boolean, Documented, Field, Integer, Other, Refused, object_schema},
    fields::{Fields, expected},
    parameters::{COMMON, GENERATING, Parameters, TOP_LOGPROBS_MAX},
    reply,
};
use crate::{body::Whole, routes::Context};

/// What a request says beside what all say.
static OWN: &[&dyn Documented] = &[
    &MESSAGES,
    &LOGPROBS,
    &TOP_LOGPROBS,
    &TOOLS,
    &FUNCTIONS,
    &TOOL_CHOICE,
    &FUNCTION_CALL,
    &RESPONSE_FORMAT,
    &MODALITIES,
    &AUDIO,
    &PREDICTION,
    &WEB_SEARCH_OPTIONS,
];

static MESSAGES: Field<Other> = Field { name: "messages", holds: Other(messages_schema), about: "The conversation so far." };
static LOGPROBS: Field<Boolean> =
    Field { name: "logprobs", holds: Boolean, about: "Whether to say how likely each token was. False by default." };
static TOP_LOGPROBS: Field<Integer> = Field {
    name: "top_logprobs",
    holds: Integer(0..=TOP_LOGPROBS_MAX),
    about: "How many of the likeliest tokens to show at each position; goes with \"logprobs\": true only.",
};

const NOT_OFFERED: &str = "Not offered.";

const NO_LIST: Refused = Refused {
    is_neutral: |value| value.as_array().is_some_and(Vec::is_empty),
    neutral: || json!({ "type": "array", "maxItems": 0 }),
};
const NO_CHOICE: Refused = Refused {
    is_neutral: |value| matches!(value.as_str(), Some("none" | "auto")),
    neutral: || json!({ "enum": ["none", "auto"] }),
};
const NOTHING: Refused = Refused { is_neutral: |_| false, neutral: || json!({ "type": "null" }) };

static TOOLS: Field<Refused> = Field { name: "tools", holds: NO_LIST, about: NOT_OFFERED };
static FUNCTIONS: Field<Refused> = Field { name: "functions", holds: NO_LIST, about: NOT_OFFERED };
static TOOL_CHOICE: Field<Refused> = Field { name: "tool_choice", holds: NO_CHOICE, about: NOT_OFFERED };
static FUNCTION_CALL: Field<Refused> = Field { name: "function_call", holds: NO_CHOICE, about: NOT_OFFERED };
static RESPONSE_FORMAT: Field<Refused> = Field {
    name: "response_format",
    holds: Refused {
        is_neutral: |value| value["type"] == "text",
        neutral: || json!({ "type": "object", "properties": { "type": { "const": "text" } }, "required": ["type"] }),
    },
    about: NOT_OFFERED,
};
static MODALITIES: Field<Refused> = Field {
    name: "modalities",
    holds: Refused { is_neutral: |value| *value == json!(["text"]), neutral: || json!({ "const": ["text"] }) },
    about: NOT_OFFERED,
};
static AUDIO: Field<Refused> = Field { name: "audio", holds: NOTHING, about: NOT_OFFERED };
static PREDICTION: Field<Refused> = Field { name: "prediction", holds: NOTHING, about: NOT_OFFERED };
static WEB_SEARCH_OPTIONS: Field<Refused> = Field { name: "web_search_options", holds: NOTHING, about: NOT_OFFERED };

/// How Open WebUI begins what it asks for itself: titles, tags, follow-up questions.
const ERRAND: &str = "### Task:\n";
/// Behind the questions of people, by ten seconds.
const ERRAND_PRIORITY: i32 = -10;

/// A request, as a JSON schema.
pub(crate) fn schema() -> Value {
    object_schema(&[COMMON, OWN, GENERATING], &["model", "messages"])
}

/// Answers a conversation.
pub(crate) async fn chat_completions(
    State(context): State<Context>,
    headers: HeaderMap,
    whole: Whole,
) -> Result<Response, Error> {
    let order = read(&mut Fields::parse(&whole.bytes)?)?;
    let comeback = Comeback::read(&headers, "/v1/chat/completions", &whole.arrival.caller.owner, &whole.bytes)?;
    reply::complete(&context, order, &comeback, whole.arrival).await
}

pub(crate) fn read(fields: &mut Fields) -> Result<Order, Error> {
    let mut parameters = Parameters::read(fields)?;
    parameters.generates()?;
    let logprobs = fields.boolean(&LOGPROBS)?.unwrap_or(false);
    let top = fields.integer(&TOP_LOGPROBS)?;
    if top.is_some_and(|top| top > 0) && !logprobs {
        return Err(Error::parameter("top_logprobs", "'top_logprobs' goes with \"logprobs\": true only"));
    }
    parameters.sampling_mut().logprobs = logprobs;
    parameters.sampling_mut().top_logprobs = top.unwrap_or(0) as u32;
    for field in [
        &TOOLS,
        &FUNCTIONS,
        &TOOL_CHOICE,
        &FUNCTION_CALL,
        &RESPONSE_FORMAT,
        &MODALITIES,
        &AUDIO,
        &PREDICTION,
        &WEB_SEARCH_OPTIONS,
    ] {
        fields.refuse(field)?;
    }
    let messages = messages(fields.other(&MESSAGES))?;
    if messages.last().is_some_and(|last| last.role == "user" && last.content.starts_with(ERRAND)) {
        parameters.priority.get_or_insert(ERRAND_PRIORITY);
    }
    let prompts = vec![Prompt::Chat(v1::Transcript { messages })];
    Order { dialect: Dialect::Chat, parameters, prompts, echo: false }.bounded()
}

fn messages(value: Option<Value>) -> Result<Vec<v1::Message>, Error> {
    match value {
        Some(Value::Array(messages)) if !messages.is_empty() => {
            messages.into_iter().enumerate().map(|(at, message)| one(at, message)).collect()
        }
        Some(other) => Err(expected("messages", &"a list of at least one message", &other)),
        None => Err(Error::parameter("messages", "'messages' is missing: send [{\"role\": \"user\", \"content\": \"…\"}]")),
    }
}

fn one(at: usize, message: Value) -> Result<v1::Message, Error> {
    let Value::Object(mut message) = message else {
        return Err(expected(&format!("messages[{at}]"), &"an object with role and content", &message));
    };
    let name = |field: &str| format!("messages[{at}].{field}");
    let role = match message.get("role").and_then(Value::as_str) {
        // What OpenAI calls the developer, templates call the system.
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        _ => {
            return Err(Error::parameter(
                name("role"),
                format!("'{}' must be system, developer, user or assistant", name("role")),
            ));
        }
    };
    if message.get("tool_calls").is_some_and(|calls| calls.as_array().is_none_or(|calls| !calls.is_empty()) && !calls.is_null()) {
        return Err(Error::parameter(name("tool_calls"), "tool calls are not offered here: leave them out"));
    }
    let content = match message.remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            parts.iter().enumerate().map(|(part, value)| part_text(at, part, value)).collect::<Result<_, _>>()?
        }
        other => return Err(expected(&name("content"), &"a string or a list of text parts", &other.unwrap_or(Value::Null))),
    };
    Ok(v1::Message { role: role.to_owned(), content })
}

fn messages_schema() -> Value {
    let part = json!({
        "type": "object", "properties": { "type": { "const": "text" }, "text": { "type": "string" } }, "required": ["type", "text"],
    });
    let message = json!({
        "type": "object",
        "properties": {
            "role": { "enum": ["system", "developer", "user", "assistant"] },
            "content": { "anyOf": [{ "type": "string" }, { "type": "array", "items": part }] },
            "tool_calls": { "anyOf": [{ "type": "array", "maxItems": 0 }, { "type": "null" }], "description": NOT_OFFERED },
        },
        "required": ["role", "content"],
    });
    json!({ "type": "array", "minItems": 1, "items": message })
}

fn part_text(at: usize, part: usize, value: &Value) -> Result<&str, Error> {
    match (value["type"].as_str(), value["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text),
        _ => {
            let name = format!("messages[{at}].content[{part}]");
            let message = format!("'{name}' must be {{\"type\": \"text\", \"text\": …}}: the models here read text only");
            Err(Error::parameter(name, message))
        }
    }
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

    fn message(role: &str, content: &str) -> v1::Message {
        v1::Message { role: role.into(), content: content.into() }
    }

    #[test]
    fn contents_are_strings_or_parts_and_developers_are_systems() {
        let order = order(json!({ "messages": [
            { "role": "developer", "content": "be brief" },
            { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }], "name": "me" },
            { "role": "assistant", "content": "c", "tool_calls": null },
        ]}))
        .unwrap();
        let messages = vec![message("system", "be brief"), message("user", "ab"), message("assistant", "c")];
        assert_eq!(order.prompts, [Prompt::Chat(v1::Transcript { messages })]);
    }

    #[test]
    fn what_a_program_asks_for_itself_waits_behind_people() {
        let errand = "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.";
        let priority = |content: &str, more: Value| {
            let mut body = json!({ "messages": [{ "role": "user", "content": content }] });
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            order(body).unwrap().parameters.priority
        };
        assert_eq!(priority(errand, json!({})), Some(ERRAND_PRIORITY));
        assert_eq!(priority(errand, json!({ "priority": 3 })), Some(3), "unless it says otherwise");
        assert_eq!(priority("What is a ### Task:\n?", json!({})), None);
    }

    #[test]
    fn the_document_has_every_field_that_is_read_and_no_other() {
        let mut fields = Fields::parse(br#"{"model": "m", "messages": [{"role": "user", "content": "a"}]}"#).unwrap();
        read(&mut fields).unwrap();
        let documented = schema()["properties"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields.asked, documented);
    }

    #[test]
    fn what_is_not_offered_is_refused_by_name() {
        let user = json!([{ "role": "user", "content": "a" }]);
        for (param, value) in [
            ("tools", json!([{ "type": "function" }])),
            ("tool_choice", json!("required")),
            ("functions", json!([{}])),
            ("response_format", json!({ "type": "json_object" })),
            ("modalities", json!(["audio"])),
            ("audio", json!({})),
            ("top_logprobs", json!(2)),
            ("top_logprobs", json!(21)),
            ("logprobs", json!(5)),
            ("max_tokens", json!(0)),
        ] {
            let error = order(json!({ "messages": user, param: value })).unwrap_err();
            assert!(error.contains(&format!("\"param\":\"{param}\"")), "{error}");
        }
        for (name, neutral) in [
            ("tools", json!([])),
            ("tools", json!(null)),
            ("tool_choice", json!("none")),
            ("response_format", json!({ "type": "text" })),
            ("modalities", json!(["text"])),
            ("metadata", json!({ "a": "b" })),
        ] {
            order(json!({ "messages": user, name: neutral })).unwrap();
        }
    }

    #[test]
    fn wrong_messages_are_refused_by_place() {
        for (param, messages) in [
            ("messages", json!(null)),
            ("messages", json!([])),
            ("messages", json!("hello")),
            ("messages[0]", json!(["hello"])),
            ("messages[1].role", json!([{ "role": "user", "content": "a" }, { "content": "a" }])),
            ("messages[0].role", json!([{ "role": "tool", "content": "a" }])),
            ("messages[0].content", json!([{ "role": "user" }])),
            ("messages[0].content", json!([{ "role": "user", "content": 3 }])),
            ("messages[0].content[0]", json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }])),
            ("messages[0].content[0]", json!([{ "role": "user", "content": ["a"] }])),
            ("messages[0].tool_calls", json!([{ "role": "assistant", "content": "", "tool_calls": [{}] }])),
        ] {
            let error = order(json!({ "messages": messages })).unwrap_err();
            assert!(error.contains(&format!("\"param\":\"{param}\"")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_arrives_unchanged(texts in proptest::collection::vec(".*", 1..5)) {
            let messages: Vec<Value> = texts.iter().map(|text| json!({ "role": "user", "content": text })).collect();
            let order = order(json!({ "messages": messages })).unwrap();
            let messages = texts.iter().map(|text| message("user", text)).collect();
            prop_assert_eq!(order.prompts, vec![Prompt::Chat(v1::Transcript { messages })]);
        }
    }
}
