//! What of the document is about things that are kept: files, batches, conversations, usage, and the chat over a WebSocket.

use serde_json::{Value, json};

use super::{described, path, reads, responses, with_json, written};
use crate::{
    batches, conversations,
    files::{self, Listed},
    session, usage,
};

/// Of whatever needs the store.
const FAILURES: [&str; 9] = ["400", "403", "404", "408", "409", "500", "501", "503", "507"];

pub(super) fn paths() -> Value {
    let id = |about: &str| path("id", about);
    let get = |summary: &str, schema: &str, parameters: &[Value]| reads(summary, ("200", "It.", schema), parameters, &FAILURES);
    let page = [count("limit", 1, files::LIMIT_MAX), query("after", "Those behind the one of that id.", "string")];
    let files = [&page[..], &[query("purpose", "Only those of this purpose: batch or batch_output.", "string")]].concat();
    let (file, batch, conversation) = (id("The file's."), id("The batch's."), id("The conversation's."));
    let mut conversations = get("All conversations", "List", &page);
    conversations["responses"]["304"] = described("Nothing has changed since the tag that `If-None-Match` names.");
    let upload = json!({ "multipart/form-data": { "schema": {
        "type": "object",
        "properties": { "purpose": { "const": "batch" }, "file": { "type": "string", "format": "binary" } },
        "required": ["purpose", "file"],
    }}});
    let mut content = get("What is in a file", "Kept", std::slice::from_ref(&file));
    content["responses"]["200"]["content"] = json!({ "application/octet-stream": { "schema": { "type": "string" } } });
    let mut usage = get(
        "What was used, by day, model and node",
        "Usage",
        &[
            query("from", "The first day, such as 2026-11-20.", "string"),
            query("to", "The last.", "string"),
            query("format", "json or csv.", "string"),
            query("everyone", "Everybody's, for an operator.", "boolean"),
        ],
    );
    usage["responses"]["200"]["content"]["text/csv"] = json!({ "schema": { "type": "string" } });
    let mut socket = get(
        "A conversation over a WebSocket: docs/chat.md",
        "Kept",
        &[query("client_id", "The client's name for its conversation; `clientId` will do too.", "string")],
    );
    socket["responses"]["101"] = json!({ "description": "It is one now." });
    socket["responses"]["426"] = with_json("It was not asked as a WebSocket.", "Error");
    let written = |summary: &str, schema: Value, answer: &str, parameters: &[Value]| {
        let content = json!({ "application/json": { "schema": schema } });
        body(summary, content, answer, parameters)
    };
    let ended = |summary: &str, about: &str| json!({ "summary": summary, "responses": responses(json!({ "204": described(about) }), &["400", "403"]) });
    let mut sign_in = written("Turns a key into a cookie that pages can't read", session::schema(), "Kept", &[]);
    sign_in["responses"]["204"] = described("The cookie is set.");
    sign_in["responses"].as_object_mut().expect("they are an object").remove("200");
    json!({
        "/v1/files": { "get": get("All files", "Files", &files), "post": body("Takes a file for a batch", upload, "File", &[]) },
        "/v1/files/{id}": {
            "get": get("One file", "File", std::slice::from_ref(&file)),
            "delete": get("Deletes a file", "Deleted", std::slice::from_ref(&file)),
        },
        "/v1/files/{id}/content": { "get": content },
        "/v1/batches": {
            "get": get("All batches", "Batches", &page),
            "post": written("Takes a batch on", batches::schema(), "Batch", &[]),
        },
        "/v1/batches/{id}": { "get": get("One batch", "Batch", std::slice::from_ref(&batch)) },
        "/v1/batches/{id}/cancel": { "post": get("Wants no more of a batch", "Batch", &[batch]) },
        "/v1/conversations": {
            "get": conversations,
            "post": written("Begins a conversation", conversations::title_schema(), "Kept", &[]),
        },
        "/v1/conversations/search": { "get": get(
            "Messages that have all of some words", "List",
            &[query("q", "The words, or how they begin.", "string"), count("limit", 1, conversations::FOUND_MAX)],
        )},
        "/v1/conversations/{id}": {
            "get": get(
                "One conversation, with its last messages", "Kept",
                &[conversation.clone(), count("last", 0, conversations::READ_MAX)],
            ),
            "put": written(
                "Changes a conversation, or begins it under its client's name", conversations::changes_schema(), "Kept",
                std::slice::from_ref(&conversation),
            ),
            "patch": written(
                "Gives a conversation another title", conversations::title_schema(), "Kept", std::slice::from_ref(&conversation),
            ),
            "delete": get("Deletes a conversation", "Kept", std::slice::from_ref(&conversation)),
        },
        "/v1/conversations/{id}/messages": {
            "post": written("Adds to a conversation", conversations::messages_schema(), "Kept", std::slice::from_ref(&conversation)),
        },
        "/v1/conversations/{id}/share": {
            "post": written("Makes a link to a conversation as it is now", conversations::share_schema(), "Kept", std::slice::from_ref(&conversation)),
            "delete": get("Makes its link lead nowhere", "Kept", &[conversation]),
        },
        "/v1/shares/{id}": { "get": get("What a link leads to; it needs no key", "Kept", &[id("The link's.")]) },
        "/v1/session": {
            "get": reads("Whether one is signed in", ("200", "It.", "Session"), &[], &["403"]),
            "post": sign_in,
            "delete": ended("Signs out", "The cookie is gone."),
        },
        "/v1/usage": { "get": usage },
        "/v1/usage/requests": { "get": get(
            "The last requests", "Requests",
            &[count("limit", 1, usage::REQUESTS_MAX), query("before", "Those before the one of that number.", "integer")],
        )},
        "/v1/chat/ws": { "get": socket },
    })
}

pub(super) fn schemas() -> Value {
    let list = json!({
        "type": "object",
        "properties": { "object": { "const": "list" }, "data": { "type": "array", "items": { "type": "object" } } },
        "required": ["object", "data"],
    });
    json!({
        "List": list,
        "Kept": { "type": "object" },
        "Session": written::<session::Session>(),
        "File": written::<files::Shape>(),
        "Files": written::<Listed<files::Shape>>(),
        "Deleted": written::<files::Deleted>(),
        "Batch": written::<batches::Shape>(),
        "Batches": written::<Listed<batches::Shape>>(),
        "Usage": written::<usage::List<banyan_store::UsageRow>>(),
        "Requests": written::<usage::List<banyan_store::LogEntry>>(),
    })
}

fn body(summary: &str, content: Value, answer: &str, parameters: &[Value]) -> Value {
    let failures = [&FAILURES[..], &["413", "429"]].concat();
    json!({
        "summary": summary,
        "parameters": parameters,
        "requestBody": { "required": true, "content": content },
        "responses": responses(json!({ "200": with_json("It.", answer) }), &failures),
    })
}

/// So many things at most.
fn count(name: &str, least: u32, most: u32) -> Value {
    let mut count = query(name, "At most so many.", "integer");
    count["schema"] = json!({ "type": "integer", "minimum": least, "maximum": most });
    count
}

fn query(name: &str, about: &str, kind: &str) -> Value {
    json!({ "name": name, "in": "query", "required": false, "schema": { "type": kind }, "description": about })
}
