//! Ids of queries, and the number of a try at one.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::v1;

/// A query's id: unique over all APIs and all time, and sortable by when it was made (UUID version 7, RFC 9562).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct QueryId(Uuid);

/// The text or the bytes were no query id.
#[derive(Debug, thiserror::Error)]
#[error("not a query id: expected 32 hexadecimal digits or 16 bytes")]
pub struct ParseIdError;

impl QueryId {
    /// A new id.
    pub fn new() -> Self {
        QueryId(Uuid::now_v7())
    }

    /// The id with the given bits, for tests and simulations.
    pub const fn from_u128(bits: u128) -> Self {
        QueryId(Uuid::from_u128(bits))
    }

    /// The id made of given bits, such as a hash's (UUID version 8).
    pub fn custom(bits: u128) -> Self {
        QueryId(Uuid::new_v8(bits.to_be_bytes()))
    }

    /// The id of the choice of that number, where this is the first one's.
    pub fn nth(self, number: usize) -> Self {
        QueryId(Uuid::from_u128(self.0.as_u128().wrapping_add(number as u128)))
    }

    /// When it was made, in Unix seconds; none for those made of given bits.
    pub fn unix_seconds(self) -> Option<u64> {
        Some(self.0.get_timestamp()?.to_unix().0)
    }

    /// The 16 bytes that go over the wire.
    pub fn to_wire(self) -> prost::bytes::Bytes {
        prost::bytes::Bytes::copy_from_slice(self.0.as_bytes())
    }

    /// # Errors
    /// When there are not exactly 16 bytes.
    pub fn from_wire(bytes: &[u8]) -> Result<Self, ParseIdError> {
        Uuid::from_slice(bytes).map(QueryId).map_err(|_| ParseIdError)
    }
}

impl Default for QueryId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for QueryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_simple().fmt(f)
    }
}

impl fmt::Debug for QueryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for QueryId {
    type Err = ParseIdError;

    /// Takes the bare id, and the forms that the API shows (`chatcmpl-…`, `cmpl-…`).
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let bare = text.rsplit_once('-').filter(|(head, _)| head.ends_with("cmpl")).map_or(text, |(_, id)| id);
        if bare.len() != 32 {
            return Err(ParseIdError);
        }
        Uuid::try_parse(bare).map(QueryId).map_err(|_| ParseIdError)
    }
}

/// One try at a query. Whatever carries an older attempt than the root's current one is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attempt {
    /// The number of the root's reign.
    pub epoch: u64,
    /// Counted from 1 within the reign.
    pub number: u32,
}

impl From<v1::Attempt> for Attempt {
    fn from(wire: v1::Attempt) -> Self {
        Attempt { epoch: wire.epoch, number: wire.number }
    }
}

impl From<Attempt> for v1::Attempt {
    fn from(attempt: Attempt) -> Self {
        v1::Attempt { epoch: attempt.epoch, number: attempt.number }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_from_every_form_it_is_shown_in() {
        let id = QueryId::new();
        for shown in [id.to_string(), format!("chatcmpl-{id}"), format!("cmpl-{id}")] {
            assert_eq!(shown.parse::<QueryId>().unwrap(), id);
        }
        assert_eq!(QueryId::from_wire(&id.to_wire()).unwrap(), id);
        for wrong in ["", "chatcmpl-", "12", "zz", "chatcmpl-0123456789abcdef0123456789abcdeg"] {
            assert!(wrong.parse::<QueryId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_choices_of_an_answer_have_ids_of_their_own_and_tell_when_it_was_asked_for() {
        let first = QueryId::new();
        assert_eq!((first.nth(0), first.nth(2)), (first, first.nth(1).nth(1)));
        assert!(first.unix_seconds().is_some_and(|seconds| seconds > 1_700_000_000));
        assert_eq!(QueryId::custom(7).unix_seconds(), None);
    }

    #[test]
    fn attempts_are_ordered_by_reign_first() {
        let attempt = |epoch, number| Attempt { epoch, number };
        assert!(attempt(1, 9) < attempt(2, 1));
        assert!(attempt(2, 1) < attempt(2, 2));
    }
}
