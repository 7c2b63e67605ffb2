//! The lines of batches: each answered once, and never again.

use futures::FutureExt as _;

use crate::{Error, Store, connection::Connection};

/// The right to work on a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The batch.
    pub batch_id: String,
    /// Who has it: a name that no other life of any API has.
    pub claimant: String,
}

/// How far a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineState {
    /// Not answered.
    Waiting,
    /// Answered well.
    Completed,
    /// It was refused, or failed for good.
    Failed,
}

impl LineState {
    pub(crate) fn number(self) -> i64 {
        match self {
            LineState::Waiting => 0,
            LineState::Completed => 1,
            LineState::Failed => 2,
        }
    }
}

/// What a line is to be.
#[derive(Clone, Debug)]
pub struct NewLine {
    /// Counted from 0.
    pub position: u32,
    /// The client's name for it.
    pub custom_id: String,
    /// The request.
    pub body: String,
}

/// A line that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Counted from 0.
    pub position: u32,
    /// The client's name for it.
    pub custom_id: String,
    /// The request.
    pub body: String,
}

impl Store {
    /// Writes some of a batch's lines; those that are there stay as they are.
    ///
    /// # Errors
    /// When they can't be written, or the claim is lost.
    pub async fn add_lines(&self, claim: &Claim, lines: Vec<NewLine>) -> Result<(), Error> {
        let claim = claim.clone();
        self.write(move |connection| {
            async move {
                held(connection, &claim).await?;
                for line in &lines {
                    connection
                        .execute(
                            "INSERT INTO batch_lines (batch_id, position, custom_id, body, state) VALUES (?1, ?2, ?3, ?4, 0)
                             ON CONFLICT DO NOTHING",
                            &[(&claim.batch_id).into(), line.position.into(), (&line.custom_id).into(), (&line.body).into()],
                        )
                        .await?;
                }
                Ok(())
            }
            .boxed()
        })
        .await
    }

    /// Lines of a batch that wait, from a position on.
    ///
    /// # Errors
    /// When the store can't be asked.
    pub async fn waiting_lines(&self, batch_id: &str, from: u32, limit: u32) -> Result<Vec<Line>, Error> {
        let values = [batch_id.into(), from.into(), limit.into()];
        let sql = "SELECT position, custom_id, body FROM batch_lines
                   WHERE batch_id = ?1 AND state = 0 AND position >= ?2 ORDER BY position LIMIT ?3";
        let rows = self.rows(sql, values);
        let read = |row: &crate::connection::Row| {
            let position = u32::try_from(row.int(0)?).map_err(|_| Error::Strange("a line's position"))?;
            Ok(Line { position, custom_id: row.text(1)?, body: row.text(2)? })
        };
        rows.await?.iter().map(read).collect()
    }

    /// Writes down how lines ended, each with its line of the output. What is answered already stays as it is.
    ///
    /// # Errors
    /// When it can't be written, or the claim is lost.
    pub async fn end_lines(&self, claim: &Claim, ended: Vec<(u32, LineState, String)>) -> Result<(), Error> {
        let claim = claim.clone();
        self.write_durably(move |connection| {
            async move {
                held(connection, &claim).await?;
                let (mut completed, mut failed) = (0, 0);
                for (position, state, answer) in &ended {
                    let sql = "UPDATE batch_lines SET state = ?3, answer = ?4, body = ''
                               WHERE batch_id = ?1 AND position = ?2 AND state = 0";
                    let values = [(&claim.batch_id).into(), (*position).into(), state.number().into(), answer.into()];
                    let changed = connection.execute(sql, &values).await? as i64;
                    match state {
                        LineState::Completed => completed += changed,
                        LineState::Failed => failed += changed,
                        LineState::Waiting => {}
                    }
                }
                let sql = "UPDATE batches SET completed = completed + ?2, failed = failed + ?3 WHERE id = ?1";
                let values = [(&claim.batch_id).into(), completed.into(), failed.into()];
                connection.execute(sql, &values).await.map(drop)
            }
            .boxed()
        })
        .await
    }

    /// Lines of a batch's output, or of its errors, from a position on, each with its position.
    ///
    /// # Errors
    /// When the store can't be asked.
    pub async fn answers(&self, batch_id: &str, state: LineState, from: u32, limit: u32) -> Result<Vec<(u32, String)>, Error> {
        let values = [batch_id.into(), state.number().into(), from.into(), limit.into()];
        let sql = "SELECT position, answer FROM batch_lines
                   WHERE batch_id = ?1 AND state = ?2 AND position >= ?3 ORDER BY position LIMIT ?4";
        let rows = self.rows(sql, values);
        let read = |row: &crate::connection::Row| {
            let position = u32::try_from(row.int(0)?).map_err(|_| Error::Strange("a line's position"))?;
            Ok((position, row.text(1)?))
        };
        rows.await?.iter().map(read).collect()
    }
}

/// Checks that a claim is still held, and holds everybody else off until the transaction ends.
pub(crate) async fn held(connection: &mut Connection, claim: &Claim) -> Result<(), Error> {
    let sql = "SELECT claimed_by FROM batches WHERE id = ?1 AND ended_ms IS NULL {lock}";
    let row = connection.row(sql, &[(&claim.batch_id).into()]).await?;
    match row.map(|row| row.maybe_text(0)).transpose()? {
        Some(Some(claimant)) if claimant == claim.claimant => Ok(()),
        _ => Err(Error::Conflict("another API works on the batch".to_owned())),
    }
}
