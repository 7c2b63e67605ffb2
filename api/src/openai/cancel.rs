//! `DELETE /v1/chat/completions/{id}` and `/v1/completions/{id}`: a client wants no more of an answer that would go on without it.
//! Before the first event has told its id, the request's own `Idempotency-Key` names it, at `/v1/chat/completions` or
//! `/v1/completions`.

use axum::{
    Extension,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode, Uri},
};
use banyan_proto::{QueryId, v1};

use super::{Comeback, Error, parameters::CHOICES_MAX};
use crate::{caller::Caller, routes::Context};

/// Ends an answer with all its choices, whichever API asked for it. One that has ended, or never was, is none either.
pub(crate) async fn cancel(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Error> {
    let Path(id) = id?;
    let id: QueryId = id.parse().map_err(|_| {
        Error::invalid("there is no answer of that id: send it as the answer's events have it").status(StatusCode::NOT_FOUND)
    })?;
    Ok(end(&context, &caller, id).await)
}

/// Ends the answer that was asked for with an `Idempotency-Key`.
pub(crate) async fn cancel_keyed(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<StatusCode, Error> {
    let comeback = Comeback::read(&headers, uri.path(), &caller.owner, b"")?;
    let id = comeback.keyed().ok_or_else(|| {
        Error::invalid(format!("name the answer: DELETE {}/ID, or send the Idempotency-Key that asked for it", uri.path()))
    })?;
    Ok(end(&context, &caller, id).await)
}

async fn end(context: &Context, caller: &Caller, id: QueryId) -> StatusCode {
    let following = CHOICES_MAX as u32 - 1;
    context.roots.cancel_everywhere(&v1::AnswerRef { id: id.to_wire(), owner: caller.owner.to_string(), following }).await;
    StatusCode::NO_CONTENT
}
