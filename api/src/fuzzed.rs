//! What must hold of any bytes: a request is read or refused in the one shape, and what is framed as events is read back.
//!
//! Property tests throw at it here, on every build; fuzzers do in `api/fuzz`, for as long as one likes.

use axum::response::IntoResponse as _;
use banyan_proto::QueryId;

use crate::{
    openai::{self, Error, Fields, Order},
    sse::Events,
};

type Reader = fn(&mut Fields) -> Result<Order, Error>;

/// A body, to whichever endpoint it was sent.
///
/// # Panics
/// When something does not hold.
pub fn request(body: &[u8]) {
    let readers: [Reader; 2] = [openai::chat::read, openai::completions::read];
    for read in readers {
        match Fields::parse(body).and_then(|mut fields| read(&mut fields)) {
            Ok(order) => {
                let choices = order.prompts.len() * order.parameters.n;
                assert!((1..=openai::CHOICES_MAX).contains(&choices), "{choices} choices");
                let generation = &order.parameters.generation;
                assert!(generation.max_tokens >= generation.min_tokens || generation.max_tokens == 0);
                let sampling = generation.sampling.as_ref().expect("always given");
                assert!(sampling.temperature.is_finite() && sampling.top_p.is_finite());
            }
            Err(error) => refused(error),
        }
    }
    if let Err(error) = Fields::parse(body).and_then(|mut fields| openai::embeddings::read(&mut fields).map(drop)) {
        refused(error);
    }
}

fn refused(error: Error) {
    let shape = serde_json::to_value(error.shape()).expect("our own shapes are JSON");
    let inner = shape["error"].as_object().expect("an error is an object");
    assert!(inner.keys().eq(["message", "type", "param", "code"]), "{shape}");
    assert!(inner["message"].as_str().is_some_and(|message| (10..4096).contains(&message.len())), "{shape}");
    assert_eq!(error.into_response().status(), 400, "{shape}");
}

/// What a client says it has seen of a stream.
///
/// # Panics
/// When what is read is not what was written.
pub fn event_id(text: &str) {
    if let Some((id, seen)) = openai::comeback::read_event_id(text) {
        assert_eq!(openai::comeback::read_event_id(&format!("{id}:{seen}")), Some((id, seen)));
    }
}

/// Texts as events, comments and named events in turn.
///
/// # Panics
/// When a reader that keeps to the standard reads something else.
pub fn events(texts: &[&str]) {
    let name = QueryId::custom(7).to_string();
    let mut events = Events::default();
    let mut written = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        match number % 3 {
            0 => {
                events.json(text);
                written.push((String::new(), (*text).to_owned()));
            }
            // A comment is a line, and whoever writes one sees to that.
            1 => events.comment(&text.replace(['\n', '\r'], " ")),
            _ => {
                events.id(&name);
                events.json(text);
                written.push((name.clone(), (*text).to_owned()));
            }
        }
    }
    let bytes = events.take();
    let stream = std::str::from_utf8(&bytes).expect("events are text");
    let mut last = String::new();
    let read: Vec<(String, String)> = read_events(stream)
        .into_iter()
        .map(|(id, data)| {
            // Names last until the next one.
            let named = id != last;
            last.clone_from(&id);
            (if named { id } else { String::new() }, serde_json::from_str(&data).expect("data is JSON"))
        })
        .collect();
    let mut known = String::new();
    for (id, _) in &mut written {
        let new = !id.is_empty() && *id != known;
        known = if id.is_empty() { known } else { id.clone() };
        *id = if new { known.clone() } else { String::new() };
    }
    assert_eq!(read, written);
}

/// Events with their last names, as WHATWG HTML, section 9.2.6, reads them.
fn read_events(stream: &str) -> Vec<(String, String)> {
    let (mut events, mut id, mut data) = (Vec::new(), String::new(), None::<String>);
    for line in stream.replace("\r\n", "\n").split(['\n', '\r']) {
        if line.is_empty() {
            events.extend(data.take().map(|data| (id.clone(), data)));
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                let before = data.take().map(|before| before + "\n").unwrap_or_default();
                data = Some(before + value);
            }
            "id" => id = value.to_owned(),
            // Comments have no name, and other fields no meaning.
            _ => {}
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REQUESTS: [&str; 4] = [
        r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a\u00e9"}]}],"stop":["x"],"n":2,"seed":-1}"#,
        r#"{"model":"m","prompt":[[1,2],"b"],"logit_bias":{"7":-100},"echo":true,"logprobs":5,"max_tokens":0,"top_k":-1}"#,
        r#"{"model":"m","input":["a",[3]],"encoding_format":"base64","priority":-5,"deadline_ms":10}"#,
        r#"{"model":"m","prompt":"p","stream":true,"stream_options":{"include_usage":true},"temperature":1e0,"min_tokens":2}"#,
    ];
    /// What JSON is made of, so that more than its syntax is reached.
    const PIECES: [&str; 16] = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "null",
        "true",
        "-",
        "1e999",
        "0",
        "\\u0000",
        "\\ud800",
        "[[",
        "18446744073709551616",
    ];

    proptest! {
        #[test]
        fn a_request_that_was_damaged_is_read_or_refused(
            which in 0..REQUESTS.len(),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), 0..4usize, 0..PIECES.len(), any::<u8>()), 1..6),
        ) {
            let mut body = REQUESTS[which].as_bytes().to_vec();
            for (at, kind, piece, byte) in damage {
                let at = at.index(body.len());
                match kind {
                    0 => body[at] = byte,
                    1 => drop(body.splice(at..at + 1, PIECES[piece].bytes())),
                    2 => drop(body.splice(at..at, PIECES[piece].bytes())),
                    _ => body.truncate(at.max(1)),
                }
            }
            request(&body);
        }

        #[test]
        fn any_bytes_are_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            request(&body);
        }

        #[test]
        fn any_texts_survive_their_framing(texts in proptest::collection::vec("(?s).{0,20}", 0..9)) {
            events(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        }

        #[test]
        fn any_name_of_an_event_is_read_or_refused(text in "(chatcmpl-)?[0-9a-f]{30,34}:[0-9te,]{0,12}|.*") {
            event_id(&text);
        }
    }
}
