//! A small HTTP client: whole answers, and server-sent events one by one with the time at which they came.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode, body::Incoming, client::conn::http1, header, http::HeaderMap};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, task::JoinHandle, time::Instant};

/// An API under test.
#[derive(Clone, Copy, Debug)]
pub struct Http(pub SocketAddr);

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {}: {}", self.status, String::from_utf8_lossy(&self.body)))
    }

    /// The text of the first choice.
    ///
    /// # Panics
    /// When there is none.
    pub fn text(&self) -> String {
        let json = self.json();
        let choice = &json["choices"][0];
        let text = choice["text"].as_str().or_else(|| choice["message"]["content"].as_str());
        text.unwrap_or_else(|| panic!("no text in {json}")).to_owned()
    }
}

impl Http {
    /// Posts JSON with one more header.
    pub async fn post_with(self, path: &str, header: (&str, &str), body: &Value) -> Answer {
        self.send("POST", path, &[header], body.to_string().into()).await.whole().await
    }

    /// Posts JSON with one more header, and reads events as they come.
    pub async fn stream_with(self, path: &str, header: (&str, &str), body: &Value) -> Events {
        self.stream_of("POST", path, &[header], body).await
    }

    /// Deletes a path.
    pub async fn delete(self, path: &str) -> Answer {
        self.send("DELETE", path, &[], Bytes::new()).await.whole().await
    }

    /// Deletes a path, with one more header.
    pub async fn delete_with(self, path: &str, header: (&str, &str)) -> Answer {
        self.send("DELETE", path, &[header], Bytes::new()).await.whole().await
    }

    /// Gets a path.
    pub async fn get(self, path: &str) -> Answer {
        self.send("GET", path, &[], Bytes::new()).await.whole().await
    }

    /// Gets a path where nobody may be there.
    pub async fn try_get(self, path: &str) -> Result<Answer, String> {
        self.try_send("GET", path, &[], Bytes::new()).await?.try_whole().await
    }

