//! `DELETE /v1/chat/completions/{id}` and `/v1/completions/{id}`: a client wants no more of an answer that would go on without it.

use axum::{
    Extension,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
};
use banyan_proto::{QueryId, v1};

use super::{Error, parameters::CHOICES_MAX};
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
    let following = CHOICES_MAX as u32 - 1;
    context.roots.cancel_everywhere(&v1::AnswerRef { id: id.to_wire(), owner: caller.owner.to_string(), following }).await;
    Ok(StatusCode::NO_CONTENT)
}
