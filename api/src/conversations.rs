//! `/v1/conversations`: what was said, kept for whoever comes back: list, read, change, delete, search, share.
//!
//! A page keeps its conversations itself as well, under names of its own, and brings what changed (`put`); the list's tag tells it
//! whether anything else did.

use axum::{
    Extension, Json,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use banyan_store::{Changes, Conversation, Found, Message, NewMessage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    asked::{Asked, within},
    body::Whole,
    caller::Caller,
    files::{Deleted, Listed, Page},
    openai::{Documented, Error, Field, Fields, Integer, Other, Text, expected, object_schema},
    routes::Context,
};

const TITLE_BYTES_MAX: usize = 1_000;
/// As many as are added at once: a whole conversation of a page.
const MESSAGES_MAX: usize = 1_000;
const NAME_BYTES_MAX: usize = 256;
/// Of the names that clients give conversations and messages.
const ID_BYTES_MAX: usize = 64;
/// No clock shows more: 100,000 years.
const MS_MAX: i64 = 100_000 * 365 * 24 * 3_600_000;
/// As many as are read at once, and as a conversation has.
pub(crate) const READ_MAX: u32 = 10_000;
const FOUND: u32 = 20;
pub(crate) const FOUND_MAX: u32 = 100;

static TITLE: Field<Text> = Field { name: "title", holds: Text(0..=TITLE_BYTES_MAX), about: "What people call it." };
static MESSAGES: Field<Other> = Field {
    name: "messages",
    holds: Other(|| json!({ "type": "array", "minItems": 1, "maxItems": MESSAGES_MAX, "items": { "type": "object" } })),
    about: "What was said: each has role and content, and may have model and node.",
};

static KNOWN: Field<Integer> = Field {
    name: "known",
    holds: Integer(1..=i64::MAX),
    about: "The revision that the client knows: one that was deleted since is not begun again. Without it, it is begun where there is none.",
};
static CREATED: Field<Integer> = Field { name: "created_ms", holds: Integer(0..=MS_MAX), about: "When it began." };
static UPDATED: Field<Integer> =
    Field { name: "updated_ms", holds: Integer(0..=MS_MAX), about: "When somebody last said something." };
static EXTRA: Field<Other> =
    Field { name: "extra", holds: Other(|| json!({ "type": "object" })), about: "What the client keeps with it." };
static CHANGED: Field<Other> = Field {
    name: "messages",
    holds: Other(|| json!({ "type": "array", "maxItems": MESSAGES_MAX, "items": { "type": "object" } })),
    about: "New ones, and those that replace others of the same id: each has id, role and content, and may have parent, model, node, \
            created_ms and extra.",
};
static REMOVED: Field<Other> = Field {
    name: "removed",
    holds: Other(|| json!({ "type": "array", "maxItems": MESSAGES_MAX, "items": { "type": "string" } })),
    about: "Ids of messages that are no longer wanted.",
};
static SHOWN: Field<Other> = Field {
    name: "messages",
    holds: Other(|| json!({ "type": "array", "maxItems": MESSAGES_MAX, "items": { "type": "string" } })),
    about: "The ids of those that are shared, in their order; all without it.",
};

/// What changes one, as a JSON schema.
pub(crate) fn changes_schema() -> Value {
    let fields: [&dyn Documented; 7] = [&KNOWN, &TITLE, &CREATED, &UPDATED, &EXTRA, &CHANGED, &REMOVED];
    object_schema(&[&fields], &[])
}

/// What shares one, as a JSON schema.
pub(crate) fn share_schema() -> Value {
    let fields: [&dyn Documented; 1] = [&SHOWN];
    object_schema(&[&fields], &[])
}

/// What begins or renames one, as a JSON schema.
pub(crate) fn title_schema() -> Value {
    let fields: [&dyn Documented; 1] = [&TITLE];
    object_schema(&[&fields], &[])
}

/// What is added to one, as a JSON schema.
pub(crate) fn messages_schema() -> Value {
    let fields: [&dyn Documented; 1] = [&MESSAGES];
    object_schema(&[&fields], &["messages"])
}

/// A conversation.
#[derive(Serialize)]
pub(crate) struct Shape {
    #[serde(flatten)]
    conversation: Conversation,
    object: &'static str,
    /// Of one that is read.
    #[serde(skip_serializing_if = "Option::is_none", rename = "items")]
    messages: Option<Vec<Message>>,
    /// Of one that is read: the name in its link.
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<String>,
    /// Of one that was changed: the revision that it had before.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<i64>,
}

impl From<Conversation> for Shape {
    fn from(conversation: Conversation) -> Self {
        Shape { conversation, object: "conversation", messages: None, share: None, before: None }
    }
}

/// How much of a conversation.
#[derive(Deserialize)]
pub(crate) struct Last {
    /// Messages from its end.
    last: Option<i64>,
}

/// What is looked for.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    q: Option<String>,
    limit: Option<i64>,
}

