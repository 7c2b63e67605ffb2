//! Who asks: read from a request before anything else of it is, and handed on to whoever answers.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use banyan_observe::Place;
use banyan_store::{Key, Room, Standing};
use tokio::sync::Notify;

use crate::{openai::Error, request_id, routes::Context, session};

/// Whose lane a query waits in, and whose history it is, while there are no keys to tell people apart.
pub(crate) const EVERYBODY: &str = "everybody";

/// In front of a key among a WebSocket's subprotocols: browsers let pages set no other header.
const KEY_PROTOCOL: &str = "banyan-key.";

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// In W3C's draft of a second level: how whoever sent no place finds the trace.
static TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

static LIMITS: [[HeaderName; 3]; 2] = [
    [
        HeaderName::from_static("x-ratelimit-limit-requests"),
        HeaderName::from_static("x-ratelimit-remaining-requests"),
        HeaderName::from_static("x-ratelimit-reset-requests"),
    ],
    [
        HeaderName::from_static("x-ratelimit-limit-tokens"),
        HeaderName::from_static("x-ratelimit-remaining-tokens"),
        HeaderName::from_static("x-ratelimit-reset-tokens"),
    ],
];

/// Somebody who asks. Clones are the same one, of one request.
#[derive(Clone)]
pub(crate) struct Caller {
    /// Whose queries, files and conversations these are: the key's id, or everybody.
    pub(crate) owner: Arc<str>,
    /// `None` while there are no keys.
    pub(crate) key: Option<Arc<Key>>,
    /// The name of its request.
    pub(crate) request_id: Arc<str>,
    /// The highest priority that its queries get.
    pub(crate) priority_max: i32,
    /// Told when a query of its runs.
    pub(crate) running: Option<Arc<Notify>>,
    /// What its response says of its limits.
    standing: Arc<Mutex<Standing>>,
    /// Where its request is in a trace, as its client said.
    pub(crate) place: Option<Place>,
    /// Where it is here, for its response.
    traced: Arc<OnceLock<Place>>,
}

impl Default for Caller {
    fn default() -> Self {
        Caller::of(None, "".into())
    }
}

impl Caller {
    pub(crate) fn of(key: Option<Arc<Key>>, request_id: Arc<str>) -> Self {
        let owner = key.as_ref().map_or(EVERYBODY, |key| &key.id).into();
        Caller {
            owner,
            key,
            request_id,
            priority_max: i32::MAX,
            running: None,
            standing: Arc::default(),
            place: None,
            traced: Arc::default(),
        }
    }

    /// The same with a request whose queries wait behind others', and who is told when they run.
    pub(crate) fn behind(self, request_id: Arc<str>, priority_max: i32, running: Option<Arc<Notify>>) -> Self {
        Caller { request_id, priority_max, running, ..self }
    }

    /// The id of its key; empty without one.
    pub(crate) fn key_id(&self) -> &str {
        self.key.as_ref().map_or("", |key| &key.id)
    }

    /// Notes how it stands, for its response.
    pub(crate) fn stands(&self, standing: Standing) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    /// Notes the place of what is done for it, for its response.
    pub(crate) fn is_traced(&self, place: Place) {
        // Of several the first one is the one that its client waits for.
        let _ = self.traced.set(place);
    }

    /// A query of its runs now.
    pub(crate) fn runs(&self) {
        if let Some(running) = &self.running {
            running.notify_one();
        }
    }
}

