//! Batches: what was promised, who works on it, and how far it is. Their lines are in `lines.rs`.
//!
//! One API at a time works on a batch: it claims it for a while, and again before that has passed. Whoever has lost its claim writes
//! nothing more to it.

use futures::FutureExt as _;
use uuid::Uuid;

use crate::{
    Error, Store,
    connection::{Connection, Row, Value},
    files::{self, File, FilePurpose},
    lines::{self, Claim, LineState},
    store::page,
    time::unix_ms,
};

/// Of one owner, that have not ended.
const OPEN_MAX: i64 = 1_000;

/// How far a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchStatus {
    /// Its lines are being read.
    Validating,
    /// They are being answered.
    InProgress,
    /// It ends as soon as what runs has been given up.
    Cancelling,
    /// All lines were answered.
    Completed,
    /// Its file was no good.
    Failed,
    /// Its time was up.
    Expired,
    /// Somebody wanted no more.
    Cancelled,
}

const STATUSES: [(BatchStatus, &str); 7] = [
    (BatchStatus::Validating, "validating"),
    (BatchStatus::InProgress, "in_progress"),
    (BatchStatus::Cancelling, "cancelling"),
    (BatchStatus::Completed, "completed"),
    (BatchStatus::Failed, "failed"),
    (BatchStatus::Expired, "expired"),
    (BatchStatus::Cancelled, "cancelled"),
];

impl BatchStatus {
    /// As OpenAI says it.
    pub fn name(self) -> &'static str {
        STATUSES.iter().find(|(status, _)| *status == self).map_or("", |(_, name)| name)
    }
}

/// How a batch ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All lines were answered.
    Completed,
    /// What was not answered is told so.
    Expired,
    /// What was not answered is told so.
    Cancelled,
    /// Its file was no good.
    Failed(Vec<Problem>),
}

/// What is wrong with a batch's file.
#[derive(Clone, Debug, PartialEq, Eq, schemars::JsonSchema, serde::Serialize, serde::Deserialize)]
pub struct Problem {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// The part of the line.
    pub param: Option<String>,
    /// Counted from 1.
    pub line: Option<u64>,
}

/// Lines of a batch, by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, schemars::JsonSchema, serde::Serialize)]
pub struct Counts {
    /// All of them; 0 until they were read.
    pub total: i64,
    /// Answered well.
    pub completed: i64,
    /// The others that have ended.
    pub failed: i64,
}

/// A batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its name.
    pub id: String,
    /// Whose.
    pub owner: String,
    /// The path that all its lines ask.
    pub endpoint: String,
    /// As it was asked for, such as 24h.
    pub completion_window: String,
    /// A JSON object of the client's.
    pub metadata: Option<String>,
    /// Its lines' file.
    pub input_file_id: String,
    /// Good answers, once it has ended.
    pub output_file_id: Option<String>,
    /// Failed lines, once it has ended.
    pub error_file_id: Option<String>,
    /// How far it is.
    pub status: BatchStatus,
    /// What is wrong with its file.
    pub problems: Vec<Problem>,
    /// How far its lines are.
    pub counts: Counts,
    /// All times are Unix milliseconds.
    pub created_ms: i64,
    /// When it is given up.
    pub expires_ms: i64,
    /// When its lines had been read.
    pub in_progress_ms: Option<i64>,
    /// When it ended, however that was.
    pub ended_ms: Option<i64>,
    /// When somebody wanted no more.
    pub cancelling_ms: Option<i64>,
}

/// What a batch is to be.
#[derive(Clone, Debug)]
pub struct NewBatch {
    /// Whose.
    pub owner: String,
    /// The path that all its lines ask.
    pub endpoint: String,
    /// As it was asked for, such as 24h.
    pub completion_window: String,
    /// A JSON object.
    pub metadata: Option<String>,
    /// Its lines' file.
    pub input_file_id: String,
    /// How long it may take.
    pub window_ms: i64,
}

macro_rules! batch_columns {
    ($($more:literal),*) => {
        concat!(
            "SELECT id, owner, endpoint, completion_window, metadata, input_file_id, output_file_id, error_file_id, status, problems,
                    total, completed, failed, created_ms, expires_ms, in_progress_ms, ended_ms, cancelling_ms FROM batches ",
            $($more),*
        )
    };
}

