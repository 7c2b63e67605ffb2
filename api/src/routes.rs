//! Which path leads where, and what every response has in common.

use std::sync::{Arc, atomic::AtomicU64};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse as _, Response},
    routing::{delete, get, post},
};
use banyan_observe::Metrics;
use banyan_proto::nearest;
use banyan_store::Store;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tower_http::{catch_panic::CatchPanicLayer, set_header::SetResponseHeaderLayer};

use crate::{
    Limits, batches,
    caller::{self, Caller},
    chat, conversations, files, health, hosts,
    hosts::Hosts,
    keyring::Keyring,
    keys, legacy,
    meters::{self, Meters},
    openai::{self, Error},
    openapi, pages,
    recorder::Recorder,
    request_id,
    returns::Returns,
    root::Roots,
    session,
    tree::{self, Trees},
    usage,
};

/// What handlers share.
pub(crate) type Context = Arc<Shared>;

pub(crate) struct Shared {
    pub(crate) roots: Arc<Roots>,
    pub(crate) limits: Limits,
    pub(crate) hosts: Hosts,
    pub(crate) store: Option<Store>,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: Metrics,
    pub(crate) meters: Arc<Meters>,
    /// Whether the request log has texts.
    pub(crate) log_texts: bool,
    /// What this API is called.
    pub(crate) replica: String,
    pub(crate) returns: Returns,
    /// Memory for requests: permits of a KiB.
    pub(crate) bodies: Arc<Semaphore>,
    /// Conversations over WebSockets that may still begin.
    pub(crate) sockets: Arc<Semaphore>,
    /// What is seen of the trees.
    pub(crate) trees: Arc<Trees>,
    /// Told when there is a new batch.
    pub(crate) batches: Notify,
    /// Nothing new is accepted.
    pub(crate) stopping: CancellationToken,
    /// What still goes on ends now.
    pub(crate) ending: CancellationToken,
    /// Requests to the legacy endpoint so far.
    pub(crate) legacy_count: AtomicU64,
}

impl Shared {
    /// # Errors
    /// When this API has none.
    pub(crate) fn store(&self) -> Result<&Store, Error> {
        self.store.as_ref().ok_or_else(Error::no_store)
    }

    /// Whether somebody may change the tree. Without keys only who sits at this machine may, as nobody is told apart.
    pub(crate) fn is_operator(&self, caller: &Caller) -> bool {
        caller.key.as_ref().map_or(self.hosts.is_one_persons(), |key| key.operator)
    }

    /// # Errors
    /// When it is none.
    pub(crate) fn only_operators(&self, caller: &Caller) -> Result<(), Error> {
        if self.is_operator(caller) {
            return Ok(());
        }
        Err(Error::forbidden("this takes an operator's key: `banyan key create --operator --name NAME` makes one"))
    }
}

/// The paths that people mistype.
const PATHS: [&str; 17] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/v1/files",
    "/v1/batches",
    "/v1/conversations",
    "/v1/usage",
    "/v1/chat/ws",
    "/v1/keys",
    "/v1/tree/events",
    session::PATH,
    "/openapi.json",
    "/arranca/",
    "/livez",
    "/readyz",
    "/metrics",
];

static NOSNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

