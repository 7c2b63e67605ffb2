//! Keys: who may ask, for what, and how much a minute.
//!
//! An API keeps all of them in memory and looks every second whether they have changed, so that asking costs no question to the
//! store, and who has a key is served while the store is away.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::FutureExt as _;
use uuid::Uuid;

use crate::{
    Error, Store,
    connection::{Connection, Row},
    secret::{self, Secret},
    time::unix_ms,
};

/// As many as an API holds in memory without anybody noticing.
const KEYS_MAX: i64 = 10_000;

const NAME_CHARS_MAX: usize = 100;
const MODELS_MAX: usize = 100;
const MODEL_BYTES_MAX: usize = 256;

/// A key, but for its secret.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Key {
    /// Stays the same when the secret changes: histories, usage and lanes belong to it.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// The beginning of its secret.
    pub shown: String,
    /// What it may ask for; empty: everything.
    pub models: Vec<String>,
    /// Requests that it may make; `None`: as many as it likes.
    pub requests_per_minute: Option<u32>,
    /// Tokens, of prompts and answers together, that it may use.
    pub tokens_per_minute: Option<u32>,
    /// It may change the tree, and sees what others used.
    pub operator: bool,
    /// In Unix milliseconds.
    pub created_ms: i64,
    /// In Unix milliseconds; `None` while it is good.
    pub revoked_ms: Option<i64>,
}

impl Key {
    /// Whether a name is among those that it may ask for.
    pub fn names(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|allowed| allowed == model)
    }
}

/// What a key is to be.
#[derive(Clone, Debug, Default)]
pub struct NewKey {
    /// What people call it.
    pub name: String,
    /// What it may ask for; empty: everything.
    pub models: Vec<String>,
    /// Requests that it may make.
    pub requests_per_minute: Option<u32>,
    /// Tokens that it may use.
    pub tokens_per_minute: Option<u32>,
    /// It may change the tree, and sees what others used.
    pub operator: bool,
}

/// All keys, by what is kept of their secrets.
#[derive(Debug, Default)]
pub struct KeyTable {
    version: i64,
    /// Any was ever made.
    any: bool,
    by_hash: HashMap<[u8; 32], Entry>,
    by_id: HashMap<String, Arc<Key>>,
}

#[derive(Debug)]
struct Entry {
    key: Arc<Key>,
    /// When a former secret stops to be good.
    until_ms: Option<i64>,
}

impl KeyTable {
    /// Whether no key was ever made. One that was revoked counts, so that revoking the last one opens nothing.
    pub fn is_empty(&self) -> bool {
        !self.any
    }

    /// Whose secret it is, good or revoked.
    pub fn find(&self, secret: &str, now_ms: i64) -> Option<&Arc<Key>> {
        if secret.len() > secret::TEXT_BYTES_MAX {
            return None;
        }
        let entry = self.by_hash.get(&secret::hash(secret))?;
        entry.until_ms.is_none_or(|until| now_ms < until).then_some(&entry.key)
    }

    /// The key of an id, when it was not revoked.
    pub fn by_id(&self, id: &str) -> Option<&Arc<Key>> {
        self.by_id.get(id).filter(|key| key.revoked_ms.is_none())
    }
}