impl Store {
    /// Takes a batch on. From now on it is remembered, whatever dies.
    ///
    /// # Errors
    /// When it can't be written, there is no such file, or the owner has too many.
    pub async fn create_batch(&self, new: NewBatch) -> Result<Batch, Error> {
        self.write_durably(move |connection| {
            async move {
                files::find(connection, &new.owner, &new.input_file_id).await?;
                let open = "SELECT COUNT(*) FROM batches WHERE owner = ?1 AND ended_ms IS NULL";
                let count = connection.row(open, &[(&new.owner).into()]).await?;
                if count.map_or(Ok(0), |row| row.int(0))? >= OPEN_MAX {
                    return Err(Error::Conflict(format!(
                        "{OPEN_MAX} batches are under way, as many as there may be: wait for some"
                    )));
                }
                let now = unix_ms();
                let batch = Batch {
                    id: format!("batch_{}", Uuid::now_v7().simple()),
                    owner: new.owner,
                    endpoint: new.endpoint,
                    completion_window: new.completion_window,
                    metadata: new.metadata,
                    input_file_id: new.input_file_id,
                    output_file_id: None,
                    error_file_id: None,
                    status: BatchStatus::Validating,
                    problems: Vec::new(),
                    counts: Counts::default(),
                    created_ms: now,
                    expires_ms: now.saturating_add(new.window_ms),
                    in_progress_ms: None,
                    ended_ms: None,
                    cancelling_ms: None,
                };
                connection
                    .execute(
                        "INSERT INTO batches (id, owner, endpoint, completion_window, metadata, input_file_id, status, total,
                            completed, failed, created_ms, expires_ms, claimed_until_ms)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, 0, 0, ?8, ?9, 0)",
                        &[
                            (&batch.id).into(),
                            (&batch.owner).into(),
                            (&batch.endpoint).into(),
                            (&batch.completion_window).into(),
                            batch.metadata.as_deref().into(),
                            (&batch.input_file_id).into(),
                            batch.status.name().into(),
                            batch.created_ms.into(),
                            batch.expires_ms.into(),
                        ],
                    )
                    .await?;
                Ok(batch)
            }
            .boxed()
        })
        .await
    }

    /// An owner's batches, the newest first, those behind the one named.
    ///
    /// # Errors
    /// When the store can't be asked.
    pub async fn batches(&self, owner: &str, after: Option<&str>, limit: u32) -> Result<(Vec<Batch>, bool), Error> {
        let values = [owner.into(), after.into(), (i64::from(limit) + 1).into()];
        let sql =
            batch_columns!("WHERE owner = ?1 AND (CAST(?2 AS TEXT) IS NULL OR id < CAST(?2 AS TEXT)) ORDER BY id DESC LIMIT ?3");
        let rows = self.rows(sql, values).await?;
        Ok(page(rows.iter().map(batch).collect::<Result<_, _>>()?, limit))
    }

    /// One batch.
    ///
    /// # Errors
    /// When the store can't be asked, or there is no such batch.
    pub async fn batch(&self, owner: &str, id: &str) -> Result<Batch, Error> {
        let (owner, id) = (owner.to_owned(), id.to_owned());
        let found = self.write(move |connection| {
            async move {
                let row =
                    connection.row(batch_columns!("WHERE owner = ?1 AND id = ?2"), &[(&owner).into(), (&id).into()]).await?;
                row.as_ref().map(batch).transpose()?.ok_or_else(|| missing(&id))
            }
            .boxed()
        });
        found.await
    }

    /// Asks for no more of a batch. What has been answered stays.
    ///
    /// # Errors
    /// When it can't be written, there is no such batch, or it has ended.
    pub async fn cancel_batch(&self, owner: &str, id: &str) -> Result<Batch, Error> {
        let (owner, id) = (owner.to_owned(), id.to_owned());
        self.write_durably(move |connection| {
            async move {
                let sql = batch_columns!("WHERE owner = ?1 AND id = ?2 {lock}");
                let row = connection.row(sql, &[(&owner).into(), (&id).into()]).await?;
                let mut found = row.as_ref().map(batch).transpose()?.ok_or_else(|| missing(&id))?;
                if found.ended_ms.is_some() {
                    return Err(Error::Conflict(format!("the batch has ended already: it is {}", found.status.name())));
                }
                if found.status != BatchStatus::Cancelling {
                    (found.status, found.cancelling_ms) = (BatchStatus::Cancelling, Some(unix_ms()));
                    let values = [(&id).into(), found.status.name().into(), found.cancelling_ms.into()];
                    connection.execute("UPDATE batches SET status = ?2, cancelling_ms = ?3 WHERE id = ?1", &values).await?;
                }
                Ok(found)
            }
            .boxed()
        })
        .await
    }

    /// Claims the oldest batch that has not ended and that nobody works on.
    ///
    /// # Errors
    /// When the store can't be asked.
    pub async fn claim_batch(&self, claimant: &str, lease_ms: i64) -> Result<Option<(Batch, Claim)>, Error> {
        let claimant = claimant.to_owned();
        self.write(move |connection| {
            async move {
                let now = unix_ms();
                let sql = batch_columns!(
                    "WHERE status IN ('validating', 'in_progress', 'cancelling') AND claimed_until_ms < ?1 ORDER BY id LIMIT 1 {free}"
                );
                let Some(row) = connection.row(sql, &[now.into()]).await? else { return Ok(None) };
                let batch = batch(&row)?;
                let claim = Claim { batch_id: batch.id.clone(), claimant };
                let values = [(&claim.batch_id).into(), (&claim.claimant).into(), now.saturating_add(lease_ms).into()];
                connection.execute("UPDATE batches SET claimed_by = ?2, claimed_until_ms = ?3 WHERE id = ?1", &values).await?;
                Ok(Some((batch, claim)))
            }
            .boxed()
        })
        .await
    }

    /// Keeps a claim for another while, and says how the batch is. `None`: the claim is lost.
    ///
    /// # Errors
    /// When the store can't be asked.
    pub async fn renew_claim(&self, claim: &Claim, lease_ms: i64) -> Result<Option<Batch>, Error> {
        let claim = claim.clone();
        self.write(move |connection| {
            async move {
                let until: Value = unix_ms().saturating_add(lease_ms).into();
                let values = [(&claim.batch_id).into(), (&claim.claimant).into(), until];
                let sql = "UPDATE batches SET claimed_until_ms = ?3 WHERE id = ?1 AND claimed_by = ?2";
                if connection.execute(sql, &values).await? == 0 {
                    return Ok(None);
                }
                let row = connection.row(batch_columns!("WHERE id = ?1"), &[(&claim.batch_id).into()]).await?;
                row.as_ref().map(batch).transpose()
            }
            .boxed()
        })
        .await
    }

    /// Gives a claim back, for somebody else to take at once.
    ///
    /// # Errors
    /// When it can't be written.
    pub async fn release_claim(&self, claim: &Claim) -> Result<(), Error> {
        let values = [(&claim.batch_id).into(), (&claim.claimant).into()];
        self.change("UPDATE batches SET claimed_until_ms = 0 WHERE id = ?1 AND claimed_by = ?2", values).await
    }

    /// Says that all lines were read.
    ///
    /// # Errors
    /// When it can't be written, or the claim is lost.
    pub async fn begin_batch(&self, claim: &Claim, total: u64) -> Result<(), Error> {
        let (claim, total) = (claim.clone(), i64::try_from(total).unwrap_or(i64::MAX));
        self.write_durably(move |connection| {
            async move {
                lines::held(connection, &claim).await?;
                let sql = "UPDATE batches SET status = 'in_progress', total = ?2, in_progress_ms = ?3
                           WHERE id = ?1 AND status = 'validating'";
                connection.execute(sql, &[(&claim.batch_id).into(), total.into(), unix_ms().into()]).await.map(drop)
            }
            .boxed()
        })
        .await
    }

    /// Ends a batch, and makes its files. `unanswered` is what becomes of each line that was not answered, by its `custom_id`.
    ///
    /// # Errors
    /// When it can't be written, or the claim is lost.
    pub async fn end_batch(
        &self,
        claim: &Claim,
        outcome: Outcome,
        unanswered: fn(&Outcome, &str, &str) -> String,
    ) -> Result<(), Error> {
        let claim = claim.clone();
        self.write_durably(move |connection| {
            async move {
                let id = &claim.batch_id;
                lines::held(connection, &claim).await?;
                let row = connection.row(batch_columns!("WHERE id = ?1"), &[id.into()]).await?;
                let Some(found) = row.as_ref().map(batch).transpose()? else { return Err(missing(id)) };
                let status = match &outcome {
                    Outcome::Completed => BatchStatus::Completed,
                    Outcome::Expired => BatchStatus::Expired,
                    Outcome::Cancelled => BatchStatus::Cancelled,
                    Outcome::Failed(_) => BatchStatus::Failed,
                };
                if !matches!(outcome, Outcome::Completed) {
                    let sql = "SELECT position, custom_id FROM batch_lines WHERE batch_id = ?1 AND state = 0 ORDER BY position";
                    for row in connection.rows(sql, &[id.into()]).await? {
                        let custom_id = row.text(1)?;
                        let answer = unanswered(&outcome, id, &custom_id);
                        let values = [id.into(), row.int(0)?.into(), LineState::Failed.number().into(), (&answer).into()];
                        let sql =
                            "UPDATE batch_lines SET state = ?3, answer = ?4, body = '' WHERE batch_id = ?1 AND position = ?2";
                        connection.execute(sql, &values).await?;
                    }
                }
                let output = leave(connection, &found, LineState::Completed).await?;
                let errors = leave(connection, &found, LineState::Failed).await?;
                let problems = match &outcome {
                    Outcome::Failed(problems) => Some(serde_json::to_string(problems).expect("problems are JSON")),
                    _ => None,
                };
                connection
                    .execute(
                        "UPDATE batches SET status = ?2, ended_ms = ?3, output_file_id = ?4, error_file_id = ?5, problems = ?6,
                            completed = ?7, failed = ?8 WHERE id = ?1",
                        &[
                            id.into(),
                            status.name().into(),
                            unix_ms().into(),
                            output.as_ref().map(|(id, _)| id.as_str()).into(),
                            errors.as_ref().map(|(id, _)| id.as_str()).into(),
                            problems.as_deref().into(),
                            output.map_or(0, |(_, lines)| lines).into(),
                            errors.map_or(0, |(_, lines)| lines).into(),
                        ],
                    )
                    .await
                    .map(drop)
            }
            .boxed()
        })
        .await
    }
}

