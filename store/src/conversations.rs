//! Conversations and what was said in them. They belong to an owner; who else asks finds nothing.

use futures::FutureExt as _;
use uuid::Uuid;

use crate::{
    Error, Store,
    connection::{Connection, Row, Value},
    search,
    store::page,
    time::unix_ms,
};

/// An owner with more should delete some.
const CONVERSATIONS_MAX: i64 = 100_000;
/// Nobody reads on.
pub(crate) const MESSAGES_MAX: i64 = 10_000;
/// As large as a request.
pub(crate) const CONTENT_BYTES_MAX: usize = 4 << 20;
const TITLE_CHARS_MAX: usize = 200;

/// A conversation without its messages.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Conversation {
    /// Its name for programs.
    pub id: String,
    /// The client that it belongs to, where one named itself.
    pub client_id: Option<String>,
    /// Its name for people.
    pub title: String,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// Of the last message, in Unix milliseconds.
    pub updated_ms: i64,
    /// How many messages it has.
    pub messages: i64,
    /// Grows with every change of any of its owner's conversations.
    pub revision: i64,
    /// What its client keeps with it: a JSON value.
    #[serde(serialize_with = "as_json", skip_serializing_if = "Option::is_none")]
    pub extra: Option<String>,
}

/// Some of an owner's conversations, the newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationPage {
    /// In order.
    pub conversations: Vec<Conversation>,
    /// Whether there are older ones.
    pub has_more: bool,
}

/// What was said.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// Counted from 0 within its conversation.
    pub position: i64,
    /// Its name within its conversation.
    pub id: String,
    /// The name of what it follows; `None` at a beginning.
    pub parent: Option<String>,
    /// system, user or assistant.
    pub role: String,
    /// The text.
    pub content: String,
    /// That was asked; empty for what people say.
    pub model: String,
    /// That answered; empty for what people say.
    pub node: String,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// What its client keeps with it: a JSON value.
    #[serde(serialize_with = "as_json", skip_serializing_if = "Option::is_none")]
    pub extra: Option<String>,
}

/// What is to be added.
#[derive(Clone, Debug, Default)]
pub struct NewMessage {
    /// system, user or assistant.
    pub role: String,
    /// The text.
    pub content: String,
    /// That was asked.
    pub model: String,
    /// That answered.
    pub node: String,
}

impl Store {
    /// Begins a conversation.
    ///
    /// # Errors
    /// When it can't be written, or the owner has too many.
    pub async fn create_conversation(&self, owner: &str, title: &str) -> Result<Conversation, Error> {
        let (owner, title) = (owner.to_owned(), titled(title));
        self.write_durably(move |connection| async move { create(connection, &owner, None, title).await }.boxed()).await
    }

    /// The conversation of a client, begun when there is none.
    ///
    /// # Errors
    /// When it can't be read, or would have to be written and can't.
    pub async fn conversation_of(&self, owner: &str, client_id: &str) -> Result<Conversation, Error> {
        let (owner, client_id) = (owner.to_owned(), client_id.to_owned());
        self.write_durably(move |connection| {
            async move {
                let sql = "SELECT id, client_id, title, created_ms, updated_ms, messages, revision, extra FROM conversations
                           WHERE owner = ?1 AND client_id = ?2";
                let values = [(&owner).into(), (&client_id).into()];
                if let Some(row) = connection.row(sql, &values).await? {
                    return conversation(&row);
                }
                match create(connection, &owner, Some(&client_id), String::new()).await {
                    // Another API was faster.
                    Err(Error::Conflict(reason)) => match connection.row(sql, &values).await? {
                        Some(row) => conversation(&row),
                        None => Err(Error::Conflict(reason)),
                    },
                    made => made,
                }
            }
            .boxed()
        })
        .await
    }

    /// An owner's conversations, the newest first, those behind the one named.
    ///
    /// # Errors
    /// When the store can't be asked, or there is no such conversation.
    pub async fn conversations(&self, owner: &str, after: Option<&str>, limit: u32) -> Result<ConversationPage, Error> {
        let (owner, after) = (owner.to_owned(), after.map(str::to_owned));
        let rows = self.write(move |connection| {
            async move {
                let (updated, id) = match &after {
                    Some(id) => {
                        let found = find(connection, &owner, id).await?;
                        (found.updated_ms, found.id)
                    }
                    None => (i64::MAX, String::new()),
                };
                connection
                    .rows(
                        "SELECT id, client_id, title, created_ms, updated_ms, messages, revision, extra FROM conversations
                         WHERE owner = ?1 AND (updated_ms < ?2 OR (updated_ms = ?2 AND id < ?3))
                         ORDER BY updated_ms DESC, id DESC LIMIT ?4",
                        &[(&owner).into(), updated.into(), (&id).into(), (i64::from(limit) + 1).into()],
                    )
                    .await
            }
            .boxed()
        });
        let (conversations, has_more) = page(rows.await?.iter().map(conversation).collect::<Result<_, _>>()?, limit);
        Ok(ConversationPage { conversations, has_more })
    }

