//! `GET /openapi.json`: what there is to ask, and what is answered, as OpenAPI 3.1 has it.
//!
//! Requests are described by the fields that the handlers read them by, answers by the types that they write. Which paths there
//! are stands in `routes.rs` as well; a test compares the two.

mod kept;
mod tree;

use std::sync::OnceLock;

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Value, json};

use crate::openai;

/// Serves the document.
pub(crate) async fn openapi() -> Response {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    let text = DOCUMENT.get_or_init(|| document().to_string()).as_str();
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}

/// The whole of it.
pub(crate) fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Banyan",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Language models served by a tree of nodes, in OpenAI's dialect. What is ours says so; fields that nobody \
                            knows are ignored, and null is as good as absent.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths(),
        "components": { "schemas": schemas(), "responses": failures() },
    })
}

/// What a key is needed for may fail for the lack of it.
fn paths() -> Value {
    let mut paths = own_paths();
    merge(&mut paths, kept::paths());
    merge(&mut paths, tree::paths());
    for (path, operations) in paths.as_object_mut().into_iter().flatten() {
        if path.starts_with("/v1/") || path.starts_with("/arranca") {
            for (_, operation) in operations.as_object_mut().into_iter().flatten() {
                operation["responses"]["401"] = json!({ "$ref": "#/components/responses/401" });
            }
        }
    }
    paths
}

fn own_paths() -> Value {
    let cancel = json!({ "delete": {
        "summary": "Ends a stream that was asked for as resumable",
        "parameters": [path("id", "The answer's, as its events have it.")],
        "responses": responses(json!({ "204": described("It has ended, or never was.") }), &["400", "403", "404"]),
    }});
    let mut key = header_in("Idempotency-Key", "As the request had it.");
    key["required"] = json!(true);
    let keyed = json!({
        "summary": "Ends the answer that a request with this Idempotency-Key asked for: before its first event has told its id",
        "parameters": [key],
        "responses": responses(json!({ "204": described("It has ended, or never was.") }), &["400", "403"]),
    });
    let model = ("200", "A model.", "Model");
    json!({
        "/v1/chat/completions": { "post": generates("Answers a conversation", "Chat", "ChatEvent"), "delete": keyed },
        "/v1/completions": { "post": generates("Continues texts", "Completion", "Completion"), "delete": keyed },
        "/v1/embeddings": { "post": asks("Says where texts lie", "Embeddings", json!({}), &[]) },
        "/v1/chat/completions/{id}": cancel,
        "/v1/completions/{id}": cancel,
        "/v1/models": { "get": reads("What the tree serves", ("200", "All models.", "Models"), &[], &["403"]) },
        "/v1/models/{id}": { "get": reads("One model", model, &[path("id", "Its name; slashes may stand as they are.")], &["400", "403", "404"]) },
        "/livez": { "get": reads("Whether the process serves", ("200", "It does.", "Health"), &[], &["403"]) },
        "/readyz": { "get": readiness() },
        "/metrics": { "get": measured() },
        "/openapi.json": { "get": reads("This document", ("200", "It.", "Document"), &[], &["403"]) },
        "/arranca/": { "post": legacy() },
    })
}

fn measured() -> Value {
    let text = json!({ "schema": { "type": "string" } });
    let measured = json!({
        "description": "All of this process's, as OpenMetrics.",
        "content": { "application/openmetrics-text; version=1.0.0; charset=utf-8": text },
    });
    json!({
        "summary": "Metrics for Prometheus, where nobody but this machine asks; elsewhere `--metrics` gives them a port of their own",
        "responses": responses(json!({ "200": measured }), &["403", "404"]),
    })
}

/// What all that read a body may fail with.
const FAILURES: [&str; 11] = ["400", "403", "404", "408", "409", "413", "429", "500", "503", "504", "405"];

/// An operation that generates, whole or as a stream.
fn generates(summary: &str, answer: &str, event: &str) -> Value {
    let last = header_in(
        "Last-Event-ID",
        "The id of the last event that was seen of a stream: it goes on behind that. The body has to be the same.",
    );
    let json = json!({ "anyOf": [reference(event), reference("Error")] });
    let data = json!({ "type": "string", "contentMediaType": "application/json", "contentSchema": json });
    let about = "With \"stream\": true, events. The last has [DONE] for its data; where one has an `error` instead, the answer is \
                 incomplete. Comments are signs of life.";
    let one = json!({
        "description": about,
        "type": "object",
        "properties": {
            "id": { "type": "string", "description": "For Last-Event-ID. [DONE] and errors have none of their own." },
            "data": { "anyOf": [{ "const": "[DONE]" }, data] },
        },
        "required": ["data"],
    });
    // Each event's, as tools read it that know of events; OpenAPI 3.1 has no word for that.
    let stream = json!({ "text/event-stream": { "schema": one } });
    asks(summary, answer, stream, &[last])
}

/// An operation whose body is a query.
fn asks(summary: &str, answer: &str, further: Value, headers: &[Value]) -> Value {
    let mut content = json!({ "application/json": { "schema": reference(answer) } });
    merge(&mut content, further);
    let mut key = header_in(
        "Idempotency-Key",
        "The same key with the same body gets the same answer, which is not generated again; with another body it is refused.",
    );
    key["schema"] = json!({ "type": "string", "pattern": "^[ -~]{1,255}$" });
    let mut parameters = vec![key];
    parameters.extend_from_slice(headers);
    json!({
        "summary": summary,
        "parameters": parameters,
        "requestBody": {
            "required": true,
            "content": { "application/json": { "schema": reference(&format!("{answer}Request")) } },
        },
        "responses": responses(
            json!({ "200": { "description": "The answer.", "content": content, "headers": common_headers() } }),
            &FAILURES,
        ),
    })
}

