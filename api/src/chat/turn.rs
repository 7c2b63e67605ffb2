//! One answer: asked of this API's own chat endpoint, so that a turn is what any other request is, and read piece by piece.

use axum::{
    Router,
    body::{Body, BodyDataStream, to_bytes},
    http::{Request, header},
};
use bytes::BytesMut;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::caller::Caller;

/// As large as an error gets.
const ERROR_BYTES_MAX: usize = 1 << 20;

/// An answer that is under way. Dropping it cancels it.
pub(super) struct Turn {
    router: Router,
    caller: Caller,
    request: Value,
    messages: Vec<Value>,
    state: State,
    whole: Whole,
}

enum State {
    Asking(BoxFuture<'static, Result<BodyDataStream, Value>>),
    Reading(BodyDataStream, BytesMut),
}

/// What came of it.
pub(super) enum Piece {
    Text(String),
    Whole(Whole),
    /// An error as the API shows it.
    Failed(Value),
}

/// A whole answer, and where it comes from.
#[derive(Clone, Default)]
pub(super) struct Whole {
    pub(super) text: String,
    pub(super) finish_reason: Option<String>,
    pub(super) model: String,
    pub(super) node: Option<String>,
    pub(super) query: Option<String>,
    pub(super) usage: Value,
}

impl Turn {
    pub(super) fn begin(router: Router, caller: Caller, request: Value, messages: Vec<Value>) -> Turn {
        let state = State::Asking(ask(&router, &caller, &request, &messages));
        Turn { router, caller, request, messages, state, whole: Whole::default() }
    }

    /// What there is of it, when nobody wants more.
    pub(super) fn stopped(mut self) -> Whole {
        self.whole.finish_reason = Some("stop".to_owned());
        self.whole
    }

    /// What comes next. Asked no more after the whole or an error.
    pub(super) async fn next(&mut self) -> Piece {
        loop {
            match &mut self.state {
                State::Asking(asking) => {
                    let error = match asking.await {
                        Ok(body) => {
                            self.state = State::Reading(body, BytesMut::new());
                            continue;
                        }
                        Err(error) => error,
                    };
                    // An old conversation is longer than a model remembers: its beginning is forgotten.
                    if error["code"] == "context_length_exceeded" && self.messages.len() > 1 {
                        let older = self.messages.len().div_ceil(2).min(self.messages.len() - 1);
                        self.messages.drain(..older);
                        self.state = State::Asking(ask(&self.router, &self.caller, &self.request, &self.messages));
                        continue;
                    }
                    return Piece::Failed(error);
                }
                State::Reading(body, unread) => {
                    if let Some(end) = unread.windows(2).position(|two| two == b"\n\n") {
                        let event = unread.split_to(end + 2);
                        if let Some(piece) = self.read(&event) {
                            return piece;
                        }
                        continue;
                    }
                    match body.next().await {
                        Some(Ok(bytes)) => unread.extend_from_slice(&bytes),
                        _ => {
                            return Piece::Failed(json!({ "message": "the answer broke off: ask again", "type": "server_error",
                            "param": null, "code": null }));
                        }
                    }
                }
            }
        }
    }

    fn read(&mut self, event: &[u8]) -> Option<Piece> {
        let event = String::from_utf8_lossy(event);
        let data = event.lines().find_map(|line| line.strip_prefix("data: "))?;
        if data == "[DONE]" {
            return Some(Piece::Whole(std::mem::take(&mut self.whole)));
        }
        let mut data: Value = serde_json::from_str(data).unwrap_or_default();
        if !data["error"].is_null() {
            return Some(Piece::Failed(data["error"].take()));
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        self.whole.model = text(&data["model"]).unwrap_or_default();
        if !data["usage"].is_null() {
            self.whole.usage = data["usage"].take();
        }
        if let Some(node) = text(&data["banyan"]["node"]) {
            (self.whole.node, self.whole.query) = (Some(node), text(&data["banyan"]["query"]));
        }
        let choice = &data["choices"][0];
        if let Some(reason) = text(&choice["finish_reason"]) {
            self.whole.finish_reason = Some(reason);
        }
        let added = text(&choice["delta"]["content"]).filter(|added| !added.is_empty())?;
        self.whole.text.push_str(&added);
        Some(Piece::Text(added))
    }
}

/// The answer's stream, or the error as the API shows it.
fn ask(
    router: &Router,
    caller: &Caller,
    request: &Value,
    messages: &[Value],
) -> BoxFuture<'static, Result<BodyDataStream, Value>> {
    let mut request = request.clone();
    request["messages"] = messages.into();
    request["stream"] = true.into();
    request["stream_options"] = json!({ "include_usage": true });
    let body = request.to_string();
    let request = Request::post("/v1/chat/completions")
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONTENT_LENGTH, body.len())
        .extension(caller.clone())
        .body(Body::from(body))
        .expect("our own headers are good");
    let router = router.clone();
    async move {
        let response = router.oneshot(request).await.unwrap_or_else(|never| match never {});
        if response.status().is_success() {
            return Ok(response.into_body().into_data_stream());
        }
        let body = to_bytes(response.into_body(), ERROR_BYTES_MAX).await.unwrap_or_default();
        Err(serde_json::from_slice::<Value>(&body).unwrap_or_default()["error"].take())
    }
    .boxed()
}
