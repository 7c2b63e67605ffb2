//! Files: uploads in pieces, and what batches leave behind, which is read out of their lines.

use futures::FutureExt as _;
use uuid::Uuid;

use crate::{
    Error, Store,
    connection::{Connection, Row},
    store::page,
    time::unix_ms,
};

/// How large a piece is: one is in memory at a time, and becomes a row.
pub const PIECE_BYTES: usize = 256 << 10;

/// An owner with more should delete some.
const FILES_MAX: i64 = 10_000;
const NAME_CHARS_MAX: usize = 255;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilePurpose {
    /// The requests of a batch.
    Batch,
    /// What a batch answered, or why it did not.
    BatchOutput,
}

impl FilePurpose {
    /// As OpenAI says it.
    pub fn name(self) -> &'static str {
        match self {
            FilePurpose::Batch => "batch",
            FilePurpose::BatchOutput => "batch_output",
        }
    }
}

/// A file without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its name for programs.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// What it is for.
    pub purpose: FilePurpose,
    /// Its length.
    pub bytes: i64,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// Whose lines it is made of.
    pub batch_id: Option<String>,
}

/// What a file is to be.
#[derive(Clone, Debug)]
pub struct NewFile {
    /// Whose.
    pub owner: String,
    /// Its name for people.
    pub name: String,
}

impl Store {
    /// Begins an upload. Nobody sees the file before it is complete.
    ///
    /// # Errors
    /// When it can't be written, or the owner has too many.
    pub async fn begin_file(&self, new: NewFile) -> Result<File, Error> {
        self.write(move |connection| {
            async move {
                let sql = "SELECT COUNT(*) FROM files WHERE owner = ?1";
                let count = connection.row(sql, &[(&new.owner).into()]).await?;
                if count.map_or(Ok(0), |row| row.int(0))? >= FILES_MAX {
                    return Err(Error::Conflict(format!("there are {FILES_MAX} files, as many as there may be: delete some")));
                }
                let name = new.name.chars().filter(|char| !char.is_control()).take(NAME_CHARS_MAX).collect();
                let id = format!("file-{}", Uuid::now_v7().simple());
                let file = File { id, name, purpose: FilePurpose::Batch, bytes: 0, created_ms: unix_ms(), batch_id: None };
                insert(connection, &new.owner, &file, false).await?;
                Ok(file)
            }
            .boxed()
        })
        .await
    }

    /// Adds a piece to an upload.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn add_piece(&self, id: &str, position: u32, content: &[u8]) -> Result<(), Error> {
        let values = [id.into(), position.into(), content.into()];
        self.change("INSERT INTO pieces VALUES (?1, ?2, ?3)", values).await
    }

    /// Ends an upload. From now on the file is there, whatever dies.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn complete_file(&self, mut file: File, bytes: u64) -> Result<File, Error> {
        file.bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.write_durably(move |connection| {
            async move {
                let sql = "UPDATE files SET complete = 1, bytes = ?2 WHERE id = ?1";
                connection.execute(sql, &[(&file.id).into(), file.bytes.into()]).await?;
                Ok(file)
            }
            .boxed()
        })
        .await
    }

    /// Forgets an upload that came to nothing.
    ///
    /// # Errors
    /// When it can't be deleted.
    pub async fn abandon_file(&self, id: &str) -> Result<(), Error> {
        self.change("DELETE FROM files WHERE id = ?1 AND complete = 0", [id.into()]).await
    }

    /// An owner's complete files, of all purposes or of one by its name, the newest first, those behind the one named.
    ///
    /// # Errors
    /// When the store can't be asked.
    pub async fn files(
        &self,
        owner: &str,
        purpose: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<(Vec<File>, bool), Error> {
        let values = [owner.into(), after.into(), (i64::from(limit) + 1).into(), purpose.into()];
        let sql = "SELECT id, name, purpose, bytes, created_ms, batch_id FROM files
                   WHERE owner = ?1 AND complete = 1 AND (CAST(?2 AS TEXT) IS NULL OR id < CAST(?2 AS TEXT))
                   AND (CAST(?4 AS TEXT) IS NULL OR purpose = CAST(?4 AS TEXT)) ORDER BY id DESC LIMIT ?3";
        let rows = self.rows(sql, values);
        Ok(page(rows.await?.iter().map(file).collect::<Result<_, _>>()?, limit))
    }

    /// One file.
    ///
    /// # Errors
    /// When the store can't be asked, or there is no such file.
    pub async fn file(&self, owner: &str, id: &str) -> Result<File, Error> {
        let (owner, id) = (owner.to_owned(), id.to_owned());
        self.write(move |connection| async move { find(connection, &owner, &id).await }.boxed()).await
    }

    /// Deletes a file.
    ///
    /// # Errors
    /// When it can't be deleted, there is no such file, or a batch still reads it.
    pub async fn delete_file(&self, owner: &str, id: &str) -> Result<(), Error> {
        let (owner, id) = (owner.to_owned(), id.to_owned());
        self.write_durably(move |connection| {
            async move {
                find(connection, &owner, &id).await?;
                let reading = "SELECT id FROM batches WHERE input_file_id = ?1 AND status = 'validating'";
                if connection.row(reading, &[(&id).into()]).await?.is_some() {
                    return Err(Error::Conflict("a batch is reading the file: delete it later, or cancel the batch".to_owned()));
                }
                connection.execute("DELETE FROM files WHERE id = ?1", &[(&id).into()]).await.map(drop)
            }
            .boxed()
        })
        .await
    }

    /// A piece of an upload; `None` behind the last.
    ///
    /// # Errors
    /// When the store can't be asked.
    pub async fn piece(&self, id: &str, position: u32) -> Result<Option<Vec<u8>>, Error> {
        let sql = "SELECT content FROM pieces WHERE file_id = ?1 AND position = ?2";
        let rows = self.rows(sql, [id.into(), position.into()]).await?;
        rows.first().map(|row| row.bytes(0)).transpose()
    }
}

pub(crate) async fn insert(connection: &mut Connection, owner: &str, file: &File, complete: bool) -> Result<(), Error> {
    connection
        .execute(
            "INSERT INTO files VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            &[
                (&file.id).into(),
                owner.into(),
                (&file.name).into(),
                file.purpose.name().into(),
                file.bytes.into(),
                file.created_ms.into(),
                i64::from(complete).into(),
                file.batch_id.as_deref().into(),
            ],
        )
        .await
        .map(drop)
}

pub(crate) async fn find(connection: &mut Connection, owner: &str, id: &str) -> Result<File, Error> {
    let sql = "SELECT id, name, purpose, bytes, created_ms, batch_id FROM files WHERE owner = ?1 AND id = ?2 AND complete = 1";
    let row = connection.row(sql, &[owner.into(), id.into()]).await?;
    let missing = || {
        let id: String = id.chars().take(100).collect();
        Error::Missing(format!("there is no file '{id}'"))
    };
    row.as_ref().map(file).transpose()?.ok_or_else(missing)
}

fn file(row: &Row) -> Result<File, Error> {
    let purpose = match &*row.text(2)? {
        "batch" => FilePurpose::Batch,
        "batch_output" => FilePurpose::BatchOutput,
        _ => return Err(Error::Strange("a file's purpose")),
    };
    Ok(File {
        id: row.text(0)?,
        name: row.text(1)?,
        purpose,
        bytes: row.int(3)?,
        created_ms: row.int(4)?,
        batch_id: row.maybe_text(5)?,
    })
}