    /// One conversation, by its name for programs or its client's.
    ///
    /// # Errors
    /// When the store can't be asked, or there is no such conversation.
    pub async fn conversation(&self, owner: &str, id: &str) -> Result<Conversation, Error> {
        let (owner, id) = (owner.to_owned(), id.to_owned());
        self.write(move |connection| async move { find(connection, &owner, &id).await }.boxed()).await
    }

    /// Gives a conversation another title.
    ///
    /// # Errors
    /// When it can't be written, or there is no such conversation.
    pub async fn rename_conversation(&self, owner: &str, id: &str, title: &str) -> Result<Conversation, Error> {
        let (owner, id, title) = (owner.to_owned(), id.to_owned(), titled(title));
        self.write_durably(move |connection| {
            async move {
                let revision = revise(connection, &owner).await?;
                let renamed = Conversation { title, revision, ..find(connection, &owner, &id).await? };
                let sql = "UPDATE conversations SET title = ?2, revision = ?3 WHERE id = ?1";
                connection.execute(sql, &[(&renamed.id).into(), (&renamed.title).into(), revision.into()]).await?;
                Ok(renamed)
            }
            .boxed()
        })
        .await
    }

    /// Deletes a conversation and all that was said in it.
    ///
    /// # Errors
    /// When it can't be deleted, or there is no such conversation.
    pub async fn delete_conversation(&self, owner: &str, id: &str) -> Result<(), Error> {
        let (owner, id) = (owner.to_owned(), id.to_owned());
        self.write_durably(move |connection| {
            async move {
                revise(connection, &owner).await?;
                let found = find(connection, &owner, &id).await?;
                connection.execute("DELETE FROM conversations WHERE id = ?1", &[(&found.id).into()]).await.map(drop)
            }
            .boxed()
        })
        .await
    }

    /// The last messages of a conversation, in their order.
    ///
    /// # Errors
    /// When the store can't be asked, or there is no such conversation.
    pub async fn messages(&self, owner: &str, id: &str, last: u32) -> Result<Vec<Message>, Error> {
        let (owner, id) = (owner.to_owned(), id.to_owned());
        let rows = self.write(move |connection| {
            async move {
                let found = find(connection, &owner, &id).await?;
                connection
                    .rows(
                        "SELECT position, id, parent, role, content, model, node, created_ms, extra FROM messages
                         WHERE conversation_id = ?1 ORDER BY position DESC LIMIT ?2",
                        &[(&found.id).into(), last.into()],
                    )
                    .await
            }
            .boxed()
        });
        rows.await?.iter().rev().map(message).collect()
    }

    /// Adds to a conversation. One without a title gets the beginning of what a person says first.
    ///
    /// # Errors
    /// When it can't be written, there is no such conversation, or it is full.
    pub async fn append(&self, owner: &str, id: &str, new: Vec<NewMessage>) -> Result<Conversation, Error> {
        let (owner, id) = (owner.to_owned(), id.to_owned());
        if new.iter().any(|message| message.content.len() > CONTENT_BYTES_MAX) {
            return Err(Error::Conflict(format!("a message has at most {CONTENT_BYTES_MAX} bytes")));
        }
        self.write_durably(move |connection| {
            async move {
                // First of all, so that whoever changes an owner's conversations does so one after the other.
                let revision = revise(connection, &owner).await?;
                let mut found = Conversation { revision, ..find(connection, &owner, &id).await? };
                if found.messages + new.len() as i64 > MESSAGES_MAX {
                    return Err(full());
                }
                // Never before the last one, whatever the clock does.
                found.updated_ms = unix_ms().max(found.updated_ms);
                if found.title.is_empty() {
                    let first = new.iter().find(|message| message.role == "user");
                    found.title = first.map(|message| titled(&message.content)).unwrap_or_default();
                }
                let (mut position, mut parent) = end_of(connection, &found.id).await?;
                for message in &new {
                    let message = Message {
                        position,
                        id: format!("m{position}"),
                        parent: parent.take(),
                        role: message.role.clone(),
                        content: message.content.clone(),
                        model: message.model.clone(),
                        node: message.node.clone(),
                        created_ms: found.updated_ms,
                        extra: None,
                    };
                    insert(connection, &found.id, &message).await?;
                    parent = Some(message.id);
                    position += 1;
                    found.messages += 1;
                }
                write(connection, &found).await?;
                Ok(found)
            }
            .boxed()
        })
        .await
    }
}

/// The position behind a conversation's last message, and that one's name.
pub(crate) async fn end_of(connection: &mut Connection, id: &str) -> Result<(i64, Option<String>), Error> {
    let sql = "SELECT position, id FROM messages WHERE conversation_id = ?1 ORDER BY position DESC LIMIT 1";
    match connection.row(sql, &[id.into()]).await? {
        Some(row) => Ok((row.int(0)? + 1, Some(row.text(1)?))),
        None => Ok((0, None)),
    }
}

