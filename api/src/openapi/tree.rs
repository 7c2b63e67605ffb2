//! What of the document is about the tree: its events, its nodes, the ways of queries, and what operators do and see.

use serde_json::{Value, json};

use super::{header_in, path, reads, responses, with_json};
use crate::tree;

/// Of whatever asks a root.
const FAILURES: [&str; 5] = ["400", "403", "404", "409", "503"];

pub(super) fn paths() -> Value {
    let name = path("name", "The node's.");
    let get = |summary: &str, schema: &str, parameters: &[Value]| reads(summary, ("200", "It.", schema), parameters, &FAILURES);
    let post = |summary: &str, schema: Value, required: bool| {
        let failures = [&FAILURES[..], &["408", "413", "429"]].concat();
        json!({
            "summary": summary,
            "parameters": [name],
            "requestBody": { "required": required, "content": { "application/json": { "schema": schema } } },
            "responses": responses(json!({ "200": with_json("It has begun.", "Kept") }), &failures),
        })
    };
    let last = json!({ "name": "last", "in": "query", "required": false, "schema": { "type": "integer", "minimum": 0, "maximum": u32::MAX }, "description": "At most so many." });
    json!({
        "/v1/tree/events": { "get": events() },
        "/v1/tree/nodes/{name}": { "get": get("One node's figures", "Kept", std::slice::from_ref(&name)) },
        "/v1/tree/nodes/{name}/log": { "get": get("What a node decided last; for operators", "List", &[name.clone(), last]) },
        "/v1/tree/nodes/{name}/drain": {
            "post": post("Lets a node finish or hand over what it has, and leave; for operators", tree::drain_schema(), false),
        },
        "/v1/tree/nodes/{name}/move": { "post": post("Gives a node another parent; for operators", tree::move_schema(), true) },
        "/v1/tree/queries/{id}": { "get": get(
            "The way of a query; whose it is, its owner and operators are told", "Kept",
            &[path("id", "As answers have it, or its hexadecimal digits, or the first of these.")],
        )},
        "/v1/keys": { "get": reads("All keys, without their secrets; for operators", ("200", "They.", "List"), &[], &["403", "500", "501", "503"]) },
    })
}

pub(super) fn schemas() -> Value {
    let text = json!({ "type": "string" });
    let count = json!({ "type": "integer", "minimum": 0 });
    json!({ "TreeEvent": {
        "type": "object",
        "properties": {
            "whole": { "type": "boolean", "description": "It is all there is: what was told before is void." },
            "nodes": { "type": "array", "items": {
                "type": "object",
                "description": "All fields of a new node, else its name and those that changed.",
                "properties": {
                    "name": text, "tree": text, "device": text, "parent": { "type": ["string", "null"] },
                    "role": { "enum": ["root", "standby", "node"] },
                    "state": { "enum": ["ready", "busy", "draining", "joining", "lost", "standby", "unknown"] },
                    "models": { "type": "array", "items": text },
                    "slots": count, "running": count, "queued": count,
                    "tokens": { "type": "integer", "description": "That came from it since its root is watched." },
                    "tokens_per_s": { "type": "number" },
                },
                "required": ["name"],
            }},
            "gone": { "type": "array", "items": text, "description": "Names of nodes that are no more." },
            "queries": { "type": "array", "items": {
                "type": "object",
                "properties": {
                    "id": text, "node": text, "trail": { "type": "array", "items": text },
                    "state": { "enum": ["waiting", "sent", "queued", "running", "finished", "failed", "cancelled"] },
                },
                "required": ["id", "state", "node", "trail"],
            }},
            "waiting": count,
            "live": count,
        },
        "required": ["nodes", "queries", "waiting", "live"],
    }})
}

fn events() -> Value {
    let last = header_in(
        "Last-Event-ID",
        "The id of the last event that was seen: it goes on behind that while it is known, else with all.",
    );
    let mut operation = reads(
        "The tree, and what changes in it, ten times a second at most: the first event is all of it",
        ("200", "Events, until the client goes. Comments are signs of life.", "TreeEvent"),
        &[last],
        &["403", "503"],
    );
    let data =
        json!({ "type": "string", "contentMediaType": "application/json", "contentSchema": super::reference("TreeEvent") });
    let one = json!({ "type": "object", "properties": { "id": { "type": "string" }, "data": data }, "required": ["data"] });
    operation["responses"]["200"]["content"] = json!({ "text/event-stream": { "schema": one } });
    operation
}