/// Lets through who may ask, and says in the response how they stand with their limits.
pub(crate) async fn known(State(context): State<Context>, mut request: Request, next: Next) -> Response {
    // Asked by a part of this API, for somebody who was let in before.
    if let Some(caller) = request.extensions().get::<Caller>() {
        let caller = caller.clone();
        return with_limits(next.run(request).await, &caller);
    }
    let path = request.uri().path();
    if path == session::PATH || path.starts_with("/v1/shares/") {
        // Whoever signs in is nobody yet, and whoever has a link may be anybody.
        request.extensions_mut().insert(Caller::default());
        return next.run(request).await;
    }
    if !path.starts_with("/v1/") && !path.starts_with("/arranca") {
        return next.run(request).await;
    }
    let shown = secret(request.headers());
    let kept = if shown.is_none() { session::secret(request.headers()) } else { None };
    if kept.is_some() && changes(&request) && !context.hosts.comes_from_own_page(request.headers()) {
        return Error::forbidden("a session is its own page's alone: send the key as `Authorization: Bearer KEY`")
            .into_response();
    }
    match context.keyring.check(shown.or(kept)) {
        Ok(key) => {
            let id = request.extensions().get::<request_id::Name>().and_then(|name| name.0.to_str().ok());
            let place = place(request.headers());
            let caller = Caller { place, ..Caller::of(key, id.unwrap_or_default().into()) };
            request.extensions_mut().insert(caller.clone());
            with_limits(next.run(request).await, &caller)
        }
        Err(denied) => ([(header::WWW_AUTHENTICATE, "Bearer")], Error::unknown_key(denied)).into_response(),
    }
}

/// Whether a request is more than a reading: browsers send cookies with a WebSocket that any page opens.
fn changes(request: &Request) -> bool {
    !matches!(*request.method(), Method::GET | Method::HEAD) || request.headers().contains_key(header::UPGRADE)
}

/// Where a client says that its request is in a trace (W3C, Trace Context).
fn place(headers: &HeaderMap) -> Option<Place> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    Place::read(text(&TRACEPARENT)?, text(&TRACESTATE).unwrap_or_default())
}

fn secret(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, secret) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim());
    }
    let protocols = headers.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    protocols.split(',').find_map(|protocol| protocol.trim().strip_prefix(KEY_PROTOCOL))
}

fn with_limits(mut response: Response, caller: &Caller) -> Response {
    let standing = *caller.standing.lock().unwrap_or_else(PoisonError::into_inner);
    for (room, names) in [standing.requests, standing.tokens].into_iter().zip(&LIMITS) {
        let Some(Room { limit, remaining, reset_ms }) = room else { continue };
        let reset = HeaderValue::try_from(duration(reset_ms)).expect("digits and letters are a header's value");
        for (name, value) in names.iter().zip([limit.into(), remaining.into(), reset]) {
            response.headers_mut().insert(name.clone(), value);
        }
    }
    if let Some(place) = caller.traced.get().and_then(|place| HeaderValue::try_from(place.traceparent()).ok()) {
        response.headers_mut().insert(TRACERESPONSE.clone(), place);
    }
    response
}

/// As OpenAI writes them: 120ms, 1.5s, 6m0s.
fn duration(ms: u64) -> String {
    let seconds = |ms: u64| match ms % 1000 {
        0 => format!("{}s", ms / 1000),
        part => format!("{}.{part:03}", ms / 1000).trim_end_matches('0').to_owned() + "s",
    };
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => seconds(ms),
        _ => format!("{}m{}", ms / 60_000, seconds(ms % 60_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn a_key_stands_in_a_header_or_among_subprotocols() {
        assert_eq!(secret(&headers(header::AUTHORIZATION, "Bearer sk-1")), Some("sk-1"));
        assert_eq!(secret(&headers(header::AUTHORIZATION, "bearer  sk-1 ")), Some("sk-1"));
        assert_eq!(secret(&headers(header::AUTHORIZATION, "Basic sk-1")), None);
        assert_eq!(secret(&headers(header::SEC_WEBSOCKET_PROTOCOL, "banyan, banyan-key.sk-1")), Some("sk-1"));
        assert_eq!(secret(&HeaderMap::new()), None);
    }

    #[test]
    fn durations_are_written_as_openai_does() {
        let written = [0, 120, 1_000, 1_500, 59_999, 60_000, 90_250].map(duration);
        assert_eq!(written, ["0ms", "120ms", "1s", "1.5s", "59.999s", "1m0s", "1m30.25s"]);
    }
}
