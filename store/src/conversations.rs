//! Conversations and what was said in them. They belong to an owner; who else asks finds nothing.

use futures::FutureExt as _;
use uuid::Uuid;

use crate::{
    Error, Store,
    connection::{Connection, Row},
    search,
    store::page,
    time::unix_ms,
};

/// An owner with more should delete some.
const CONVERSATIONS_MAX: i64 = 100_000;
/// Nobody reads on.
const MESSAGES_MAX: i64 = 10_000;
/// As large as a request.
const CONTENT_BYTES_MAX: usize = 4 << 20;
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
                let sql = "SELECT id, client_id, title, created_ms, updated_ms, messages FROM conversations
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
                    Some(id) => (find(connection, &owner, id).await?.updated_ms, id.clone()),
                    None => (i64::MAX, String::new()),
                };
                connection
                    .rows(
                        "SELECT id, client_id, title, created_ms, updated_ms, messages FROM conversations
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

    /// One conversation.
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
                let renamed = Conversation { title, ..find(connection, &owner, &id).await? };
                let sql = "UPDATE conversations SET title = ?2 WHERE id = ?1";
                connection.execute(sql, &[(&id).into(), (&renamed.title).into()]).await?;
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
                find(connection, &owner, &id).await?;
                connection.execute("DELETE FROM conversations WHERE id = ?1", &[(&id).into()]).await.map(drop)
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
                find(connection, &owner, &id).await?;
                connection
                    .rows(
                        "SELECT position, role, content, model, node, created_ms FROM messages
                         WHERE conversation_id = ?1 ORDER BY position DESC LIMIT ?2",
                        &[(&id).into(), last.into()],
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
                let sql = "SELECT id, client_id, title, created_ms, updated_ms, messages FROM conversations
                           WHERE owner = ?1 AND id = ?2 {lock}";
                let row = connection.row(sql, &[(&owner).into(), (&id).into()]).await?;
                let mut found = row.as_ref().map(conversation).transpose()?.ok_or_else(|| missing(&id))?;
                if found.messages + new.len() as i64 > MESSAGES_MAX {
                    return Err(Error::Conflict(format!(
                        "a conversation has at most {MESSAGES_MAX} messages: begin another one"
                    )));
                }
                // Never before the last one, whatever the clock does.
                found.updated_ms = unix_ms().max(found.updated_ms);
                if found.title.is_empty() {
                    let first = new.iter().find(|message| message.role == "user");
                    found.title = first.map(|message| titled(&message.content)).unwrap_or_default();
                }
                for message in &new {
                    connection
                        .execute(
                            "INSERT INTO messages (conversation_id, position, role, content, model, node, created_ms, words)
                             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                            &[
                                (&id).into(),
                                found.messages.into(),
                                (&message.role).into(),
                                (&message.content).into(),
                                (&message.model).into(),
                                (&message.node).into(),
                                found.updated_ms.into(),
                                (&search::indexed(&message.content)).into(),
                            ],
                        )
                        .await?;
                    found.messages += 1;
                }
                connection
                    .execute(
                        "UPDATE conversations SET title = ?2, updated_ms = ?3, messages = ?4 WHERE id = ?1",
                        &[(&id).into(), (&found.title).into(), found.updated_ms.into(), found.messages.into()],
                    )
                    .await?;
                Ok(found)
            }
            .boxed()
        })
        .await
    }
}

async fn create(connection: &mut Connection, owner: &str, client_id: Option<&str>, title: String) -> Result<Conversation, Error> {
    let count = connection.row("SELECT COUNT(*) FROM conversations WHERE owner = ?1", &[owner.into()]).await?;
    if count.map_or(Ok(0), |row| row.int(0))? >= CONVERSATIONS_MAX {
        return Err(Error::Conflict(format!(
            "there are {CONVERSATIONS_MAX} conversations, as many as there may be: delete some"
        )));
    }
    let now = unix_ms();
    let id = format!("conv_{}", Uuid::now_v7().simple());
    let made = connection
        .execute(
            "INSERT INTO conversations VALUES (?1, ?2, ?3, ?4, ?5, ?5, 0) ON CONFLICT DO NOTHING",
            &[(&id).into(), owner.into(), client_id.into(), (&title).into(), now.into()],
        )
        .await?;
    if made == 0 {
        return Err(Error::Conflict("the client has a conversation already".to_owned()));
    }
    let client_id = client_id.map(str::to_owned);
    Ok(Conversation { id, client_id, title, created_ms: now, updated_ms: now, messages: 0 })
}

async fn find(connection: &mut Connection, owner: &str, id: &str) -> Result<Conversation, Error> {
    let sql = "SELECT id, client_id, title, created_ms, updated_ms, messages FROM conversations WHERE owner = ?1 AND id = ?2";
    let row = connection.row(sql, &[owner.into(), id.into()]).await?;
    row.as_ref().map(conversation).transpose()?.ok_or_else(|| missing(id))
}

fn missing(id: &str) -> Error {
    let id: String = id.chars().take(100).collect();
    Error::Missing(format!("there is no conversation '{id}'"))
}

fn titled(text: &str) -> String {
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
    })
}

fn message(row: &Row) -> Result<Message, Error> {
    Ok(Message {
        position: row.int(0)?,
        role: row.text(1)?,
        content: row.text(2)?,
        model: row.text(3)?,
        node: row.text(4)?,
        created_ms: row.int(5)?,
    })
}