pub(crate) async fn insert(connection: &mut Connection, id: &str, message: &Message) -> Result<(), Error> {
    let sql = "INSERT INTO messages (conversation_id, position, id, parent, role, content, model, node, created_ms, words, extra)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    let values: [Value; 11] = [
        id.into(),
        message.position.into(),
        (&message.id).into(),
        message.parent.as_deref().into(),
        (&message.role).into(),
        (&message.content).into(),
        (&message.model).into(),
        (&message.node).into(),
        message.created_ms.into(),
        (&search::indexed(&message.content)).into(),
        message.extra.as_deref().into(),
    ];
    connection.execute(sql, &values).await.map(drop)
}

/// Writes what has changed of a conversation itself.
pub(crate) async fn write(connection: &mut Connection, conversation: &Conversation) -> Result<(), Error> {
    let sql = "UPDATE conversations SET title = ?2, created_ms = ?3, updated_ms = ?4, messages = ?5, revision = ?6, extra = ?7
               WHERE id = ?1";
    let values: [Value; 7] = [
        (&conversation.id).into(),
        (&conversation.title).into(),
        conversation.created_ms.into(),
        conversation.updated_ms.into(),
        conversation.messages.into(),
        conversation.revision.into(),
        conversation.extra.as_deref().into(),
    ];
    connection.execute(sql, &values).await.map(drop)
}

/// Counts a change of an owner's conversations, and makes whoever else changes them wait for this transaction's end.
pub(crate) async fn revise(connection: &mut Connection, owner: &str) -> Result<i64, Error> {
    let sql = "INSERT INTO versions VALUES (?1, 1) ON CONFLICT (name) DO UPDATE SET version = versions.version + 1
               RETURNING version";
    let row = connection.row(sql, &[(&counter(owner)).into()]).await?;
    row.ok_or(Error::Strange("a change was not counted"))?.int(0)
}

/// Under which name an owner's changes are counted.
pub(crate) fn counter(owner: &str) -> String {
    format!("conversations of {owner}")
}

pub(crate) async fn create(
    connection: &mut Connection,
    owner: &str,
    client_id: Option<&str>,
    title: String,
) -> Result<Conversation, Error> {
    let count = connection.row("SELECT COUNT(*) FROM conversations WHERE owner = ?1", &[owner.into()]).await?;
    if count.map_or(Ok(0), |row| row.int(0))? >= CONVERSATIONS_MAX {
        return Err(Error::Conflict(format!(
            "there are {CONVERSATIONS_MAX} conversations, as many as there may be: delete some"
        )));
    }
    let revision = revise(connection, owner).await?;
    let now = unix_ms();
    let id = format!("conv_{}", Uuid::now_v7().simple());
    let made = connection
        .execute(
            "INSERT INTO conversations (id, owner, client_id, title, created_ms, updated_ms, messages, revision)
             VALUES (?1, ?2, ?3, ?4, ?5, ?5, 0, ?6) ON CONFLICT DO NOTHING",
            &[(&id).into(), owner.into(), client_id.into(), (&title).into(), now.into(), revision.into()],
        )
        .await?;
    if made == 0 {
        return Err(Error::Conflict("the client has a conversation already".to_owned()));
    }
    let client_id = client_id.map(str::to_owned);
    Ok(Conversation { id, client_id, title, created_ms: now, updated_ms: now, messages: 0, revision, extra: None })
}

pub(crate) async fn find(connection: &mut Connection, owner: &str, id: &str) -> Result<Conversation, Error> {
    let sql = "SELECT id, client_id, title, created_ms, updated_ms, messages, revision, extra FROM conversations
               WHERE owner = ?1 AND (id = ?2 OR client_id = ?2)";
    let row = connection.row(sql, &[owner.into(), id.into()]).await?;
    row.as_ref().map(conversation).transpose()?.ok_or_else(|| missing(id))
}

pub(crate) fn full() -> Error {
    Error::Conflict(format!("a conversation has at most {MESSAGES_MAX} messages: begin another one"))
}

fn missing(id: &str) -> Error {
    let id: String = id.chars().take(100).collect();
    Error::Missing(format!("there is no conversation '{id}'"))
}

pub(crate) fn titled(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    line.chars().filter(|char| !char.is_control()).take(TITLE_CHARS_MAX).collect()
}

fn conversation(row: &Row) -> Result<Conversation, Error> {
    Ok(Conversation {
        id: row.text(0)?,
        client_id: row.maybe_text(1)?,
        title: row.text(2)?,
        created_ms: row.int(3)?,
        updated_ms: row.int(4)?,
        messages: row.int(5)?,
        revision: row.int(6)?,
        extra: row.maybe_text(7)?,
    })
}

fn message(row: &Row) -> Result<Message, Error> {
    Ok(Message {
        position: row.int(0)?,
        id: row.text(1)?,
        parent: row.maybe_text(2)?,
        role: row.text(3)?,
        content: row.text(4)?,
        model: row.text(5)?,
        node: row.text(6)?,
        created_ms: row.int(7)?,
        extra: row.maybe_text(8)?,
    })
}

fn as_json<S: serde::Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    let value = text.as_deref().and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    serde::Serialize::serialize(&value, serializer)
}
