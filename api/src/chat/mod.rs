//! `GET /v1/chat/ws`: a conversation over a WebSocket, one JSON message per turn. docs/chat.md says what goes over it.
//!
//! The history is the store's, by the caller's key and the client's id, so that any API goes on with it. While the store is in trouble the
//! conversation goes on in memory, and says so.

mod history;
mod turn;

use std::time::Duration;

use axum::{
    Extension,
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    http::StatusCode,
    response::Response,
};
use futures::{SinkExt as _, StreamExt as _, stream::SplitSink};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, interval_at, sleep_until, timeout},
};
use tracing::debug;

use self::{
    history::History,
    turn::{Piece, Turn},
};
use crate::{
    asked::Asked,
    caller::Caller,
    openai::Error,
    routes::{self, Context},
};

/// Proxies close what is silent for a minute.
const PING_EVERY: Duration = Duration::from_secs(20);

const CLIENT_ID_BYTES_MAX: usize = 200;

/// What browsers ask for beside their key; one of those offered has to be chosen.
const PROTOCOL: &str = "banyan";

/// Who talks.
#[derive(Deserialize)]
pub(crate) struct Client {
    client_id: Option<String>,
    #[serde(rename = "clientId")]
    camel: Option<String>,
}

/// Begins a conversation, or goes on with it.
pub(crate) async fn open(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    Asked(client): Asked<Client>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Error> {
    let client_id = match client.client_id.or(client.camel) {
        Some(id) if (1..=CLIENT_ID_BYTES_MAX).contains(&id.len()) => id,
        _ => {
            let message = format!("'client_id' must be 1 to {CLIENT_ID_BYTES_MAX} bytes: the client's name for its conversation");
            return Err(Error::parameter("client_id", message));
        }
    };
    let upgrade = upgrade.map_err(|_| {
        Error::invalid("this is a WebSocket: connect to it as ws:// or wss://").status(StatusCode::UPGRADE_REQUIRED)
    })?;
    let Ok(permit) = context.sockets.clone().try_acquire_owned() else { return Err(Error::crowded()) };
    let bytes = context.limits.body_bytes;
    Ok(upgrade
        .protocols([PROTOCOL])
        .max_message_size(bytes)
        .max_frame_size(bytes)
        .on_upgrade(move |socket| talk(context, caller, client_id, socket, permit)))
}

type Sink = SplitSink<WebSocket, Message>;

/// What a client may say.
enum Said {
    /// A turn: a request without its messages, and the text.
    Turn { request: Value, text: Option<String> },
    /// No more of the answer.
    Stop,
}

/// Why a conversation ends here.
enum End {
    /// The client went away, or does not take what is sent.
    Gone,
    /// Nobody said anything for so long.
    Idle,
    /// The API stops.
    Stopping,
}

async fn talk(context: Context, caller: Caller, client_id: String, socket: WebSocket, permit: OwnedSemaphorePermit) {
    let _permit = permit;
    let (mut sink, mut stream) = socket.split();
    let history = History::open(&context, &caller, &client_id).await;
    let mut talk = Talk { context: context.clone(), caller, history };
    let end = talk.run(&mut sink, &mut stream).await;
    let frame = match end {
        End::Gone => return,
        End::Idle => CloseFrame { code: close_code::NORMAL, reason: "idle for too long: connect again to go on".into() },
        End::Stopping => CloseFrame { code: close_code::RESTART, reason: "this API stops: connect again to go on".into() },
    };
    // Whoever does not take it is gone.
    let _ = timeout(context.limits.write_stall, sink.send(Message::Close(Some(frame)))).await;
}

struct Talk {
    context: Context,
    caller: Caller,
    history: History,
}

impl Talk {
    async fn run(
        &mut self,
        sink: &mut Sink,
        stream: &mut (impl futures::Stream<Item = Result<Message, axum::Error>> + Unpin),
    ) -> End {
        let ready = json!({
            "type": "ready",
            "replica": self.context.replica,
            "conversation_id": self.history.id(),
            "messages": self.history.len(),
            "unanswered": self.history.is_unanswered(),
            "history": self.history.state(),
        });
        if self.send(sink, &ready).await.is_err() {
            return End::Gone;
        }
        let mut ping = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        let mut idle = Instant::now() + self.context.limits.chat_idle;
        let mut turn: Option<Turn> = None;
        loop {
            tokio::select! {
                biased;
                () = self.context.ending.cancelled() => return End::Stopping,
                // An answer that is under way may end.
                () = self.context.stopping.cancelled(), if turn.is_none() => return End::Stopping,
                piece = next(&mut turn) => {
                    idle = Instant::now() + self.context.limits.chat_idle;
                    if self.tell(sink, &mut turn, piece).await.is_err() {
                        return End::Gone;
                    }
                }
                message = stream.next() => {
                    let text = match message {
                        Some(Ok(Message::Text(text))) => text,
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                        Some(Ok(Message::Binary(_))) => {
                            let error = Error::invalid("messages are text: send JSON");
                            match self.fail(sink, error).await { Ok(()) => continue, Err(_) => return End::Gone }
                        }
                        Some(Ok(Message::Close(_)) | Err(_)) | None => return End::Gone,
                    };
                    idle = Instant::now() + self.context.limits.chat_idle;
                    let begun = match read(text.as_str()) {
                        Ok(Said::Stop) => {
                            if let Some(stopped) = turn.take() {
                                let whole = stopped.stopped();
                                let told = self.end(sink, whole).await;
                                if told.is_err() { return End::Gone; }
                            }
                            Ok(None)
                        }
                        Ok(Said::Turn { .. }) if turn.is_some() => {
                            Err(Error::invalid("an answer is under way: wait for it, or send {\"type\": \"stop\"}"))
                        }
                        Ok(Said::Turn { request, text }) => self.begin(request, text).await.map(Some),
                        Err(error) => Err(error),
                    };
                    match begun {
                        Ok(begun) => turn = begun.or(turn.take()),
                        Err(error) => if self.fail(sink, error).await.is_err() { return End::Gone; },
                    }
                }
                _ = ping.tick() => {
                    if self.put(sink, Message::Ping(Default::default())).await.is_err() {
                        return End::Gone;
                    }
                }
                () = sleep_until(idle), if turn.is_none() => return End::Idle,
            }
        }
    }

    /// Asks. What is said is kept first, so that it is there whatever dies now.
    async fn begin(&mut self, mut request: Value, text: Option<String>) -> Result<Turn, Error> {
        if request["model"].is_null() {
            let offers = self.context.roots.offers(self.caller.key.as_deref());
            // One with a chat template, where there is one.
            let best = offers.into_iter().max_by_key(|offer| offer.chat).map(|offer| offer.id);
            request["model"] = best.unwrap_or_default().into();
        }
        match text {
            Some(text) => self.history.hear(&self.context, &self.caller, text).await,
            None if self.history.is_unanswered() => {}
            None => return Err(Error::parameter("text", "'text' is missing: send what you say")),
        }
        Ok(Turn::begin(routes::router(self.context.clone()), self.caller.clone(), request, self.history.messages()))
    }

    /// Passes on what came of an answer.
    async fn tell(&mut self, sink: &mut Sink, turn: &mut Option<Turn>, piece: Piece) -> Result<(), Gone> {
        match piece {
            Piece::Text(text) => self.send(sink, &json!({ "type": "token", "text": text })).await,
            Piece::Whole(whole) => {
                *turn = None;
                self.end(sink, whole).await
            }
            Piece::Failed(error) => {
                *turn = None;
                self.send(sink, &json!({ "type": "error", "error": error, "replica": self.context.replica })).await
            }
        }
    }

    async fn end(&mut self, sink: &mut Sink, whole: turn::Whole) -> Result<(), Gone> {
        self.history.answer(&self.context, &self.caller, &whole).await;
        let done = json!({
            "type": "done",
            "text": whole.text,
            "finish_reason": whole.finish_reason,
            "replica": self.context.replica,
            "node": whole.node,
            "model": whole.model,
            "query": whole.query,
            "usage": whole.usage,
            "history": self.history.state(),
        });
        self.send(sink, &done).await
    }

    async fn fail(&self, sink: &mut Sink, error: Error) -> Result<(), Gone> {
        let shape = serde_json::to_value(error.shape()).expect("our own shapes are JSON");
        self.send(sink, &json!({ "type": "error", "error": shape["error"], "replica": self.context.replica })).await
    }

    async fn send(&self, sink: &mut Sink, value: &Value) -> Result<(), Gone> {
        self.put(sink, Message::Text(value.to_string().into())).await
    }

    async fn put(&self, sink: &mut Sink, message: Message) -> Result<(), Gone> {
        match timeout(self.context.limits.write_stall, sink.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                debug!(error = &error as &dyn std::error::Error, "socket broke");
                Err(Gone)
            }
            Err(_) => Err(Gone),
        }
    }
}

