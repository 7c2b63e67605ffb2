//! `/v1/tree`: the tree as it lives, for the page that draws it and for whoever looks at it: events of what changes, a node's figures
//! and log, the way of a query; and what an operator does to nodes.
//!
//! What is drawn is told by the roots (`hub.rs`), put together with the registry (`picture.rs`).

mod hub;
mod picture;

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use banyan_proto::{NodeName, v1};
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::broadcast::error::RecvError, time::timeout};
use tonic::Code;

use self::hub::Reader;
pub(crate) use self::hub::Trees;
use crate::{
    asked::Asked,
    body::Whole,
    caller::Caller,
    openai::{Documented, Error, Field, Fields, Integer, Text, object_schema},
    routes::Context,
    sse,
};

/// A tree answers within two seconds, or somebody in it is silent.
const PATIENCE: Duration = Duration::from_secs(4);
const DECISIONS: u32 = 100;
const DECISIONS_MAX: u32 = 1000;
const NAME_BYTES_MAX: usize = 256;
/// A day.
const DEADLINE_MS_MAX: i64 = 24 * 3600 * 1000;
/// As `banyan node drain` has it.
const DEADLINE_MS: i64 = 30_000;

static PARENT: Field<Text> =
    Field { name: "parent", holds: Text(1..=NAME_BYTES_MAX), about: "The node below which it is to live." };
static DEADLINE: Field<Integer> = Field {
    name: "deadline_ms",
    holds: Integer(0..=DEADLINE_MS_MAX),
    about: "How long what runs may go on before it is handed over; 30000 by default.",
};

/// What moves a node, as a JSON schema.
pub(crate) fn move_schema() -> Value {
    let fields: [&dyn Documented; 1] = [&PARENT];
    object_schema(&[&fields], &["parent"])
}

/// What lets a node leave, as a JSON schema.
pub(crate) fn drain_schema() -> Value {
    let fields: [&dyn Documented; 1] = [&DEADLINE];
    object_schema(&[&fields], &[])
}

/// How many decisions.
#[derive(Deserialize)]
pub(crate) struct Last {
    last: Option<u32>,
}

/// The whole tree, and then what changes in it, as events.
pub(crate) async fn events(State(context): State<Context>, headers: HeaderMap) -> Result<Response, Error> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let Some((reader, first)) = context.trees.join(&context.roots, last, &context.ending) else {
        let message = "as many look at the tree as this API has room for: try again later, or at another API";
        return Err(Error::server(StatusCode::SERVICE_UNAVAILABLE, message));
    };
    let mut events = sse::Events::default();
    for event in first {
        event.write(&mut events);
    }
    // Who has nothing to hear yet hears that the line is open.
    events.comment("the tree");
    let begun = futures::stream::iter([events.take()]);
    let heartbeat = context.limits.heartbeat;
    let following = futures::stream::unfold((reader, context), move |(mut reader, context)| async move {
        let bytes = tokio::select! {
            bytes = next(&mut reader, heartbeat) => bytes?,
            () = context.stopping.cancelled() => return None,
        };
        Some((bytes, (reader, context)))
    });
    Ok(sse::response(begun.chain(following)))
}

async fn next(reader: &mut Reader, heartbeat: Duration) -> Option<bytes::Bytes> {
    let mut events = sse::Events::default();
    loop {
        match timeout(heartbeat, reader.events.recv()).await {
            Ok(Ok(event)) if event.number <= reader.seen => continue,
            Ok(Ok(event)) => {
                reader.seen = event.number;
                event.write(&mut events);
            }
            // It read too slowly, and begins again with all of it.
            Ok(Err(RecvError::Lagged(_))) => {
                let event = reader.hub.whole();
                reader.seen = event.number;
                event.write(&mut events);
            }
            Ok(Err(RecvError::Closed)) => return None,
            Err(_) => events.comment("alive"),
        }
        return Some(events.take());
    }
}