/// All of a caller's, the last that went on first. Its tag changes with any of them.
pub(crate) async fn list(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    Asked(page): Asked<Page>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let store = context.store()?;
    // Before the list: what changes meanwhile changes the tag again.
    let revision = store.revision(&caller.owner).await.map_err(Error::of_store)?;
    let tag = HeaderValue::try_from(format!("\"{revision}\"")).expect("digits are a header's value");
    let same = [(header::ETAG, tag.clone()), (header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"))];
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| *known == tag) {
        return Ok((StatusCode::NOT_MODIFIED, same).into_response());
    }
    let listed = store.conversations(&caller.owner, page.after.as_deref(), page.limit()?).await;
    let page = listed.map_err(Error::of_store)?;
    let shapes = page.conversations.into_iter().map(Shape::from).collect();
    Ok((same, Json(Listed::new(shapes, page.has_more, |shape: &Shape| &shape.conversation.id))).into_response())
}

/// Begins one.
pub(crate) async fn create(State(context): State<Context>, whole: Whole) -> Result<Json<Shape>, Error> {
    let title = Fields::parse(&whole.bytes)?.text(&TITLE)?;
    let made = context.store()?.create_conversation(&whole.arrival.caller.owner, title.as_deref().unwrap_or_default()).await;
    Ok(Json(made.map_err(Error::of_store)?.into()))
}

/// One of them, with its last messages.
pub(crate) async fn one(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    Asked(last): Asked<Last>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Shape>, Error> {
    let Path(id) = id?;
    let store = context.store()?;
    let conversation = store.conversation(&caller.owner, &id).await.map_err(Error::of_store)?;
    let last = within("last", last.last, READ_MAX, 0..=READ_MAX)?;
    let messages = store.messages(&caller.owner, &id, last).await.map_err(Error::of_store)?;
    let share = store.share_of(&caller.owner, &id).await.map_err(Error::of_store)?.map(|share| share.id);
    Ok(Json(Shape { messages: Some(messages), share, ..conversation.into() }))
}

/// Changes one, or begins it under its client's name.
pub(crate) async fn put(
    State(context): State<Context>,
    id: Result<Path<String>, PathRejection>,
    whole: Whole,
) -> Result<Json<Shape>, Error> {
    let Path(id) = id?;
    if !is_name(&id) {
        let message = format!("a conversation's name is at most {ID_BYTES_MAX} letters, digits, '-' and '_': choose another one");
        return Err(Error::parameter("id", message));
    }
    let mut fields = Fields::parse(&whole.bytes)?;
    let messages = list_of(fields.other(&CHANGED), "messages")?;
    let messages = messages.into_iter().enumerate().map(|(at, message)| read_named(at, message)).collect::<Result<_, _>>()?;
    let changes = Changes {
        known: fields.integer(&KNOWN)?,
        title: fields.text(&TITLE)?,
        created_ms: fields.integer(&CREATED)?,
        updated_ms: fields.integer(&UPDATED)?,
        extra: extra("extra", fields.other(&EXTRA))?,
        messages,
        removed: names(fields.other(&REMOVED), "removed")?,
    };
    let changed = context.store()?.change_conversation(&whole.arrival.caller.owner, &id, changes).await;
    let changed = changed.map_err(Error::of_store)?;
    Ok(Json(Shape { before: Some(changed.before), ..changed.conversation.into() }))
}

/// Gives one another title.
pub(crate) async fn rename(
    State(context): State<Context>,
    id: Result<Path<String>, PathRejection>,
    whole: Whole,
) -> Result<Json<Shape>, Error> {
    let Path(id) = id?;
    let Some(title) = Fields::parse(&whole.bytes)?.text(&TITLE)? else {
        return Err(Error::parameter("title", "'title' is missing: send the conversation's new title"));
    };
    let renamed = context.store()?.rename_conversation(&whole.arrival.caller.owner, &id, &title).await;
    Ok(Json(renamed.map_err(Error::of_store)?.into()))
}

/// Deletes one.
pub(crate) async fn delete(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Deleted>, Error> {
    let Path(id) = id?;
    context.store()?.delete_conversation(&caller.owner, &id).await.map_err(Error::of_store)?;
    Ok(Json(Deleted { id, object: "conversation", deleted: true }))
}

/// Adds messages to one.
pub(crate) async fn append(
    State(context): State<Context>,
    id: Result<Path<String>, PathRejection>,
    whole: Whole,
) -> Result<Json<Shape>, Error> {
    let Path(id) = id?;
    let new = match Fields::parse(&whole.bytes)?.other(&MESSAGES) {
        Some(Value::Array(messages)) if (1..=MESSAGES_MAX).contains(&messages.len()) => {
            messages.into_iter().enumerate().map(|(at, message)| read(at, message)).collect::<Result<_, _>>()?
        }
        other => {
            let what = format!("a list of 1 to {MESSAGES_MAX} messages");
            return Err(expected("messages", &what, &other.unwrap_or(Value::Null)));
        }
    };
    let added = context.store()?.append(&whole.arrival.caller.owner, &id, new).await;
    Ok(Json(added.map_err(Error::of_store)?.into()))
}

/// One that has a name of its own.
fn read_named(at: usize, message: Value) -> Result<Message, Error> {
    let name = |field: &str| format!("messages[{at}].{field}");
    let named = |field: &str| match message.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(id)) if is_name(id) => Ok(Some(id.clone())),
        Some(other) => Err(expected(&name(field), &"a name of letters and digits", other)),
    };
    let Some(id) = named("id")? else { return Err(expected(&name("id"), &"a name of letters and digits", &Value::Null)) };
    let created_ms = match message.get("created_ms") {
        None | Some(Value::Null) => banyan_store::unix_ms(),
        Some(given) => match given.as_i64().filter(|given| (0..=MS_MAX).contains(given)) {
            Some(created) => created,
            None => return Err(expected(&name("created_ms"), &"milliseconds since 1970", given)),
        },
    };
    let (parent, extra) = (named("parent")?, extra(&name("extra"), message.get("extra").cloned())?);
    let NewMessage { role, content, model, node } = read(at, message)?;
    Ok(Message { position: 0, id, parent, role, content, model, node, created_ms, extra })
}

fn is_name(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(known)
}

fn list_of(value: Option<Value>, name: &str) -> Result<Vec<Value>, Error> {
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(all)) if all.len() <= MESSAGES_MAX => Ok(all),
        Some(other) => Err(expected(name, &format!("a list of at most {MESSAGES_MAX}"), &other)),
    }
}

