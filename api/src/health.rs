//! `/livez`, `/readyz` and `/metrics`, for whoever supervises the process or sends traffic to it.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use banyan_observe::CONTENT_TYPE;
use serde_json::json;

use crate::{openai::Error, routes::Context};

/// The process serves.
pub(crate) async fn livez() -> Response {
    Json(json!({ "status": "live" })).into_response()
}

/// A query would be answered: a root is there, and some model.
pub(crate) async fn readyz(State(context): State<Context>) -> Response {
    let missing = if context.stopping.is_cancelled() {
        Some("the API is shutting down".to_owned())
    } else if let Err(error) = context.roots.probe().await {
        Some(error.to_string())
    } else if context.roots.first(None).is_empty() {
        Some("no node serves a model yet".to_owned())
    } else {
        None
    };
    match missing {
        None => Json(json!({ "status": "ready" })).into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "not ready", "why": why }))).into_response(),
    }
}

/// What was measured. It tells everybody of everybody, if only in sums: clients of a public API have no business with that.
pub(crate) async fn metrics(State(context): State<Context>) -> Result<Response, Error> {
    if !context.hosts.are_private() {
        let elsewhere = "metrics are not served here, where clients are: start with `--metrics HOST:PORT`, and ask there";
        return Err(Error::no_such_path(elsewhere.to_owned()));
    }
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], context.metrics.text().await).into_response())
}
