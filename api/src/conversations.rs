//! `/v1/conversations`: what was said, kept for whoever comes back: list, read, rename, delete, search.

use axum::{
    Extension, Json,
    extract::{Path, State, rejection::PathRejection},
};
use banyan_store::{Conversation, Found, Message, NewMessage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    asked::Asked,
    body::Whole,
    caller::Caller,
    files::{Deleted, Listed, Page},
    openai::{Documented, Error, Field, Fields, Other, Text, expected, object_schema},
    routes::Context,
};

const TITLE_BYTES_MAX: usize = 1_000;
/// As many as are added at once: a whole conversation of a page.
const MESSAGES_MAX: usize = 1_000;
const NAME_BYTES_MAX: usize = 256;
/// As many as are read at once, and as a conversation has.
const READ_MAX: u32 = 10_000;
const FOUND: u32 = 20;
const FOUND_MAX: u32 = 100;

static TITLE: Field<Text> = Field { name: "title", holds: Text(0..=TITLE_BYTES_MAX), about: "What people call it." };
static MESSAGES: Field<Other> = Field {
    name: "messages",
    holds: Other(|| json!({ "type": "array", "minItems": 1, "maxItems": MESSAGES_MAX, "items": { "type": "object" } })),
    about: "What was said: each has role and content, and may have model and node.",
};

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
}

impl From<Conversation> for Shape {
    fn from(conversation: Conversation) -> Self {
        Shape { conversation, object: "conversation", messages: None }
    }
}

/// How much of a conversation.
#[derive(Deserialize)]
pub(crate) struct Last {
    /// Messages from its end.
    last: Option<u32>,
}

/// What is looked for.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    q: Option<String>,
    limit: Option<u32>,
}

/// All of a caller's, the last that went on first.
pub(crate) async fn list(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    Asked(page): Asked<Page>,
) -> Result<Json<Listed<Shape>>, Error> {
    let listed = context.store()?.conversations(&caller.owner, page.after.as_deref(), page.limit()).await;
    let page = listed.map_err(Error::of_store)?;
    let shapes = page.conversations.into_iter().map(Shape::from).collect();
    Ok(Json(Listed::new(shapes, page.has_more, |shape: &Shape| &shape.conversation.id)))
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
    let last = last.last.unwrap_or(READ_MAX).min(READ_MAX);
    let messages = store.messages(&caller.owner, &id, last).await.map_err(Error::of_store)?;
    Ok(Json(Shape { messages: Some(messages), ..conversation.into() }))
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
    let limit = wanted.limit.unwrap_or(FOUND).clamp(1, FOUND_MAX);
    let found = context.store()?.search(&caller.owner, &text, limit).await.map_err(Error::of_store)?;
    Ok(Json(Listed::new(found, false, |found: &Found| &found.id)))
}
