//! `/v1/files`: uploads for batches, and what batches leave behind.
//!
//! A file is read and written in pieces, so that the largest takes no more memory than the smallest.

use axum::{
    Extension, Json,
    body::Body,
    extract::{Multipart, Path, State, multipart::Field, rejection::PathRejection},
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use banyan_store::{File, LineState, NewFile, PIECE_BYTES, Store};
use bytes::{Bytes, BytesMut};
use futures::stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    asked::{Asked, within},
    caller::Caller,
    openai::Error,
    routes::Context,
};

/// OpenAI's for batches.
pub(crate) const FILE_BYTES_MAX: u64 = 200 << 20;
/// Of a form's other fields.
const FIELD_BYTES_MAX: usize = 1 << 10;

/// Lines of a batch's file that are read together.
const LINES_TOGETHER: u32 = 64;

const PAGE: u32 = 100;
const PAGE_MAX: u32 = 1_000;
/// OpenAI's for files. Who asks for more than a page gets a page, which says that there is more.
pub(crate) const LIMIT_MAX: u32 = 10_000;

/// A file, as OpenAI shows it.
#[derive(JsonSchema, Serialize)]
pub(crate) struct Shape {
    id: String,
    object: &'static str,
    bytes: i64,
    created_at: i64,
    filename: String,
    purpose: &'static str,
    /// Deprecated, and still read by clients.
    status: &'static str,
}

impl From<File> for Shape {
    fn from(file: File) -> Self {
        Shape {
            id: file.id,
            object: "file",
            bytes: file.bytes,
            created_at: file.created_ms / 1000,
            filename: file.name,
            purpose: file.purpose.name(),
            status: "processed",
        }
    }
}

/// Part of a list, as OpenAI shows it.
#[derive(JsonSchema, Serialize)]
pub(crate) struct Listed<T> {
    object: &'static str,
    data: Vec<T>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

impl<T> Listed<T> {
    pub(crate) fn new(data: Vec<T>, has_more: bool, id: impl Fn(&T) -> &str) -> Self {
        let of = |one: Option<&T>| one.map(|one| id(one).to_owned());
        Listed { object: "list", first_id: of(data.first()), last_id: of(data.last()), data, has_more }
    }
}

/// Which part of a list.
#[derive(Deserialize)]
pub(crate) struct Page {
    limit: Option<i64>,
    pub(crate) after: Option<String>,
}

impl Page {
    /// # Errors
    /// When it is no number of things.
    pub(crate) fn limit(&self) -> Result<u32, Error> {
        Ok(within("limit", self.limit, PAGE, 1..=LIMIT_MAX)?.min(PAGE_MAX))
    }
}

/// Which files.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    purpose: Option<String>,
}

/// Takes an upload. It is answered when the file would outlive the machine.
pub(crate) async fn upload(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    form: Result<Multipart, axum::extract::multipart::MultipartRejection>,
) -> Result<Json<Shape>, Error> {
    let store = context.store()?;
    let mut form = form.map_err(|_| {
        Error::invalid("a file is uploaded as multipart/form-data with the fields 'purpose' and 'file': send it so")
    })?;
    let mut begun: Option<Upload> = None;
    let outcome = read(&context, store, &caller, &mut form, &mut begun).await;
    match (outcome, begun) {
        (Ok(()), Some(upload)) => Ok(Json(store.complete_file(upload.file, upload.bytes).await.map_err(Error::of_store)?.into())),
        (Ok(()), None) => Err(Error::parameter("file", "'file' is missing: send the file's content as that field")),
        (Err(error), begun) => {
            if let Some(upload) = begun
                && let Err(error) = store.abandon_file(&upload.file.id).await
            {
                tracing::debug!(error = &error as &dyn std::error::Error, "half an upload stays until it is old");
            }
            Err(error)
        }
    }
}

struct Upload {
    file: File,
    bytes: u64,
}

async fn read(
    context: &Context,
    store: &Store,
    caller: &Caller,
    form: &mut Multipart,
    begun: &mut Option<Upload>,
) -> Result<(), Error> {
    let broken = |_| Error::invalid("the form can't be read to its end: send it again");
    let late =
        |_| Error::invalid("the file did not arrive in time: send it again").status(axum::http::StatusCode::REQUEST_TIMEOUT);
    let mut purpose = None;
    loop {
        let next = tokio::time::timeout(context.limits.body_read, form.next_field()).await.map_err(late)?;
        let Some(mut field) = next.map_err(broken)? else { break };
        match field.name() {
            Some("purpose") => purpose = Some(short(context, &mut field).await?),
            Some("file") if begun.is_none() => {
                let name = field.file_name().unwrap_or("upload.jsonl").to_owned();
                let new = NewFile { owner: caller.owner.to_string(), name };
                let file = store.begin_file(new).await.map_err(Error::of_store)?;
                let upload = begun.insert(Upload { file, bytes: 0 });
                pieces(context, store, &mut field, upload).await?;
            }
            Some("file") => return Err(Error::parameter("file", "'file' came twice: upload one file at a time")),
            // Such as `expires_after`.
            _ => drop(short(context, &mut field).await?),
        }
    }
    match purpose.as_deref() {
        Some("batch") => Ok(()),
        Some(_) => Err(Error::parameter("purpose", "'purpose' must be \"batch\": files are for batches here")),
        None => Err(Error::parameter("purpose", "'purpose' is missing: send \"batch\"")),
    }
}