fn names(value: Option<Value>, name: &str) -> Result<Vec<String>, Error> {
    let read = |value: Value| match value {
        Value::String(id) if is_name(&id) => Ok(id),
        other => Err(expected(name, &"names of messages", &other)),
    };
    list_of(value, name)?.into_iter().map(read).collect()
}

fn extra(name: &str, value: Option<Value>) -> Result<Option<String>, Error> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value @ Value::Object(_)) => Ok(Some(value.to_string())),
        Some(other) => Err(expected(name, &"an object", &other)),
    }
}

fn read(at: usize, message: Value) -> Result<NewMessage, Error> {
    let name = |field: &str| format!("messages[{at}].{field}");
    let text = |field: &str| message[field].as_str().map(str::to_owned);
    let Some(role) = text("role").filter(|role| matches!(role.as_str(), "system" | "user" | "assistant")) else {
        return Err(Error::parameter(name("role"), format!("'{}' must be system, user or assistant", name("role"))));
    };
    let Some(content) = text("content") else {
        return Err(expected(&name("content"), &"a string", &message["content"]));
    };
    let short = |field| match text(field) {
        Some(text) if text.len() > NAME_BYTES_MAX => Err(expected(&name(field), &"a name", &message[field])),
        text => Ok(text.unwrap_or_default()),
    };
    Ok(NewMessage { model: short("model")?, node: short("node")?, role, content })
}