/// An operation without a body.
fn reads(summary: &str, (status, about, schema): (&str, &str, &str), parameters: &[Value], failures: &[&str]) -> Value {
    let success = json!({ status: with_json(about, schema) });
    json!({ "summary": summary, "parameters": parameters, "responses": responses(success, failures) })
}

fn readiness() -> Value {
    let mut operation = reads("Whether a query would be answered", ("200", "It would.", "Health"), &[], &["403"]);
    operation["responses"]["503"] = with_json("Not now.", "Health");
    operation
}

fn legacy() -> Value {
    let mut operation = asks("What the page of the source article posts", "Legacy", json!({}), &[]);
    operation["parameters"] = json!([]);
    operation
}

fn responses(mut success: Value, failures: &[&str]) -> Value {
    for status in failures {
        success[*status] = json!({ "$ref": format!("#/components/responses/{status}") });
    }
    success
}

/// Every status of a failure, with the one shape.
fn failures() -> Value {
    let texts = [
        ("400", "The request is wrong: `param` names where, and `message` says what would be right."),
        ("401", "There are keys, and none of them was sent."),
        ("403", "The host or origin is not served, or it takes an operator's key."),
        ("404", "There is no such model, answer or path."),
        ("405", "Another method is the right one."),
        ("408", "The body did not arrive in time."),
        ("409", "The Idempotency-Key belongs to another request."),
        ("413", "The body is too large."),
        ("429", "There is no room: ask again after `retry-after` seconds."),
        ("500", "The tree failed."),
        ("501", "This API keeps nothing."),
        ("503", "There is no root or no node for it now: ask again."),
        ("504", "The deadline passed."),
        ("507", "Nothing can be kept: the disk is full."),
    ];
    let one = |(status, about): (&str, &str)| {
        let mut response = with_json(about, "Error");
        if matches!(status, "429" | "503") {
            let seconds = json!({ "schema": { "type": "integer", "maximum": 60 }, "description": "When to ask again." });
            response["headers"]["retry-after"] = seconds;
        }
        (status.to_owned(), response)
    };
    Value::Object(texts.into_iter().map(one).collect())
}

fn with_json(about: &str, schema: &str) -> Value {
    json!({
        "description": about, "content": { "application/json": { "schema": reference(schema) } }, "headers": common_headers(),
    })
}

fn described(about: &str) -> Value {
    json!({ "description": about, "headers": common_headers() })
}

fn common_headers() -> Value {
    let id = json!({ "schema": { "type": "string" }, "description": "The request's name, as the client gave it or as we did." });
    json!({ "x-request-id": id })
}

fn path(name: &str, about: &str) -> Value {
    json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 }, "description": about })
}

fn header_in(name: &str, about: &str) -> Value {
    json!({ "name": name, "in": "header", "schema": { "type": "string" }, "description": about })
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}

fn schemas() -> Value {
    let mut schemas = own_schemas();
    merge(&mut schemas, kept::schemas());
    merge(&mut schemas, tree::schemas());
    schemas
}

fn own_schemas() -> Value {
    json!({
        "ChatRequest": openai::chat::schema(),
        "CompletionRequest": openai::completions::schema(),
        "EmbeddingsRequest": openai::embeddings::schema(),
        "Chat": written::<openai::shapes::WholeChat>(),
        "ChatEvent": written::<openai::shapes::ChatEvent>(),
        "Completion": written::<openai::shapes::AnyCompletion>(),
        "Embeddings": written::<openai::embeddings::Embeddings<'_>>(),
        "Models": written::<openai::models::List>(),
        "Model": written::<openai::models::Model>(),
        "Error": written::<openai::error::Shape<'_>>(),
        "Health": {
            "type": "object", "properties": { "status": { "type": "string" }, "why": { "type": "string" } }, "required": ["status"],
        },
        "Document": { "type": "object" },
        "LegacyRequest": { "type": "object", "properties": { "text": { "type": "string" } }, "required": ["text"] },
        "Legacy": {
            "type": "object",
            "properties": { "text": { "type": "string" }, "request_id": { "type": "integer" } },
            "required": ["text", "request_id"],
        },
    })
}

/// The schema of what a type is written as.
fn written<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    // A type's name is nobody's affair outside.
    schema.remove("title");
    schema.to_value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let mut unseen = vec![&document];
        let mut seen = 0;
        while let Some(value) = unseen.pop() {
            if let Some(reference) = value["$ref"].as_str() {
                assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
                seen += 1;
            }
            match value {
                Value::Object(fields) => unseen.extend(fields.values()),
                Value::Array(items) => unseen.extend(items),
                _ => {}
            }
        }
        assert!(seen > 20, "{seen}");
    }

    #[test]
    fn what_is_written_is_described_by_its_keys() {
        let chat = written::<openai::shapes::WholeChat>();
        let required: Vec<&str> = chat["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert_eq!(required, ["id", "object", "created", "model", "system_fingerprint", "choices"]);
        assert!(chat["properties"]["choices"]["items"]["properties"]["message"].is_object(), "{chat}");
    }
}
