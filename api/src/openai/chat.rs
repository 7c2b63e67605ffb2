//! `POST /v1/chat/completions`: reads conversations.

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

/// Answers a conversation.
pub(crate) async fn chat_completions(
    State(context): State<Context>,
    headers: HeaderMap,
    whole: Whole,
) -> Result<Response, Error> {
    let order = read(&mut Fields::parse(&whole.bytes)?)?;
    let comeback = Comeback::read(&headers, "/v1/chat/completions", EVERYBODY, &whole.bytes)?;
    reply::complete(&context, order, &comeback, whole.arrival).await
}

fn read(fields: &mut Fields) -> Result<Order, Error> {
    let mut parameters = Parameters::read(fields)?;
    let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=TOP_LOGPROBS_MAX)?;
    if top.is_some_and(|top| top > 0) && !logprobs {
        return Err(Error::parameter("top_logprobs", "'top_logprobs' goes with \"logprobs\": true only"));
    }
    parameters.sampling_mut().logprobs = logprobs;
    parameters.sampling_mut().top_logprobs = top.unwrap_or(0) as u32;
    for name in ["tools", "functions"] {
        fields.refuse(name, |value| value.as_array().is_some_and(Vec::is_empty))?;
    }
    for name in ["tool_choice", "function_call"] {
        fields.refuse(name, |value| matches!(value.as_str(), Some("none" | "auto")))?;
    }
    fields.refuse("response_format", |value| value["type"] == "text")?;
    fields.refuse("modalities", |value| *value == Value::from(vec!["text"]))?;
    for name in ["audio", "prediction", "web_search_options"] {
        fields.refuse(name, |_| false)?;
    }
    let messages = messages(fields.take("messages"))?;
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
