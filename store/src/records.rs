//! What was asked and used: sums by day, key, model and node, and a log of single requests.

use std::{collections::BTreeMap, sync::Arc};

use futures::FutureExt as _;

use crate::{Error, Key, Store, limits, time::day_of};

/// More rows are no report but a copy.
const ROWS_MAX: i64 = 10_000;

/// One request that has ended.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// When it came, in Unix milliseconds.
    pub at_ms: i64,
    /// The name that its response had.
    pub request_id: String,
    /// As `banyan why` takes it.
    pub query_id: String,
    /// Empty when there are no keys.
    pub key_id: String,
    /// That was asked for.
    pub model: String,
    /// That answered last; empty when none did.
    pub node: String,
    /// Of all choices.
    pub prompt_tokens: u32,
    /// Of all choices.
    pub completion_tokens: u32,
    /// Until the first token.
    pub first_token_ms: Option<u32>,
    /// Until the end.
    pub total_ms: u32,
    /// What HTTP says; 499 when the client had gone.
    pub status: u16,
    /// What was asked, where the operator wants texts.
    pub prompt: Option<String>,
    /// What was answered, where the operator wants texts.
    pub answer: Option<String>,
    /// What is to be put right in the key's bucket.
    pub settlement: Option<Settlement>,
}

/// What was reserved of a key's tokens, and what was used.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// Whose.
    pub key: Arc<Key>,
    /// Before.
    pub reserved: u64,
    /// In the end.
    pub used: u64,
}