impl Store {
    /// Makes a key.
    ///
    /// # Errors
    /// When one of that name is good, or there are too many.
    pub async fn create_key(&self, new: NewKey) -> Result<(Key, Secret), Error> {
        check(&new)?;
        let secret = Secret::new();
        let key = Key {
            id: format!("key_{}", Uuid::now_v7().simple()),
            name: new.name,
            shown: secret.shown(),
            models: new.models,
            requests_per_minute: new.requests_per_minute,
            tokens_per_minute: new.tokens_per_minute,
            operator: new.operator,
            created_ms: unix_ms(),
            revoked_ms: None,
        };
        let hash = secret::hash(secret.reveal());
        let made = self.write_durably(move |connection| {
            async move {
                changed(connection).await?;
                let count = connection.row("SELECT COUNT(*) FROM keys", &[]).await?;
                if count.map_or(Ok(0), |row| row.int(0))? >= KEYS_MAX {
                    return Err(Error::Conflict(format!("there are {KEYS_MAX} keys already, as many as there may be")));
                }
                let same = "SELECT id FROM keys WHERE name = ?1 AND revoked_ms IS NULL";
                if connection.row(same, &[(&key.name).into()]).await?.is_some() {
                    return Err(Error::Conflict(format!("there is a key named `{}` already", key.name)));
                }
                let models = serde_json::to_string(&key.models).expect("texts are JSON");
                connection
                    .execute(
                        "INSERT INTO keys (id, name, hash, shown, models, requests_per_minute, tokens_per_minute, created_ms, operator)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                        &[
                            (&key.id).into(),
                            (&key.name).into(),
                            hash[..].into(),
                            (&key.shown).into(),
                            (&models).into(),
                            key.requests_per_minute.into(),
                            key.tokens_per_minute.into(),
                            key.created_ms.into(),
                            i64::from(key.operator).into(),
                        ],
                    )
                    .await?;
                // Made now, so that whoever takes of it finds a row to lock.
                let bucket = "INSERT INTO buckets (key_id, requests, tokens, at_ms) VALUES (?1, 0, 0, ?2)";
                connection.execute(bucket, &[(&key.id).into(), key.created_ms.into()]).await?;
                Ok(key)
            }
            .boxed()
        });
        Ok((made.await?, secret))
    }

    /// All keys, the oldest first.
    ///
    /// # Errors
    /// When the store can't be asked.
    pub async fn list_keys(&self) -> Result<Vec<Key>, Error> {
        let rows = self.write(|connection| {
            connection
                .rows(
                    "SELECT id, name, shown, models, requests_per_minute, tokens_per_minute, created_ms, revoked_ms, operator
                     FROM keys ORDER BY id",
                    &[],
                )
                .boxed()
        });
        rows.await?.iter().map(key).collect()
    }

    /// Ends a key, by its name or its id.
    ///
    /// # Errors
    /// When there is none that is good.
    pub async fn revoke_key(&self, name: &str) -> Result<Key, Error> {
        let name = name.to_owned();
        let revoked = self.write_durably(move |connection| {
            async move {
                changed(connection).await?;
                let mut key = good(connection, &name).await?;
                key.revoked_ms = Some(unix_ms());
                let revoke = "UPDATE keys SET revoked_ms = ?2, former_hash = NULL WHERE id = ?1";
                connection.execute(revoke, &[(&key.id).into(), key.revoked_ms.into()]).await?;
                Ok(key)
            }
            .boxed()
        });
        revoked.await
    }

    /// Gives a key another secret. The former one stays good for `grace`.
    ///
    /// # Errors
    /// When there is no such key.
    pub async fn rotate_key(&self, name: &str, grace: Duration) -> Result<(Key, Secret), Error> {
        let (name, secret) = (name.to_owned(), Secret::new());
        let (hash, shown) = (secret::hash(secret.reveal()), secret.shown());
        let rotated = self.write_durably(move |connection| {
            async move {
                changed(connection).await?;
                let mut key = good(connection, &name).await?;
                key.shown = shown;
                let until = unix_ms().saturating_add(i64::try_from(grace.as_millis()).unwrap_or(i64::MAX));
                connection
                    .execute(
                        "UPDATE keys SET former_hash = hash, former_until_ms = ?2, hash = ?3, shown = ?4 WHERE id = ?1",
                        &[(&key.id).into(), until.into(), hash[..].into(), (&key.shown).into()],
                    )
                    .await?;
                Ok(key)
            }
            .boxed()
        });
        Ok((rotated.await?, secret))
    }

    /// All keys, when they are others than those of `known`.
    ///
    /// # Errors
    /// When the store can't be asked.
    pub async fn keys_since(&self, known: Option<&KeyTable>) -> Result<Option<KeyTable>, Error> {
        let known = known.map(|table| table.version);
        let read = self.write(move |connection| {
            async move {
                let version = connection.row("SELECT version FROM versions WHERE name = 'keys'", &[]).await?;
                let version = version.map_or(Ok(0), |row| row.int(0))?;
                if known == Some(version) {
                    return Ok(None);
                }
                let rows = connection
                    .rows(
                        "SELECT id, name, shown, models, requests_per_minute, tokens_per_minute, created_ms, revoked_ms, operator,
                                hash, former_hash, former_until_ms
                         FROM keys ORDER BY id",
                        &[],
                    )
                    .await?;
                Ok(Some((version, rows)))
            }
            .boxed()
        });
        let Some((version, rows)) = read.await? else { return Ok(None) };
        let mut table = KeyTable { version, any: !rows.is_empty(), ..KeyTable::default() };
        let of_32 = |bytes: Vec<u8>| <[u8; 32]>::try_from(bytes).map_err(|_| Error::Strange("a key's hash"));
        for row in &rows {
            let key = Arc::new(key(row)?);
            if let (Ok(former), Some(until)) = (row.bytes(10), row.maybe_int(11)?) {
                table.by_hash.insert(of_32(former)?, Entry { key: Arc::clone(&key), until_ms: Some(until) });
            }
            table.by_hash.insert(of_32(row.bytes(9)?)?, Entry { key: Arc::clone(&key), until_ms: None });
            table.by_id.insert(key.id.clone(), key);
        }
        Ok(Some(table))
    }
}