async fn pieces(context: &Context, store: &Store, field: &mut Field<'_>, upload: &mut Upload) -> Result<(), Error> {
    let (mut gathered, mut position) = (BytesMut::new(), 0);
    while let Some(chunk) = chunk(context, field).await? {
        upload.bytes += chunk.len() as u64;
        if upload.bytes > FILE_BYTES_MAX {
            let message = format!("the file is larger than {FILE_BYTES_MAX} bytes: split it");
            return Err(Error::parameter("file", message).status(axum::http::StatusCode::PAYLOAD_TOO_LARGE));
        }
        gathered.extend_from_slice(&chunk);
        while gathered.len() >= PIECE_BYTES {
            store.add_piece(&upload.file.id, position, &gathered.split_to(PIECE_BYTES)).await.map_err(Error::of_store)?;
            position += 1;
        }
    }
    if !gathered.is_empty() {
        store.add_piece(&upload.file.id, position, &gathered).await.map_err(Error::of_store)?;
    }
    Ok(())
}

async fn chunk(context: &Context, field: &mut Field<'_>) -> Result<Option<Bytes>, Error> {
    tokio::select! {
        biased;
        () = context.stopping.cancelled() => Err(Error::closing()),
        chunk = tokio::time::timeout(context.limits.body_read, field.chunk()) => match chunk {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(_)) => Err(Error::invalid("the form can't be read to its end: send it again")),
            Err(_) => Err(Error::invalid("the file did not arrive in time: send it again")
                .status(axum::http::StatusCode::REQUEST_TIMEOUT)),
        }
    }
}

async fn short(context: &Context, field: &mut Field<'_>) -> Result<String, Error> {
    let mut text = Vec::new();
    while let Some(chunk) = chunk(context, field).await? {
        text.extend_from_slice(&chunk);
        if text.len() > FIELD_BYTES_MAX {
            return Err(Error::invalid(format!(
                "a field of the form is larger than {FIELD_BYTES_MAX} bytes: only 'file' may be"
            )));
        }
    }
    String::from_utf8(text).map_err(|_| Error::invalid("a field of the form is no UTF-8"))
}

/// All of a caller's files.
pub(crate) async fn list(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    Asked(page): Asked<Page>,
    Asked(wanted): Asked<Wanted>,
) -> Result<Json<Listed<Shape>>, Error> {
    let (purpose, after) = (wanted.purpose.as_deref(), page.after.as_deref());
    let listed = context.store()?.files(&caller.owner, purpose, after, page.limit()?).await;
    let (files, has_more) = listed.map_err(Error::of_store)?;
    Ok(Json(Listed::new(files.into_iter().map(Shape::from).collect(), has_more, |file: &Shape| &file.id)))
}

/// One of them.
pub(crate) async fn one(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Shape>, Error> {
    let Path(id) = id?;
    Ok(Json(context.store()?.file(&caller.owner, &id).await.map_err(Error::of_store)?.into()))
}

#[derive(JsonSchema, Serialize)]
pub(crate) struct Deleted {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) deleted: bool,
}

/// Deletes one.
pub(crate) async fn delete(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Deleted>, Error> {
    let Path(id) = id?;
    context.store()?.delete_file(&caller.owner, &id).await.map_err(Error::of_store)?;
    Ok(Json(Deleted { id, object: "file", deleted: true }))
}

/// What is in one.
pub(crate) async fn content(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let Path(id) = id?;
    let store = context.store()?.clone();
    let file = store.file(&caller.owner, &id).await.map_err(Error::of_store)?;
    let length = HeaderValue::from(file.bytes.unsigned_abs());
    let body = match file.batch_id {
        None => Body::from_stream(stream::try_unfold((store, 0), move |(store, position)| {
            let id = id.clone();
            async move {
                let piece = store.piece(&id, position).await?;
                Ok::<_, banyan_store::Error>(piece.map(|piece| (Bytes::from(piece), (store, position + 1))))
            }
        })),
        Some(batch_id) => {
            let batch = store.batch(&caller.owner, &batch_id).await.map_err(Error::of_store)?;
            let failed = batch.error_file_id.as_deref() == Some(&*id);
            let state = if failed { LineState::Failed } else { LineState::Completed };
            Body::from_stream(stream::try_unfold((store, 0), move |(store, from)| {
                let batch_id = batch_id.clone();
                async move {
                    let answers = store.answers(&batch_id, state, from, LINES_TOGETHER).await?;
                    let Some((last, _)) = answers.last() else { return Ok::<_, banyan_store::Error>(None) };
                    let next = last + 1;
                    let text = answers.into_iter().fold(String::new(), |text, (_, answer)| text + &answer + "\n");
                    Ok(Some((Bytes::from(text), (store, next))))
                }
            }))
        }
    };
    let headers =
        [(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")), (header::CONTENT_LENGTH, length)];
    Ok((headers, body).into_response())
}