/// A line of the request log.
#[derive(Clone, Debug, PartialEq, Eq, schemars::JsonSchema, serde::Serialize)]
pub struct LogEntry {
    /// Counts up.
    pub number: i64,
    /// Unix milliseconds.
    pub at_ms: i64,
    /// The name that its response had.
    pub request_id: String,
    /// As `banyan why` takes it.
    pub query_id: String,
    /// Empty when there were no keys.
    pub key_id: String,
    /// That was asked for.
    pub model: String,
    /// That answered.
    pub node: String,
    /// Of all choices.
    pub prompt_tokens: i64,
    /// Of all choices.
    pub completion_tokens: i64,
    /// Until the first token.
    pub first_token_ms: Option<i64>,
    /// Until the end.
    pub total_ms: i64,
    /// What HTTP said.
    pub status: i64,
    /// Where texts are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Where texts are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

/// A day's use of one model at one node by one key.
#[derive(Clone, Debug, PartialEq, Eq, schemars::JsonSchema, serde::Serialize)]
pub struct UsageRow {
    /// UTC.
    pub day: String,
    /// Empty when there were no keys.
    pub key_id: String,
    /// Empty when there is none of that id.
    pub key: String,
    /// That was asked for.
    pub model: String,
    /// That answered; empty when none did.
    pub node: String,
    /// All of them.
    pub requests: i64,
    /// Those that did not end well.
    pub failed: i64,
    /// Sum.
    pub prompt_tokens: i64,
    /// Sum.
    pub completion_tokens: i64,
}

#[derive(Default)]
struct Sums {
    requests: i64,
    failed: i64,
    prompt_tokens: i64,
    completion_tokens: i64,
}

impl Store {
    /// Writes down what has ended, and settles it.
    ///
    /// # Errors
    /// When nothing could be written.
    pub async fn record(&self, records: Vec<Record>) -> Result<(), Error> {
        self.write(move |connection| {
            async move {
                // In the same order everywhere, so that two APIs never wait for each other in a circle.
                let mut settlements: BTreeMap<&str, (&Arc<Key>, u64, u64)> = BTreeMap::new();
                let mut sums: BTreeMap<(String, &str, &str, &str), Sums> = BTreeMap::new();
                for record in &records {
                    if let Some(settlement) = &record.settlement {
                        let (_, reserved, used) = settlements.entry(&settlement.key.id).or_insert((&settlement.key, 0, 0));
                        *reserved = reserved.saturating_add(settlement.reserved);
                        *used = used.saturating_add(settlement.used);
                    }
                    let of = (day_of(record.at_ms), &*record.key_id, &*record.model, &*record.node);
                    let sum = sums.entry(of).or_default();
                    sum.requests += 1;
                    sum.failed += i64::from(record.status >= 400);
                    sum.prompt_tokens += i64::from(record.prompt_tokens);
                    sum.completion_tokens += i64::from(record.completion_tokens);
                }
                for (key, reserved, used) in settlements.into_values() {
                    match limits::settle(connection, key, reserved, used).await {
                        Ok(()) | Err(Error::Missing(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                for ((day, key, model, node), sum) in sums {
                    connection
                        .execute(
                            "INSERT INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                             ON CONFLICT (day, key_id, model, node) DO UPDATE SET
                                requests = usage.requests + excluded.requests,
                                failed = usage.failed + excluded.failed,
                                prompt_tokens = usage.prompt_tokens + excluded.prompt_tokens,
                                completion_tokens = usage.completion_tokens + excluded.completion_tokens",
                            &[
                                (&day).into(),
                                key.into(),
                                model.into(),
                                node.into(),
                                sum.requests.into(),
                                sum.failed.into(),
                                sum.prompt_tokens.into(),
                                sum.completion_tokens.into(),
                            ],
                        )
                        .await?;
                }
                for record in &records {
                    connection
                        .execute(
                            "INSERT INTO request_log (at_ms, request_id, query_id, key_id, model, node, prompt_tokens,
                                completion_tokens, first_token_ms, total_ms, status, prompt, answer)
                             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
                            &[
                                record.at_ms.into(),
                                (&record.request_id).into(),
                                (&record.query_id).into(),
                                (&record.key_id).into(),
                                (&record.model).into(),
                                (&record.node).into(),
                                record.prompt_tokens.into(),
                                record.completion_tokens.into(),
                                record.first_token_ms.into(),
                                record.total_ms.into(),
                                i64::from(record.status).into(),
                                record.prompt.as_deref().into(),
                                record.answer.as_deref().into(),
                            ],
                        )
                        .await?;
                }
                Ok(())
            }
            .boxed()
        })
        .await
    }

    /// What was used from one day to another (`2026-11-20`, both included), by all or by one key.
    ///
    /// # Errors
    /// When the store can't be asked.
    pub async fn usage(&self, from: &str, to: &str, key_id: Option<&str>) -> Result<Vec<UsageRow>, Error> {
        let values = [from.into(), to.into(), key_id.into(), ROWS_MAX.into()];
        let sql = "SELECT day, key_id, COALESCE(keys.name, ''), model, node, requests, failed, prompt_tokens,
                   completion_tokens
                   FROM usage LEFT JOIN keys ON keys.id = usage.key_id
                   WHERE day >= ?1 AND day <= ?2 AND (CAST(?3 AS TEXT) IS NULL OR key_id = CAST(?3 AS TEXT))
                   ORDER BY day DESC, key_id, model, node LIMIT ?4";
        let rows = self.rows(sql, values);
        let read = |row: &crate::connection::Row| {
            Ok(UsageRow {
                day: row.text(0)?,
                key_id: row.text(1)?,
                key: row.text(2)?,
                model: row.text(3)?,
                node: row.text(4)?,
                requests: row.int(5)?,
                failed: row.int(6)?,
                prompt_tokens: row.int(7)?,
                completion_tokens: row.int(8)?,
            })
        };
        rows.await?.iter().map(read).collect()
    }

    /// The last requests, the newest first: those before an entry's number, of all keys or of one.
    ///
    /// # Errors
    /// When the store can't be asked.
    pub async fn request_log(&self, before: Option<i64>, limit: u32, key_id: Option<&str>) -> Result<Vec<LogEntry>, Error> {
        let limit = i64::from(limit).min(ROWS_MAX);
        let values = [before.unwrap_or(i64::MAX).into(), limit.into(), key_id.into()];
        let sql = "SELECT number, at_ms, request_id, query_id, key_id, model, node, prompt_tokens, completion_tokens,
                   first_token_ms, total_ms, status, prompt, answer
                   FROM request_log
                   WHERE number < ?1 AND (CAST(?3 AS TEXT) IS NULL OR key_id = CAST(?3 AS TEXT))
                   ORDER BY number DESC LIMIT ?2";
        let rows = self.rows(sql, values);
        let read = |row: &crate::connection::Row| {
            Ok(LogEntry {
                number: row.int(0)?,
                at_ms: row.int(1)?,
                request_id: row.text(2)?,
                query_id: row.text(3)?,
                key_id: row.text(4)?,
                model: row.text(5)?,
                node: row.text(6)?,
                prompt_tokens: row.int(7)?,
                completion_tokens: row.int(8)?,
                first_token_ms: row.maybe_int(9)?,
                total_ms: row.int(10)?,
                status: row.int(11)?,
                prompt: row.maybe_text(12)?,
                answer: row.maybe_text(13)?,
            })
        };
        rows.await?.iter().map(read).collect()
    }

    /// Forgets what is older than it is kept: the request log, uploads that were never completed, batches that ended and their
    /// files' lines.
    ///
    /// # Errors
    /// When nothing could be deleted.
    pub async fn sweep(&self, before_ms: i64) -> Result<(), Error> {
        self.write(move |connection| {
            async move {
                connection.execute("DELETE FROM request_log WHERE at_ms < ?1", &[before_ms.into()]).await?;
                connection.execute("DELETE FROM files WHERE complete = 0 AND created_ms < ?1", &[before_ms.into()]).await?;
                let ended = "DELETE FROM files WHERE batch_id IN (SELECT id FROM batches WHERE ended_ms < ?1)";
                connection.execute(ended, &[before_ms.into()]).await?;
                connection.execute("DELETE FROM batches WHERE ended_ms < ?1", &[before_ms.into()]).await.map(drop)
            }
            .boxed()
        })
        .await
    }
}
