//! `/v1/batches`: many requests in one file, answered when the tree has room, whoever dies meanwhile.
//!
//! What clients ask is answered here, out of the store; `input.rs` reads a batch's file, and `worker.rs` has its lines answered.

mod input;
mod worker;

use axum::{
    Extension, Json,
    extract::{Path, State, rejection::PathRejection},
};
use banyan_store::{Batch, BatchStatus, Counts, NewBatch, Problem};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

pub(crate) use self::worker::work;
use crate::{
    asked::Asked,
    body::Whole,
    caller::Caller,
    files::{Listed, Page},
    openai::{Documented, Error, Field, Fields, Other, Text, expected, object_schema},
    routes::Context,
};

/// What lines may ask.
const ENDPOINTS: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"];

/// OpenAI's.
const METADATA_MAX: usize = 16;
const METADATA_KEY_CHARS_MAX: usize = 64;
const METADATA_VALUE_CHARS_MAX: usize = 512;

/// A week: who waits longer has forgotten it.
const WINDOW_MS_MAX: i64 = 7 * 86_400_000;

static INPUT_FILE_ID: Field<Text> =
    Field { name: "input_file_id", holds: Text(1..=100), about: "The file of its lines, as /v1/files took it." };
static ENDPOINT: Field<Text> = Field { name: "endpoint", holds: Text(1..=100), about: "What all its lines ask." };
static COMPLETION_WINDOW: Field<Text> =
    Field { name: "completion_window", holds: Text(1..=20), about: "When it is given up: a number of s, m or h, such as 24h." };
static METADATA: Field<Other> = Field {
    name: "metadata",
    holds: Other(|| json!({ "type": "object", "maxProperties": METADATA_MAX, "additionalProperties": { "type": "string" } })),
    about: "The client's own.",
};

/// A request, as a JSON schema.
pub(crate) fn schema() -> Value {
    let fields: [&dyn Documented; 4] = [&INPUT_FILE_ID, &ENDPOINT, &COMPLETION_WINDOW, &METADATA];
    object_schema(&[&fields], &["input_file_id", "endpoint"])
}

/// A batch, as OpenAI shows it.
#[derive(JsonSchema, Serialize)]
pub(crate) struct Shape {
    id: String,
    object: &'static str,
    endpoint: String,
    errors: Option<Problems>,
    input_file_id: String,
    completion_window: String,
    status: &'static str,
    output_file_id: Option<String>,
    error_file_id: Option<String>,
    created_at: i64,
    in_progress_at: Option<i64>,
    expires_at: i64,
    finalizing_at: Option<i64>,
    completed_at: Option<i64>,
    failed_at: Option<i64>,
    expired_at: Option<i64>,
    cancelling_at: Option<i64>,
    cancelled_at: Option<i64>,
    request_counts: Counts,
    metadata: Option<Value>,
}

#[derive(JsonSchema, Serialize)]
struct Problems {
    object: &'static str,
    data: Vec<Problem>,
}

impl From<Batch> for Shape {
    fn from(batch: Batch) -> Self {
        let seconds = |ms: i64| ms / 1000;
        let ended = |status| batch.ended_ms.filter(|_| batch.status == status).map(seconds);
        Shape {
            object: "batch",
            status: batch.status.name(),
            created_at: seconds(batch.created_ms),
            in_progress_at: batch.in_progress_ms.map(seconds),
            expires_at: seconds(batch.expires_ms),
            finalizing_at: ended(BatchStatus::Completed),
            completed_at: ended(BatchStatus::Completed),
            failed_at: ended(BatchStatus::Failed),
            expired_at: ended(BatchStatus::Expired),
            cancelling_at: batch.cancelling_ms.map(seconds),
            cancelled_at: ended(BatchStatus::Cancelled),
            request_counts: batch.counts,
            errors: (!batch.problems.is_empty()).then_some(Problems { object: "list", data: batch.problems }),
            metadata: batch.metadata.and_then(|metadata| serde_json::from_str(&metadata).ok()),
            id: batch.id,
            endpoint: batch.endpoint,
            input_file_id: batch.input_file_id,
            completion_window: batch.completion_window,
            output_file_id: batch.output_file_id,
            error_file_id: batch.error_file_id,
        }
    }
}

