//! The one shape of every error, and which status, type and code a failure has.

use std::{borrow::Cow, time::Duration};

use axum::{
    Json,
    extract::rejection::PathRejection,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use banyan_proto::{nearest, v1};
use banyan_store::{Error as StoreError, Key, Refused};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{answer::Failure, keyring::Denied, root::AskError};

/// Clients don't wait longer: OpenAI's for Node ignores more than 60 s, the one for Python refuses more than 120 s.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// When the root gives no advice.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a client is told when its request fails.
#[derive(Debug)]
pub(crate) struct Error {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<Cow<'static, str>>,
    message: Cow<'static, str>,
    retry_after: Option<Duration>,
    /// Whether clients should try again, where the status alone would tell them the wrong thing.
    should_retry: Option<bool>,
}

/// The shape: all four keys, always.
#[derive(JsonSchema, Serialize)]
pub(crate) struct Shape<'a> {
    error: Inner<'a>,
}

#[derive(JsonSchema, Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

impl Error {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Error { status, kind, code: None, param: None, message: message.into(), retry_after: None, should_retry: None }
    }

    /// The request is at fault: 400.
    pub(crate) fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Error::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// One parameter is at fault: 400.
    pub(crate) fn parameter(param: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Error { param: Some(param.into()), ..Error::invalid(message) }
    }

    /// Who asks may not: 403.
    pub(crate) fn forbidden(message: &'static str) -> Self {
        Error::invalid(message).status(StatusCode::FORBIDDEN)
    }

    /// Nothing lies at that path: 404.
    pub(crate) fn no_such_path(message: String) -> Self {
        Error::invalid(message).status(StatusCode::NOT_FOUND)
    }

    /// No node serves that model: 404, with the names that come near.
    pub(crate) fn no_such_model<'a>(model: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Self {
        let mut hint: Vec<&str> = nearest(model, known.clone());
        let near = !hint.is_empty();
        if !near {
            hint.extend(known.into_iter().take(3));
        }
        let quoted: Vec<String> = hint.iter().map(|name| format!("'{name}'")).collect();
        let advice = match (quoted.join(", "), near) {
            (names, true) => format!("did you mean {names}?"),
            (names, false) if !names.is_empty() => format!("there is {names}; GET /v1/models lists all"),
            _ => "no node serves any model yet: start one with `banyan node run NAME --parent PARENT`".to_owned(),
        };
        let mut error = Error::parameter("model", format!("the model '{model}' is not served here: {advice}"));
        error.status = StatusCode::NOT_FOUND;
        error.code = Some("model_not_found");
        error
    }

    /// Our own fault, or the tree's.
    pub(crate) fn server(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Error::new(status, "server_error", message)
    }

    /// Who asks showed no good key: 401.
    pub(crate) fn unknown_key(denied: Denied) -> Self {
        let message = match denied {
            Denied::Missing => {
                "no API key was sent: send it as `Authorization: Bearer KEY`; the operator makes one with `banyan key create`"
            }
            Denied::Unknown => "the API key is not known here: check it, or ask the operator for another (`banyan key create`)",
            Denied::Revoked => "the API key was revoked: ask the operator for another (`banyan key create`)",
        };
        Error { code: Some("invalid_api_key"), ..Error::invalid(message).status(StatusCode::UNAUTHORIZED) }
    }

    /// A key has used up one of its limits: 429.
    pub(crate) fn limited(refused: Refused, key: &Key) -> Self {
        let (what, limit) = match refused.by_tokens {
            true => ("tokens", key.tokens_per_minute),
            false => ("requests", key.requests_per_minute),
        };
        let message = format!(
            "the key `{}` may use {} {what} a minute, and has: ask again in {} s",
            key.name,
            limit.unwrap_or_default(),
            refused.retry_ms.div_ceil(1000)
        );
        let error = Error::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        Error { code: Some("rate_limit_exceeded"), ..error.retry_after(Duration::from_millis(refused.retry_ms)) }
    }

    /// The store could not do what the request needs.
    pub(crate) fn of_store(error: StoreError) -> Self {
        if error.is_trouble() {
            tracing::warn!(error = &error as &dyn std::error::Error, "store in trouble");
        }
        match error {
            StoreError::Missing(message) => Error::invalid(message).status(StatusCode::NOT_FOUND),
            StoreError::Conflict(message) => Error::invalid(message).status(StatusCode::CONFLICT).not_again(),
            StoreError::ReadOnly(_) => Error {
                code: Some("read_only"),
                ..Error::server(
                    StatusCode::INSUFFICIENT_STORAGE,
                    "nothing can be kept, as the store's disk is full or read-only; what is there can be read, and chat goes on",
                )
                .not_again()
            },
            error => Error {
                code: Some("store_unavailable"),
                ..Error::server(StatusCode::SERVICE_UNAVAILABLE, format!("{error}: try again; chat goes on without it"))
                    .retry_after(RETRY_AFTER)
            },
        }
    }

    /// This API runs without a store: 501.
    pub(crate) fn no_store() -> Self {
        let message = "this API keeps nothing: start it with `--store FILE` or `--store postgres://…`";
        Error::server(StatusCode::NOT_IMPLEMENTED, message).not_again()
    }

    /// The status, as a number.
    pub(crate) fn code(&self) -> u16 {
        self.status.as_u16()
    }

    /// Requests take all the memory that they may: 429.
    pub(crate) fn crowded() -> Self {
        let message = "the requests under way take all the memory that they may: send this one again in a second";
        let error = Error::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message).retry_after(RETRY_AFTER);
        Error { code: Some("rate_limit_exceeded"), ..error }
    }

    /// This API ends: 503.
    pub(crate) fn closing() -> Self {
        Error {
            code: Some("shutting_down"),
            ..Error::server(StatusCode::SERVICE_UNAVAILABLE, "the API is shutting down: ask again").retry_after(RETRY_AFTER)
        }
    }

    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after.clamp(Duration::from_secs(1), RETRY_AFTER_MAX));
        self
    }

    fn not_again(mut self) -> Self {
        self.should_retry = Some(false);
        self
    }

    /// As it stands in a body or in an event.
    pub(crate) fn shape(&self) -> Shape<'_> {
        Shape { error: Inner { message: &self.message, r#type: self.kind, param: self.param.as_deref(), code: self.code } }
    }

    /// What became of a query. `prompt` is the parameter that carried its prompt; `known` are the models that we know of.
    pub(crate) fn of(failure: Failure, model: &str, prompt: &'static str, known: &[&str]) -> Self {
        match failure {
            Failure::Failed(failed) => Error::failed(failed, model, prompt, known),
            Failure::Unasked(AskError::NoRoot) => Error::server(
                StatusCode::SERVICE_UNAVAILABLE,
                "no root has registered: start one with `banyan node run root`, or look at `banyan node list`",
            )
            .retry_after(RETRY_AFTER),
            Failure::Unasked(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "root can't be asked");
                Error::server(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("{error}: try again in a moment; the operator may look at `banyan node list`"),
                )
                .retry_after(RETRY_AFTER)
            }
            Failure::Lost => Error::server(StatusCode::SERVICE_UNAVAILABLE, "the root went away while it answered: ask again")
                .retry_after(RETRY_AFTER),
            Failure::Late => Error::late("the query's deadline passed, and the root is silent: ask again").not_again(),
            failure @ Failure::Garbled(_) => {
                tracing::warn!(error = &failure as &dyn std::error::Error, "answer makes no sense");
                Error::server(StatusCode::INTERNAL_SERVER_ERROR, format!("{failure}: are all nodes of one version?")).not_again()
            }
            Failure::Closing => Error::closing(),
        }
    }

    fn late(message: impl Into<Cow<'static, str>>) -> Self {
        Error { code: Some("deadline_exceeded"), ..Error::server(StatusCode::GATEWAY_TIMEOUT, message) }
    }

    fn failed(failed: v1::Failed, model: &str, prompt: &'static str, known: &[&str]) -> Self {
        let advice = |otherwise: &'static str| -> Cow<'static, str> {
            if failed.message.is_empty() { otherwise.into() } else { failed.message.clone().into() }
        };
        let after = match failed.retry_after_ms {
            0 => RETRY_AFTER,
            ms => Duration::from_millis(ms),
        };
        match failed.reason() {
            v1::Failure::Overloaded => {
                let message = advice("the tree is full and its lanes too: try again later, or add nodes");
                Error {
                    code: Some("rate_limit_exceeded"),
                    ..Error::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message).retry_after(after)
                }
            }
            v1::Failure::UnknownModel => {
                let known = failed.models.iter().map(String::as_str).chain(known.iter().copied());
                let mut known: Vec<&str> = known.collect();
                known.sort_unstable();
                known.dedup();
                Error::no_such_model(model, known)
            }
            v1::Failure::TooLong => {
                // LangChain knows it by the code's text, and newer clients of OpenAI's show it the message alone.
                let message = format!(
                    "this model's maximum context length is {} tokens, and at least {} were asked for in prompt and completion: shorten \
                     the prompt, or ask for fewer tokens (context_length_exceeded)",
                    failed.limit, failed.got
                );
                Error { code: Some("context_length_exceeded"), ..Error::parameter(prompt, message) }
            }
            v1::Failure::Invalid => {
                let message = advice("the model can't serve these parameters");
                Error { param: Some(failed.param).filter(|param| !param.is_empty()).map(Into::into), ..Error::invalid(message) }
            }
            v1::Failure::Deadline => {
                Error::late(advice("the deadline passed before the answer was complete: allow more with deadline_ms")).not_again()
            }
            v1::Failure::Poison => {
                Error::server(StatusCode::INTERNAL_SERVER_ERROR, advice("nodes died while they ran this query: change it"))
                    .not_again()
            }
            v1::Failure::ShuttingDown => {
                Error::server(StatusCode::SERVICE_UNAVAILABLE, advice("the tree is shutting down: ask again")).retry_after(after)
            }
            v1::Failure::NoNode => {
                Error::server(StatusCode::SERVICE_UNAVAILABLE, advice("the nodes of this model are away: ask again"))
                    .retry_after(after)
            }
            v1::Failure::Cancelled => {
                Error::server(StatusCode::INTERNAL_SERVER_ERROR, advice("the query was cancelled: ask again"))
            }
            v1::Failure::Engine => Error::server(
                StatusCode::INTERNAL_SERVER_ERROR,
                advice("the node's engine failed: ask again; the operator may look at `banyan node log`"),
            ),
            v1::Failure::NotFound => Error {
                code: Some("answer_not_found"),
                ..Error::invalid("there is no such answer under way (any more): ask again without Last-Event-ID")
                    .status(StatusCode::NOT_FOUND)
            },
            v1::Failure::Conflict => Error {
                code: Some("idempotency_conflict"),
                ..Error::invalid("this Idempotency-Key belongs to another request: send the same body again, or another key")
                    .status(StatusCode::CONFLICT)
                    .not_again()
            },
            v1::Failure::Duplicate | v1::Failure::Unspecified => {
                Error::server(StatusCode::INTERNAL_SERVER_ERROR, advice("the root could not take the query: ask again"))
            }
        }
    }
}

/// A path with a part that is no text.
impl From<PathRejection> for Error {
    fn from(rejection: PathRejection) -> Self {
        let message = format!("the path can't be read ({}): write names in UTF-8, percent-encoded", rejection.body_text());
        Error::invalid(message).status(rejection.status())
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.shape())).into_response();
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            let seconds = after.as_millis().div_ceil(1000);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds as u64));
            headers.insert("retry-after-ms", HeaderValue::from(after.as_millis() as u64));
        }
        if let Some(retry) = self.should_retry {
            headers.insert("x-should-retry", HeaderValue::from_static(if retry { "true" } else { "false" }));
        }
        response
    }
}