/// Says that the keys are others now. First in a transaction, it makes those that change them wait for each other.
async fn changed(connection: &mut Connection) -> Result<(), Error> {
    connection.execute("UPDATE versions SET version = version + 1 WHERE name = 'keys'", &[]).await.map(drop)
}

async fn good(connection: &mut Connection, name: &str) -> Result<Key, Error> {
    let row = connection
        .row(
            "SELECT id, name, shown, models, requests_per_minute, tokens_per_minute, created_ms, revoked_ms, operator
             FROM keys WHERE (name = ?1 OR id = ?1) AND revoked_ms IS NULL",
            &[name.into()],
        )
        .await?;
    row.as_ref().map(key).transpose()?.ok_or_else(|| Error::Missing(format!("no good key is named `{name}`")))
}

fn key(row: &Row) -> Result<Key, Error> {
    let limit = |column| Ok(row.maybe_int(column)?.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)));
    Ok(Key {
        id: row.text(0)?,
        name: row.text(1)?,
        shown: row.text(2)?,
        models: serde_json::from_str(&row.text(3)?).map_err(|_| Error::Strange("a key's models"))?,
        requests_per_minute: limit(4)?,
        tokens_per_minute: limit(5)?,
        created_ms: row.int(6)?,
        revoked_ms: row.maybe_int(7)?,
        operator: row.int(8)? != 0,
    })
}

fn check(new: &NewKey) -> Result<(), Error> {
    let name = new.name.trim();
    if name.is_empty() || name != new.name || name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        return Err(Error::Conflict(format!("a key's name is 1 to {NAME_CHARS_MAX} printable characters")));
    }
    if new.models.len() > MODELS_MAX || new.models.iter().any(|model| model.is_empty() || model.len() > MODEL_BYTES_MAX) {
        return Err(Error::Conflict(format!("a key names at most {MODELS_MAX} models, each of 1 to {MODEL_BYTES_MAX} bytes")));
    }
    if new.requests_per_minute == Some(0) || new.tokens_per_minute == Some(0) {
        return Err(Error::Conflict("a key that may nothing is none: give it at least 1, or no limit".to_owned()));
    }
    Ok(())
}