/// Takes one on. It is answered when the batch would outlive the machine.
pub(crate) async fn create(State(context): State<Context>, whole: Whole) -> Result<Json<Shape>, Error> {
    let store = context.store()?;
    let mut fields = Fields::parse(&whole.bytes)?;
    let missing = |name: &'static str, advice: &str| Error::parameter(name, format!("'{name}' is missing: {advice}"));
    let input_file_id = fields.text(&INPUT_FILE_ID)?;
    let endpoint = fields.text(&ENDPOINT)?.ok_or_else(|| missing("endpoint", "say what all lines ask"))?;
    if !ENDPOINTS.contains(&endpoint.as_str()) {
        let message = format!("'endpoint' must be one of {}", ENDPOINTS.join(", "));
        return Err(Error::parameter("endpoint", message));
    }
    let window = fields.text(&COMPLETION_WINDOW)?.unwrap_or_else(|| "24h".to_owned());
    let window_ms = window_ms(&window).ok_or_else(|| {
        Error::parameter("completion_window", "'completion_window' must be a number of s, m or h, up to 168h, such as 24h")
    })?;
    let new = NewBatch {
        owner: whole.arrival.caller.owner.to_string(),
        endpoint,
        completion_window: window,
        metadata: metadata(fields.other(&METADATA))?,
        input_file_id: input_file_id.ok_or_else(|| missing("input_file_id", "upload the lines to /v1/files first"))?,
        window_ms,
    };
    let batch = store.create_batch(new).await.map_err(Error::of_store)?;
    context.batches.notify_one();
    Ok(Json(batch.into()))
}

fn window_ms(text: &str) -> Option<i64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let number: u32 = number.parse().ok()?;
    i64::from(number).checked_mul(unit).filter(|ms| (1..=WINDOW_MS_MAX).contains(ms))
}

fn metadata(value: Option<Value>) -> Result<Option<String>, Error> {
    let Some(value) = value else { return Ok(None) };
    let fits = |(key, value): (&String, &Value)| {
        key.chars().count() <= METADATA_KEY_CHARS_MAX
            && value.as_str().is_some_and(|value| value.chars().count() <= METADATA_VALUE_CHARS_MAX)
    };
    match value.as_object() {
        Some(entries) if entries.len() <= METADATA_MAX && entries.iter().all(fits) => Ok(Some(value.to_string())),
        _ => {
            let what = format_args!("an object of at most {METADATA_MAX} short strings").to_string();
            Err(expected("metadata", &what, &value))
        }
    }
}

/// All of a caller's batches.
pub(crate) async fn list(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    Asked(page): Asked<Page>,
) -> Result<Json<Listed<Shape>>, Error> {
    let listed = context.store()?.batches(&caller.owner, page.after.as_deref(), page.limit()?).await;
    let (batches, has_more) = listed.map_err(Error::of_store)?;
    Ok(Json(Listed::new(batches.into_iter().map(Shape::from).collect(), has_more, |batch: &Shape| &batch.id)))
}

/// One of them.
pub(crate) async fn one(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Shape>, Error> {
    let Path(id) = id?;
    Ok(Json(context.store()?.batch(&caller.owner, &id).await.map_err(Error::of_store)?.into()))
}

/// Wants no more of one.
pub(crate) async fn cancel(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Shape>, Error> {
    let Path(id) = id?;
    Ok(Json(context.store()?.cancel_batch(&caller.owner, &id).await.map_err(Error::of_store)?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_have_units_and_an_end() {
        assert_eq!(["24h", "90s", "5m", "168h"].map(window_ms), [86_400_000, 90_000, 300_000, 604_800_000].map(Some));
        for wrong in ["", "h", "0s", "169h", "-1h", "24", "24d", "1é", "99999999999h"] {
            assert_eq!(window_ms(wrong), None, "{wrong}");
        }
    }
}
