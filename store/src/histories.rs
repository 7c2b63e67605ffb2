//! Histories that a client keeps itself as well, and brings here: under names of its own, changed by many places at once.

use futures::FutureExt as _;

use crate::{
    Conversation, Error, Message, Store,
    connection::{Connection, Value},
    conversations::{CONTENT_BYTES_MAX, MESSAGES_MAX, counter, create, end_of, find, full, insert, revise, titled, write},
    search,
    time::unix_ms,
};

/// What is to become of a conversation; what is `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// The revision that its client knows; one that was deleted since is not begun again. `None`: it never was here.
    pub known: Option<i64>,
    /// Its name for people.
    pub title: Option<String>,
    /// Unix milliseconds.
    pub created_ms: Option<i64>,
    /// Of the last message, in Unix milliseconds.
    pub updated_ms: Option<i64>,
    /// What its client keeps with it: a JSON value.
    pub extra: Option<String>,
    /// New ones, and those that replace others of the same name. Their positions are not read.
    pub messages: Vec<Message>,
    /// Names of those that are no longer wanted.
    pub removed: Vec<String>,
}

/// A conversation that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// As it is now.
    pub conversation: Conversation,
    /// The revision that it had before; 0 when there was none. Who knows another one has something to read.
    pub before: i64,
}

impl Store {
    /// Counts the changes of an owner's conversations.
    ///
    /// # Errors
    /// When the store can't be asked.
    pub async fn revision(&self, owner: &str) -> Result<i64, Error> {
        let rows = self.rows("SELECT version FROM versions WHERE name = ?1", [(&counter(owner)).into()]).await?;
        rows.first().map_or(Ok(0), |row| row.int(0))
    }

    /// Changes a conversation, or begins it under its client's name.
    ///
    /// # Errors
    /// When it can't be written, is full, or was deleted meanwhile.
    pub async fn change_conversation(&self, owner: &str, client_id: &str, changes: Changes) -> Result<Changed, Error> {
        if changes.messages.iter().any(|message| message.content.len() > CONTENT_BYTES_MAX) {
            return Err(Error::Conflict(format!("a message has at most {CONTENT_BYTES_MAX} bytes")));
        }
        let (owner, client_id) = (owner.to_owned(), client_id.to_owned());
        self.write_durably(move |connection| async move { change(connection, &owner, &client_id, changes).await }.boxed()).await
    }
}

async fn change(connection: &mut Connection, owner: &str, client_id: &str, changes: Changes) -> Result<Changed, Error> {
    let revision = revise(connection, owner).await?;
    let (mut found, before) = match find(connection, owner, client_id).await {
        Ok(found) => {
            let before = found.revision;
            (found, before)
        }
        Err(Error::Missing(_)) if changes.known.is_none() => {
            (create(connection, owner, Some(client_id), String::new()).await?, 0)
        }
        Err(error) => return Err(error),
    };
    found.revision = found.revision.max(revision);
    for id in &changes.removed {
        let sql = "DELETE FROM messages WHERE conversation_id = ?1 AND id = ?2";
        found.messages -= connection.execute(sql, &[(&found.id).into(), id.into()]).await? as i64;
    }
    let (mut position, _) = end_of(connection, &found.id).await?;
    for message in changes.messages {
        if !replace(connection, &found.id, &message).await? {
            insert(connection, &found.id, &Message { position, ..message }).await?;
            found.messages += 1;
            position += 1;
        }
    }
    if found.messages > MESSAGES_MAX {
        return Err(full());
    }
    let now = unix_ms();
    found.title = changes.title.map_or(found.title, |title| titled(&title));
    found.created_ms = changes.created_ms.map_or(found.created_ms, |created| created.clamp(0, now));
    // A clock that goes wrong must not put it above all others for ever.
    found.updated_ms = changes.updated_ms.unwrap_or(now).clamp(0, now);
    found.extra = changes.extra.or(found.extra);
    write(connection, &found).await?;
    Ok(Changed { conversation: found, before })
}

/// `false`: there is none of that name.
async fn replace(connection: &mut Connection, id: &str, message: &Message) -> Result<bool, Error> {
    let sql = "UPDATE messages SET parent = ?3, role = ?4, content = ?5, model = ?6, node = ?7, created_ms = ?8, words = ?9, extra = ?10
               WHERE conversation_id = ?1 AND id = ?2";
    let values: [Value; 10] = [
        id.into(),
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
    Ok(connection.execute(sql, &values).await? > 0)
}
