//! How a client comes back: to a stream that broke, by `Last-Event-ID`, and to a request that it sends again, by
//! `Idempotency-Key`. Any API can serve it, because all there is to know is in what the client sends.
//!
//! An event's id is the answer's, a colon, and for each choice how much of it was seen: the position of the next token, then
//! `t` when the text behind the last token was seen as well, or `e` for the end.

use std::{fmt, time::Duration};

use axum::http::{HeaderMap, HeaderName};
use banyan_proto::QueryId;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{Error, parameters::CHOICES_MAX};
use crate::answer::Claim;

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
static LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Longer ones are not somebody's key.
const KEY_BYTES_MAX: usize = 255;
/// How long a retry finds the answer of the first try: longer than clients try.
const RETAINED: Duration = Duration::from_secs(600);

/// What a request says of earlier ones.
#[derive(Debug, Default)]
pub(crate) struct Comeback {
    key: Option<Key>,
    resume: Option<Resume>,
}

/// A request that may come again.
#[derive(Debug)]
struct Key {
    id: QueryId,
    digest: Bytes,
    number: u64,
}

/// A stream that broke.
#[derive(Debug)]
struct Resume {
    id: QueryId,
    seen: Vec<Seen>,
}

/// How much of a choice a client has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Of the next token.
    pub(super) position: u32,
    pub(super) stage: Stage,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    #[default]
    Tokens,
    /// And the text that was held back until the last one.
    Text,
    End,
}

impl Comeback {
    /// Reads it from a request. The same key of another owner, or at another endpoint, is another key.
    ///
    /// # Errors
    /// When a header is not as we, or a client, would write it.
    pub(crate) fn read(headers: &HeaderMap, path: &str, owner: &str, body: &[u8]) -> Result<Self, Error> {
        let mut comeback = Comeback::default();
        if let Some(key) = headers.get(&IDEMPOTENCY_KEY) {
            let sane = (1..=KEY_BYTES_MAX).contains(&key.len()) && key.as_bytes().iter().all(|byte| (0x20..0x7f).contains(byte));
            if !sane {
                let message =
                    format!("'Idempotency-Key' must be 1 to {KEY_BYTES_MAX} printable ASCII characters, such as a UUID");
                return Err(Error::parameter("Idempotency-Key", message));
            }
            let digest = |parts: [&[u8]; 3]| {
                let mut hash = Sha256::new();
                for part in parts {
                    hash.update((part.len() as u64).to_le_bytes());
                    hash.update(part);
                }
                hash.finalize()
            };
            let name = digest([owner.as_bytes(), path.as_bytes(), key.as_bytes()]);
            let number = u64::from_le_bytes(name[24..].try_into().expect("a digest has 32 bytes"));
            let bits = u128::from_be_bytes(name[..16].try_into().expect("a digest has 32 bytes"));
            let digest = Bytes::copy_from_slice(&digest([path.as_bytes(), body, b""]));
            comeback.key = Some(Key { id: QueryId::custom(bits), digest, number });
        }
        if let Some(last) = headers.get(&LAST_EVENT_ID).filter(|last| !last.is_empty()) {
            let resume = last.to_str().ok().and_then(Resume::parse);
            let wrong = || Error::parameter("Last-Event-ID", "'Last-Event-ID' is no event's id: send the last one as it came");
            comeback.resume = Some(resume.ok_or_else(wrong)?);
        }
        Ok(comeback)
    }

    /// The first query's id; those of further choices follow it. Only a stream can be come back to.
    pub(super) fn first(&self, stream: bool) -> QueryId {
        let resumed = self.resume.as_ref().filter(|_| stream).map(|resume| resume.id);
        resumed.or(self.key.as_ref().map(|key| key.id)).unwrap_or_default()
    }

    /// The first query's id, when a key names it.
    pub(super) fn keyed(&self) -> Option<QueryId> {
        self.key.as_ref().map(|key| key.id)
    }

    /// What a client has seen, when it comes back to a stream.
    pub(super) fn seen(&self) -> Option<&[Seen]> {
        self.resume.as_ref().map(|resume| &resume.seen[..])
    }