    /// Posts JSON.
    pub async fn post(self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[], body.to_string().into()).await.whole().await
    }

    /// Asks anything.
    pub async fn ask(self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        self.send(method, path, headers, body.into()).await.whole().await
    }

    /// As [`Http::ask`], where nobody may be there.
    pub async fn try_ask(
        self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        self.try_send(method, path, headers, body.into()).await?.try_whole().await
    }

    /// Uploads a file for a batch, as OpenAI's clients do.
    pub async fn upload(self, headers: &[(&str, &str)], content: &str) -> Answer {
        let form = format!(
            "--edge\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--edge\r\ncontent-disposition: form-data; \
             name=\"file\"; filename=\"in.jsonl\"\r\ncontent-type: application/octet-stream\r\n\r\n{content}\r\n--edge--\r\n"
        );
        let headers = [headers, &[("content-type", "multipart/form-data; boundary=edge")]].concat();
        self.ask("POST", "/v1/files", &headers, form).await
    }

    /// Posts anything.
    pub async fn post_bytes(self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send("POST", path, &[], body.into()).await.whole().await
    }

    /// Posts JSON, and reads events as they come.
    ///
    /// # Panics
    /// When the answer is no stream of events.
    pub async fn stream(self, path: &str, body: &Value) -> Events {
        self.stream_of("POST", path, &[], body).await
    }

    /// Gets a path whose answer is a stream of events.
    pub async fn events(self, path: &str, headers: &[(&str, &str)]) -> Events {
        self.stream_of("GET", path, headers, &Value::Null).await
    }

    async fn stream_of(self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Events {
        let answer = self.send(method, path, headers, body.to_string().into()).await;
        if !answer.is_stream() {
            let answer = answer.whole().await;
            panic!("no stream but {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
        answer.events()
    }

    /// Posts JSON where nobody may be there, or may go away: a stream of events, another answer, or what happened instead.
    pub async fn try_stream(self, path: &str, body: &Value) -> Result<Result<Events, Answer>, String> {
        self.try_stream_with(path, &[], body).await
    }

    /// The same with more headers.
    pub async fn try_stream_with(
        self,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Result<Result<Events, Answer>, String> {
        let begun = self.try_send("POST", path, headers, body.to_string().into()).await?;
        if begun.is_stream() { Ok(Ok(begun.events())) } else { begun.try_whole().await.map(Err) }
    }

    async fn send(self, method: &str, path: &str, headers: &[(&str, &str)], body: Bytes) -> Begun {
        let sent = self.try_send(method, path, headers, body).await;
        sent.unwrap_or_else(|error| panic!("{method} {path} at {}: {error}", self.0))
    }

    async fn try_send(self, method: &str, path: &str, headers: &[(&str, &str)], body: Bytes) -> Result<Begun, String> {
        let stream = TcpStream::connect(self.0).await.map_err(|error| format!("failed to dial: {error}"))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, self.0.to_string());
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = headers
            .iter()
            .fold(request, |request, (name, value)| request.header(*name, *value))
            .body(Full::new(body))
            .expect("tests make valid requests");
        // Made here, so that whoever stops waiting for an answer closes the socket.
        let connection = Connection(connection);
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (parts, body) = answer.into_parts();
        Ok(Begun { status: parts.status, headers: parts.headers, body, connection })
    }
}

struct Begun {
    status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
    connection: Connection,
}

impl Begun {
    fn is_stream(&self) -> bool {
        let kind = self.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        kind.is_some_and(|kind| kind.starts_with("text/event-stream"))
    }

    fn events(self) -> Events {
        Events { body: self.body, read: BytesMut::new(), connection: self.connection }
    }

    async fn whole(self) -> Answer {
        self.try_whole().await.expect("the whole answer arrives")
    }

    async fn try_whole(self) -> Result<Answer, String> {
        let body = self.body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        drop(self.connection);
        Ok(Answer { status: self.status, headers: self.headers, body })
    }
}

/// Closes the socket when dropped, as a client does that goes away.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A stream of server-sent events. Dropping it closes the connection.
pub struct Events {
    body: Incoming,
    read: BytesMut,
    #[expect(dead_code, reason = "held so that dropping the stream closes the socket")]
    connection: Connection,
}

/// The data of one event.
#[derive(Clone, Debug)]
pub struct Event {
    /// When it was read.
    pub at: Instant,
    /// What stands behind `data:`.
    pub data: String,
    /// What stands behind `id:`; empty when there is none.
    pub id: String,
}

impl Event {
    /// The data as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {}", self.data))
    }

    /// What it adds to the text of the first choice; empty when it adds none.
    pub fn text(&self) -> String {
        let json: Value = serde_json::from_str(&self.data).unwrap_or(Value::Null);
        let choice = &json["choices"][0];
        choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str()).unwrap_or_default().to_owned()
    }
}

impl Events {
    /// The next event that has data; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\n\n") {
                let event = self.read.split_to(end + 2);
                let event = String::from_utf8_lossy(&event);
                let data: Vec<&str> =
                    event.lines().filter_map(|line| line.strip_prefix("data:")).map(|data| data.trim_start()).collect();
                if !data.is_empty() {
                    let id = event.lines().find_map(|line| line.strip_prefix("id:")).unwrap_or_default().trim().to_owned();
                    return Some(Event { at: Instant::now(), data: data.join("\n"), id });
                }
                continue;
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.read.extend_from_slice(&data);
            }
        }
    }

    /// The next event that adds text.
    ///
    /// # Panics
    /// When the stream ends before.
    pub async fn next_text(&mut self) -> Event {
        loop {
            let event = self.next().await.expect("the stream goes on until there is text");
            if !event.text().is_empty() {
                return event;
            }
        }
    }

    /// All events to the end, `[DONE]` included.
    pub async fn rest(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// The text that events add up to.
pub fn joined(events: &[Event]) -> String {
    events.iter().map(Event::text).collect()
}