/// Makes the file of a batch's lines of one kind; none when there are none.
async fn leave(connection: &mut Connection, batch: &Batch, state: LineState) -> Result<Option<(String, i64)>, Error> {
    let sql = "SELECT COUNT(*), CAST(COALESCE(SUM(OCTET_LENGTH(answer) + 1), 0) AS BIGINT) FROM batch_lines
               WHERE batch_id = ?1 AND state = ?2";
    let row = connection.row(sql, &[(&batch.id).into(), state.number().into()]).await?;
    let Some(row) = row.filter(|row| row.int(0).is_ok_and(|lines| lines > 0)) else { return Ok(None) };
    let kind = if state == LineState::Completed { "output" } else { "error" };
    let file = File {
        id: format!("file-{}", Uuid::now_v7().simple()),
        name: format!("{}_{kind}.jsonl", batch.id),
        purpose: FilePurpose::BatchOutput,
        bytes: row.int(1)?,
        created_ms: unix_ms(),
        batch_id: Some(batch.id.clone()),
    };
    files::insert(connection, &batch.owner, &file, true).await?;
    Ok(Some((file.id, row.int(0)?)))
}

fn missing(id: &str) -> Error {
    let id: String = id.chars().take(100).collect();
    Error::Missing(format!("there is no batch '{id}'"))
}

fn batch(row: &Row) -> Result<Batch, Error> {
    let status = row.text(8)?;
    let status = STATUSES.iter().find(|(_, name)| *name == status).ok_or(Error::Strange("a batch's status"))?.0;
    let problems = row.maybe_text(9)?.map(|problems| serde_json::from_str(&problems));
    Ok(Batch {
        id: row.text(0)?,
        owner: row.text(1)?,
        endpoint: row.text(2)?,
        completion_window: row.text(3)?,
        metadata: row.maybe_text(4)?,
        input_file_id: row.text(5)?,
        output_file_id: row.maybe_text(6)?,
        error_file_id: row.maybe_text(7)?,
        status,
        problems: problems.transpose().map_err(|_| Error::Strange("a batch's problems"))?.unwrap_or_default(),
        counts: Counts { total: row.int(10)?, completed: row.int(11)?, failed: row.int(12)? },
        created_ms: row.int(13)?,
        expires_ms: row.int(14)?,
        in_progress_ms: row.maybe_int(15)?,
        ended_ms: row.maybe_int(16)?,
        cancelling_ms: row.maybe_int(17)?,
    })
}