    /// How its answers may be come back for. With `lingers`, the client says when it wants no more.
    pub(super) fn claim(&self, stream: bool, lingers: bool) -> Claim {
        let attach = stream && self.resume.is_some();
        match &self.key {
            Some(key) => Claim {
                attach,
                resumable: true,
                // Its connection may end because its patience did, and then it asks again.
                lingers: true,
                digest: key.digest.clone(),
                retain: RETAINED,
                key: Some(key.number),
            },
            None => Claim { attach, resumable: stream, lingers: stream && lingers, ..Claim::default() },
        }
    }
}

impl Resume {
    fn parse(text: &str) -> Option<Resume> {
        let (id, seen) = text.split_once(':')?;
        let seen: Vec<Seen> = seen.split(',').take(CHOICES_MAX + 1).map(Seen::parse).collect::<Option<_>>()?;
        (seen.len() <= CHOICES_MAX).then_some(Resume { id: id.parse().ok()?, seen })
    }
}

/// An event's id, and how it says what was seen.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_event_id(text: &str) -> Option<(QueryId, String)> {
    let Resume { id, seen } = Resume::parse(text)?;
    let seen: Vec<String> = seen.iter().map(Seen::to_string).collect();
    Some((id, seen.join(",")))
}

impl Seen {
    fn parse(text: &str) -> Option<Seen> {
        let (digits, stage) = match text.as_bytes().last()? {
            b't' => (&text[..text.len() - 1], Stage::Text),
            b'e' => (&text[..text.len() - 1], Stage::End),
            _ => (text, Stage::Tokens),
        };
        Some(Seen { position: digits.parse().ok()?, stage })
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Tokens => "",
            Stage::Text => "t",
            Stage::End => "e",
        };
        write!(f, "{}{stage}", self.position)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())])
    }

    fn keyed(key: &str, path: &str, owner: &str, body: &[u8]) -> (QueryId, Bytes) {
        let comeback = Comeback::read(&headers("idempotency-key", key), path, owner, body).unwrap();
        (comeback.first(false), comeback.claim(false, false).digest)
    }

    #[test]
    fn a_key_names_one_query_of_one_owner_at_one_endpoint() {
        let first = keyed("k", "/a", "o", b"x");
        assert_eq!(first, keyed("k", "/a", "o", b"x"));
        for other in [keyed("l", "/a", "o", b"x"), keyed("k", "/b", "o", b"x"), keyed("k", "/a", "p", b"x")] {
            assert_ne!(first.0, other.0);
        }
        let other_body = keyed("k", "/a", "o", b"y");
        assert!(first.0 == other_body.0 && first.1 != other_body.1);
    }

    #[test]
    fn keys_and_ids_that_nobody_would_write_are_refused() {
        for (name, wrong) in [
            ("idempotency-key", ""),
            ("idempotency-key", &*"x".repeat(256)),
            ("last-event-id", "7"),
            ("last-event-id", "chatcmpl-0192f3a4b5c67d8e9fa0b1c2d3e4f506"),
            ("last-event-id", "chatcmpl-0192f3a4b5c67d8e9fa0b1c2d3e4f506:"),
            ("last-event-id", "chatcmpl-0192f3a4b5c67d8e9fa0b1c2d3e4f506:-1"),
            ("last-event-id", "chatcmpl-0192f3a4b5c67d8e9fa0b1c2d3e4f506:1,"),
        ] {
            assert!(Comeback::read(&headers(name, wrong), "/", "o", b"").is_err(), "{name}: {wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn an_events_id_is_read_as_it_was_written(positions in proptest::collection::vec((any::<u32>(), 0u8..3), 1..5)) {
            let stage = |number| match number { 0 => Stage::Tokens, 1 => Stage::Text, _ => Stage::End };
            let seen: Vec<Seen> = positions.iter().map(|&(position, number)| Seen { position, stage: stage(number) }).collect();
            let written: Vec<String> = seen.iter().map(Seen::to_string).collect();
            let id = QueryId::new();
            let resume = Resume::parse(&format!("chatcmpl-{id}:{}", written.join(","))).unwrap();
            prop_assert_eq!((resume.id, resume.seen), (id, seen));
        }

        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = Resume::parse(&text);
        }
    }
}