/// One node's figures.
pub(crate) async fn node(
    State(context): State<Context>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, Error> {
    let Path(name) = name?;
    let mut client = context.roots.inspect(&tree_of(&context, &name)?).map_err(unreachable)?;
    let status = asked(client.status(v1::Target { name })).await?;
    let kv = status.kv.as_ref().map(|kv| {
        json!({ "pages": kv.pages, "held": kv.pages_held, "cached": kv.pages_cached, "looked_up": kv.tokens_looked_up, "reused": kv.tokens_reused })
    });
    Ok(Json(json!({
        "object": "node", "name": status.name, "role": status.role, "state": status.state, "parent": status.parent,
        "attached": status.attached, "ancestry": status.ancestry, "delivers_through": status.delivers_through,
        "version": status.version, "device": status.device, "models": status.models, "slots": status.batch_max,
        "running": status.running, "queued": status.queued, "room": status.room, "tokens": status.tokens,
        "waiting": status.waiting, "live": status.live, "uptime_ms": status.uptime_ms, "kv": kv,
    })))
}

/// What a node decided last.
pub(crate) async fn log(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    name: Result<Path<String>, PathRejection>,
    Asked(wanted): Asked<Last>,
) -> Result<Json<Value>, Error> {
    let Path(name) = name?;
    context.only_operators(&caller)?;
    let mut client = context.roots.inspect(&tree_of(&context, &name)?).map_err(unreachable)?;
    let last = wanted.last.unwrap_or(DECISIONS).clamp(1, DECISIONS_MAX);
    let decisions = asked(client.log(v1::LogRequest { name, last, follow: false })).await?;
    let read = decisions.take(DECISIONS_MAX as usize).filter_map(async |decision| decision.ok());
    let data: Vec<Value> = timeout(PATIENCE, read.collect::<Vec<_>>())
        .await
        .map_err(|_| silent())?
        .into_iter()
        .map(|decision| json!({ "number": decision.number, "at_ms": decision.at_ms, "text": decision.text }))
        .collect();
    Ok(Json(json!({ "object": "list", "data": data })))
}

/// Lets a node leave.
pub(crate) async fn drain(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    name: Result<Path<String>, PathRejection>,
    whole: Whole,
) -> Result<Json<Value>, Error> {
    let Path(name) = name?;
    context.only_operators(&caller)?;
    let deadline = if whole.bytes.is_empty() { None } else { Fields::parse(&whole.bytes)?.integer(&DEADLINE)? };
    let mut client = context.roots.inspect(&tree_of(&context, &name)?).map_err(unreachable)?;
    let deadline_ms = deadline.unwrap_or(DEADLINE_MS) as u64;
    let draining = asked(client.drain(v1::DrainRequest { name, deadline_ms })).await?;
    Ok(Json(json!({
        "object": "node.draining", "running": draining.running, "queued": draining.queued, "children": draining.children,
    })))
}

/// Gives a node another parent.
pub(crate) async fn relocate(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    name: Result<Path<String>, PathRejection>,
    whole: Whole,
) -> Result<Json<Value>, Error> {
    let Path(name) = name?;
    context.only_operators(&caller)?;
    let Some(parent) = Fields::parse(&whole.bytes)?.text(&PARENT)? else {
        return Err(Error::parameter("parent", "'parent' is missing: name the node below which it is to live"));
    };
    let view = context.roots.view();
    if !view.members.keys().any(|known| *known.as_str() == parent) {
        return Err(Error::parameter("parent", format!("no node is named '{parent}': see the tree for those that there are")));
    }
    let mut client = context.roots.inspect(&tree_of(&context, &name)?).map_err(unreachable)?;
    let moved = asked(client.r#move(v1::MoveRequest { name, parent })).await?;
    Ok(Json(json!({ "object": "node.moved", "parent": moved.parent })))
}

/// The way of a query. Whose it is, only its owner and operators are told.
pub(crate) async fn query(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, Error> {
    let Path(id) = id?;
    // As answers have it, or its digits alone.
    let digits = id.rsplit_once('-').map_or(id.as_str(), |(_, digits)| digits).to_ascii_lowercase();
    if digits.is_empty() || digits.len() > 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Error::invalid("a query's id is up to 32 hexadecimal digits, as answers have it"));
    }
    let mut last = None;
    for tree in context.roots.view().roots.keys() {
        let mut client = context.roots.inspect(tree).map_err(unreachable)?;
        match asked(client.why(v1::WhyRequest { id: digits.clone() })).await {
            Ok(way) => {
                let told = way.owner == *caller.owner || context.is_operator(&caller);
                return Ok(Json(shown(&way, told)));
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| unreachable(crate::root::AskError::NoRoot)))
}

fn shown(way: &v1::Way, with_owner: bool) -> Value {
    let some = |us: u64| (us > 0).then_some(us);
    let reason = |reason: v1::Reason| reason.as_str_name().trim_start_matches("REASON_").to_ascii_lowercase();
    let hop = |hop: &v1::Hop| json!({ "node": hop.node, "reason": reason(hop.reason()), "spent_us": hop.spent_us });
    let attempt = |attempt: &v1::Try| {
        json!({
            "number": attempt.number, "holder": attempt.holder, "reason": reason(attempt.reason()), "sent_us": attempt.sent_us,
            "held_us": some(attempt.held_us), "started_us": some(attempt.started_us), "ended_us": some(attempt.ended_us),
            "outcome": attempt.outcome, "trail": attempt.trail.iter().map(hop).collect::<Vec<_>>(),
        })
    };
    json!({
        "object": "query", "id": way.id, "model": way.model, "owner": with_owner.then_some(&way.owner), "state": way.state,
        "tokens": way.tokens, "first_token_us": some(way.first_token_us), "ended_us": some(way.ended_us),
        "error": (!way.error.is_empty()).then_some(&way.error), "attempts": way.tries.iter().map(attempt).collect::<Vec<_>>(),
    })
}

/// Whose root knows a node.
fn tree_of(context: &Context, name: &str) -> Result<NodeName, Error> {
    let view = context.roots.view();
    let member = name.parse::<NodeName>().ok().and_then(|name| view.members.get(&name).map(|member| member.tree.clone()));
    member.ok_or_else(|| no_such_node(name))
}

fn no_such_node(name: &str) -> Error {
    let name: String = name.chars().take(NAME_BYTES_MAX).collect();
    Error::no_such_path(format!("no node is named '{name}': see the tree for those that there are"))
}

async fn asked<T>(answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, Error> {
    match timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(match status.code() {
            Code::NotFound => Error::no_such_path(format!("{}: see the tree for what there is", status.message())),
            Code::FailedPrecondition | Code::InvalidArgument => {
                Error::invalid(status.message().to_owned()).status(StatusCode::CONFLICT)
            }
            Code::Unimplemented => Error::invalid("this root is of an older version and does not know the question: update it")
                .status(StatusCode::CONFLICT),
            _ => silent(),
        }),
        Err(_) => Err(silent()),
    }
}

fn silent() -> Error {
    Error::server(StatusCode::SERVICE_UNAVAILABLE, "the tree does not answer: try again in a moment")
}

fn unreachable(error: crate::root::AskError) -> Error {
    Error::server(StatusCode::SERVICE_UNAVAILABLE, format!("{error}: try again in a moment"))
}
