//! Server-sent events, byte for byte (WHATWG HTML, section 9.2). What is in them is the dialects' affair.

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::Stream;
use serde::Serialize;

/// The end of a complete stream, as OpenAI's clients compare it.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// Events on their way out; several go in one write when they are ready together.
#[derive(Default)]
pub(crate) struct Events {
    buffer: BytesMut,
}

impl Events {
    /// What the next event is called when a client comes back for those behind it.
    pub(crate) fn id(&mut self, id: &str) {
        debug_assert!(!id.contains(['\n', '\r']), "an id is one line");
        self.buffer.put_slice(b"id: ");
        self.buffer.put_slice(id.as_bytes());
        self.buffer.put_slice(b"\n");
    }

    /// An event with a JSON value. JSON has no line breaks of its own, so that it is one `data` line.
    pub(crate) fn json(&mut self, value: &impl Serialize) {
        self.buffer.put_slice(b"data: ");
        serde_json::to_writer((&mut self.buffer).writer(), value).expect("our own shapes are JSON");
        self.buffer.put_slice(b"\n\n");
    }

    /// A comment, which clients skip: a sign of life for them and for the proxies between.
    pub(crate) fn comment(&mut self, text: &str) {
        debug_assert!(!text.contains(['\n', '\r']), "a comment is one line");
        self.buffer.put_slice(b": ");
        self.buffer.put_slice(text.as_bytes());
        self.buffer.put_slice(b"\n\n");
    }

    /// The last event of a complete stream.
    pub(crate) fn done(&mut self) {
        self.buffer.put_slice(DONE);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// What is to be written now.
    pub(crate) fn take(&mut self) -> Bytes {
        self.buffer.split().freeze()
    }
}

/// A response that streams.
pub(crate) fn response(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    use futures::StreamExt as _;
    let body = Body::from_stream(events.map(Ok::<_, std::convert::Infallible>));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would hold tokens back until its buffer is full.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn events_are_framed_as_clients_compare_them() {
        let mut events = Events::default();
        assert!(events.is_empty());
        events.comment("waiting");
        events.json(&serde_json::json!({ "a": "x\ny" }));
        events.done();
        assert_eq!(events.take(), ": waiting\n\ndata: {\"a\":\"x\\ny\"}\n\ndata: [DONE]\n\n");
        assert!(events.is_empty());
    }

    proptest! {
        #[test]
        fn any_text_survives_the_framing(texts in proptest::collection::vec(".*", 1..8)) {
            let mut events = Events::default();
            for text in &texts {
                events.json(text);
            }
            let bytes = events.take();
            let framed = std::str::from_utf8(&bytes).unwrap();
            let read: Vec<String> = framed
                .strip_suffix("\n\n")
                .unwrap()
                .split("\n\n")
                .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
                .collect();
            prop_assert_eq!(read, texts);
        }
    }
}
