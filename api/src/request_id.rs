//! A name for every request, on every response: the client's, when it sent a sane one, or else a new one.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use banyan_proto::QueryId;
use tokio::time::Instant;
use tracing::debug;

static NAME: HeaderName = HeaderName::from_static("x-request-id");

/// Longer ones are not somebody's id.
const LENGTH_MAX: usize = 128;

/// What a request is called.
#[derive(Clone)]
pub(crate) struct Name(pub(crate) HeaderValue);

/// Names the request in its response and in the log.
pub(crate) async fn named(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(&NAME).filter(|id| is_sane(id)).cloned().unwrap_or_else(fresh);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    request.extensions_mut().insert(Name(id.clone()));
    let started = Instant::now();
    let mut response = next.run(request).await;
    debug!(request = id.to_str().unwrap_or_default(), %method, path, status = response.status().as_u16(), after = ?started.elapsed(), "answered");
    response.headers_mut().insert(NAME.clone(), id);
    response
}

fn is_sane(id: &HeaderValue) -> bool {
    (1..=LENGTH_MAX).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

fn fresh() -> HeaderValue {
    HeaderValue::try_from(format!("req-{}", QueryId::new())).expect("hexadecimal digits are a header's value")
}
