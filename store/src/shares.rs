//! Links to what a conversation was at a moment: whoever has one reads it without a key, until it is revoked.

use futures::FutureExt as _;
use rand::{TryRngCore as _, rngs::OsRng};

use crate::{
    Error, Store,
    conversations::{find, revise},
    time::unix_ms,
};

/// Nobody guesses them.
const ID_BYTES: usize = 16;

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// What is in the link.
    pub id: String,
    /// Of the snapshot, in Unix milliseconds.
    pub created_ms: i64,
}

impl Store {
    /// Shares a snapshot of a conversation, in place of the one that was shared before, under the same link.
    ///
    /// # Errors
    /// When it can't be written, or there is no such conversation.
    pub async fn share(&self, owner: &str, id: &str, snapshot: &str) -> Result<Share, Error> {
        let (owner, id, snapshot) = (owner.to_owned(), id.to_owned(), snapshot.to_owned());
        self.write_durably(move |connection| {
            async move {
                // Two that share at once get the same link.
                revise(connection, &owner).await?;
                let found = find(connection, &owner, &id).await?;
                let sql = "INSERT INTO shares VALUES (?1, ?2, ?3, ?4)
                           ON CONFLICT (conversation_id) DO UPDATE SET created_ms = ?3, snapshot = ?4 RETURNING id, created_ms";
                let values = [(&unguessable()).into(), (&found.id).into(), unix_ms().into(), (&snapshot).into()];
                let row = connection.row(sql, &values).await?.ok_or(Error::Strange("a link was not made"))?;
                Ok(Share { id: row.text(0)?, created_ms: row.int(1)? })
            }
            .boxed()
        })
        .await
    }

    /// A conversation's link, where it has one.
    ///
    /// # Errors
    /// When the store can't be asked, or there is no such conversation.
    pub async fn share_of(&self, owner: &str, id: &str) -> Result<Option<Share>, Error> {
        let (owner, id) = (owner.to_owned(), id.to_owned());
        self.write(move |connection| {
            async move {
                let found = find(connection, &owner, &id).await?;
                let sql = "SELECT id, created_ms FROM shares WHERE conversation_id = ?1";
                let row = connection.row(sql, &[(&found.id).into()]).await?;
                row.map(|row| Ok(Share { id: row.text(0)?, created_ms: row.int(1)? })).transpose()
            }
            .boxed()
        })
        .await
    }

    /// Makes a conversation's link lead nowhere.
    ///
    /// # Errors
    /// When it can't be written, or there is no such conversation.
    pub async fn revoke_share(&self, owner: &str, id: &str) -> Result<(), Error> {
        let (owner, id) = (owner.to_owned(), id.to_owned());
        self.write_durably(move |connection| {
            async move {
                let found = find(connection, &owner, &id).await?;
                connection.execute("DELETE FROM shares WHERE conversation_id = ?1", &[(&found.id).into()]).await.map(drop)
            }
            .boxed()
        })
        .await
    }

    /// What a link leads to.
    ///
    /// # Errors
    /// When the store can't be asked, or the link leads nowhere.
    pub async fn shared(&self, id: &str) -> Result<String, Error> {
        let rows = self.rows("SELECT snapshot FROM shares WHERE id = ?1", [id.into()]).await?;
        match rows.first() {
            Some(row) => row.text(0),
            None => Err(Error::Missing("this link leads nowhere: it was revoked, or never was".to_owned())),
        }
    }
}

fn unguessable() -> String {
    let mut bytes = [0; ID_BYTES];
    OsRng.try_fill_bytes(&mut bytes).expect("the system has random numbers");
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