/// The client is.
struct Gone;

async fn next(turn: &mut Option<Turn>) -> Piece {
    match turn {
        Some(turn) => turn.next().await,
        None => std::future::pending().await,
    }
}

/// A turn is any chat request with `text` instead of `messages`.
fn read(text: &str) -> Result<Said, Error> {
    let Ok(Value::Object(mut fields)) = serde_json::from_str(text) else {
        return Err(Error::invalid("a turn is a JSON object: send {\"text\": \"…\"}"));
    };
    match fields.remove("type").as_ref().map(|kind| kind.as_str()) {
        None | Some(Some("turn" | "continue")) => {}
        Some(Some("stop")) => return Ok(Said::Stop),
        Some(_) => return Err(Error::parameter("type", "'type' must be turn, continue or stop")),
    }
    if fields.contains_key("messages") {
        return Err(Error::parameter("messages", "the history is kept here: send 'text' alone"));
    }
    let text = match fields.remove("text") {
        Some(Value::String(text)) => Some(text),
        None | Some(Value::Null) => None,
        Some(_) => return Err(Error::parameter("text", "'text' must be a string: what you say")),
    };
    for ours in ["stream", "stream_options", "n", "resumable", "places"] {
        fields.remove(ours);
    }
    Ok(Said::Turn { request: Value::Object(fields), text })
}