pub(crate) fn router(context: Context) -> Router {
    Router::new()
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*id}", get(openai::model))
        .route("/v1/chat/completions", post(openai::chat_completions).delete(openai::cancel_keyed))
        .route("/v1/completions", post(openai::completions).delete(openai::cancel_keyed))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/chat/completions/{id}", delete(openai::cancel))
        .route("/v1/completions/{id}", delete(openai::cancel))
        .route("/v1/chat/ws", get(chat::open))
        .route("/v1/files", get(files::list).post(files::upload).layer(DefaultBodyLimit::disable()))
        .route("/v1/files/{id}", get(files::one).delete(files::delete))
        .route("/v1/files/{id}/content", get(files::content))
        .route("/v1/batches", get(batches::list).post(batches::create))
        .route("/v1/batches/{id}", get(batches::one))
        .route("/v1/batches/{id}/cancel", post(batches::cancel))
        .route("/v1/conversations", get(conversations::list).post(conversations::create))
        .route("/v1/conversations/search", get(conversations::search))
        .route(
            "/v1/conversations/{id}",
            get(conversations::one).put(conversations::put).patch(conversations::rename).delete(conversations::delete),
        )
        .route("/v1/conversations/{id}/share", post(conversations::share).delete(conversations::revoke))
        .route("/v1/shares/{id}", get(conversations::shared))
        .route("/v1/conversations/{id}/messages", post(conversations::append))
        .route(session::PATH, get(session::read).post(session::open).delete(session::close))
        .route("/v1/usage", get(usage::usage))
        .route("/v1/usage/requests", get(usage::requests))
        .route("/v1/keys", get(keys::list))
        .route("/v1/tree/events", get(tree::events))
        .route("/v1/tree/nodes/{name}", get(tree::node))
        .route("/v1/tree/nodes/{name}/log", get(tree::log))
        .route("/v1/tree/nodes/{name}/drain", post(tree::drain))
        .route("/v1/tree/nodes/{name}/move", post(tree::relocate))
        .route("/v1/tree/queries/{id}", get(tree::query))
        .route("/arranca/", post(legacy::arranca))
        .route("/arranca", post(legacy::arranca))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .route("/openapi.json", get(openapi::openapi))
        .fallback(page_or_nothing)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(context.clone(), caller::known))
        .layer(from_fn_with_state(context.clone(), meters::counted))
        .layer(from_fn_with_state(context.clone(), nothing_new))
        .layer(from_fn_with_state(context.clone(), hosts::only_known))
        .layer(CatchPanicLayer::custom(|_| {
            Error::server(StatusCode::INTERNAL_SERVER_ERROR, "this is our own mistake, please report it: the request panicked")
                .into_response()
        }))
        .layer(SetResponseHeaderLayer::overriding(NOSNIFF.clone(), HeaderValue::from_static("nosniff")))
        .layer(from_fn(request_id::named))
        .with_state(context)
}

/// Once the API stops it only says so; what was asked before goes on.
async fn nothing_new(State(context): State<Context>, request: Request, next: Next) -> Response {
    match request.uri().path() {
        "/livez" | "/readyz" | "/metrics" => next.run(request).await,
        _ if context.stopping.is_cancelled() => Error::closing().into_response(),
        _ => next.run(request).await,
    }
}

async fn page_or_nothing(request: Request) -> Response {
    let reads_only = matches!(*request.method(), Method::GET | Method::HEAD);
    match pages::at(request.uri().path()) {
        Some(page) if reads_only => pages::answer(page, request.headers()),
        Some(_) => ([(header::ALLOW, "GET,HEAD")], not_asked_so(&request, "GET")).into_response(),
        None => {
            let path: String = request.uri().path().chars().take(100).collect();
            let advice = match nearest(&path, PATHS).first() {
                Some(near) => format!("did you mean {near}?"),
                None => "GET /openapi.json says what there is".to_owned(),
            };
            Error::no_such_path(format!("there is nothing at {} {path}: {advice}", request.method())).into_response()
        }
    }
}

async fn wrong_method(request: Request) -> Error {
    let path = request.uri().path();
    let reads = |path: &str| path.starts_with("/v1/tree") && !path.ends_with("/drain") && !path.ends_with("/move");
    let wanted = if path.starts_with("/v1/models")
        || path == "/v1/keys"
        || reads(path)
        || path.ends_with("z")
        || path == "/metrics"
        || path.ends_with(".json")
    {
        "GET"
    } else {
        "POST"
    };
    not_asked_so(&request, wanted)
}

fn not_asked_so(request: &Request, wanted: &str) -> Error {
    Error::invalid(format!("{} is not asked with {}: use {wanted}", request.uri().path(), request.method()))
        .status(StatusCode::METHOD_NOT_ALLOWED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_documented() {
        let document = openapi::document();
        for path in PATHS {
            assert!(document["paths"].get(path).is_some(), "{path}");
        }
    }
}