/// Finds messages by their words.
pub(crate) async fn search(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    Asked(wanted): Asked<Wanted>,
) -> Result<Json<Listed<Found>>, Error> {
    let text = wanted.q.unwrap_or_default();
    if text.len() > TITLE_BYTES_MAX {
        return Err(Error::parameter("q", format!("'q' has at most {TITLE_BYTES_MAX} bytes: look for fewer words")));
    }
    let limit = within("limit", wanted.limit, FOUND, 1..=FOUND_MAX)?;
    let found = context.store()?.search(&caller.owner, &text, limit).await.map_err(Error::of_store)?;
    Ok(Json(Listed::new(found, false, |found: &Found| &found.id)))
}

/// What a conversation was, for whoever has its link: neither its system prompt nor who answered.
#[derive(Deserialize, Serialize)]
struct Snapshot {
    title: String,
    messages: Vec<Line>,
}

#[derive(Deserialize, Serialize)]
struct Line {
    role: String,
    content: String,
    model: String,
    created_ms: i64,
    /// What its client says of how it is shown: chat, or complete.
    mode: Option<String>,
}

/// A link.
#[derive(Serialize)]
pub(crate) struct Linked {
    id: String,
    object: &'static str,
    created_ms: i64,
}

/// Makes a link to a conversation as it is now.
pub(crate) async fn share(
    State(context): State<Context>,
    id: Result<Path<String>, PathRejection>,
    whole: Whole,
) -> Result<Json<Linked>, Error> {
    let Path(id) = id?;
    let shown = Fields::parse(&whole.bytes)?.other(&SHOWN);
    let (store, owner) = (context.store()?, &whole.arrival.caller.owner);
    let conversation = store.conversation(owner, &id).await.map_err(Error::of_store)?;
    let all = store.messages(owner, &id, READ_MAX).await.map_err(Error::of_store)?;
    let wanted = match shown {
        None => all.iter().collect(),
        some => {
            let find = |id: String| all.iter().find(|message| message.id == id);
            let found: Option<Vec<&Message>> = names(some, "messages")?.into_iter().map(find).collect();
            found.ok_or_else(|| {
                Error::parameter("messages", "'messages' names one that the conversation does not have: read it again")
            })?
        }
    };
    let line = |message: &Message| {
        let extra = message.extra.as_deref().and_then(|extra| serde_json::from_str::<Value>(extra).ok());
        Line {
            role: message.role.clone(),
            content: message.content.clone(),
            model: message.model.clone(),
            created_ms: message.created_ms,
            mode: extra.and_then(|extra| extra["mode"].as_str().map(str::to_owned)),
        }
    };
    let told = wanted.into_iter().filter(|message| message.role != "system").map(line).collect();
    let snapshot = serde_json::to_string(&Snapshot { title: conversation.title, messages: told }).expect("texts are JSON");
    let share = store.share(owner, &id, &snapshot).await.map_err(Error::of_store)?;
    Ok(Json(Linked { id: share.id, object: "share", created_ms: share.created_ms }))
}

/// Makes a conversation's link lead nowhere.
pub(crate) async fn revoke(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Deleted>, Error> {
    let Path(id) = id?;
    context.store()?.revoke_share(&caller.owner, &id).await.map_err(Error::of_store)?;
    Ok(Json(Deleted { id, object: "share", deleted: true }))
}

/// What a link leads to. No key is asked for: the link is one.
pub(crate) async fn shared(State(context): State<Context>, id: Result<Path<String>, PathRejection>) -> Result<Response, Error> {
    let Path(id) = id?;
    let snapshot = context.store()?.shared(&id).await.map_err(Error::of_store)?;
    let snapshot: Snapshot = serde_json::from_str(&snapshot).expect("it was written so");
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(snapshot)).into_response())
}
