//! A range of keys, as etcd's requests write it.

use std::ops::Bound;

/// The keys from a first one on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    start: Vec<u8>,
    end: End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// Only the first key.
    Same,
    /// Up to, and without, this one.
    Before(Vec<u8>),
    /// To the last of all.
    Open,
}

impl Span {
    /// From a request's `key` and `range_end`: none is the key alone, `\0` is everything from it on.
    pub(super) fn new(key: &[u8], range_end: &[u8]) -> Span {
        let end = match range_end {
            [] => End::Same,
            [0] => End::Open,
            before => End::Before(before.to_vec()),
        };
        Span { start: key.to_vec(), end }
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            End::Same => key == self.start,
            End::Before(end) => key >= self.start.as_slice() && key < end.as_slice(),
            End::Open => key >= self.start.as_slice(),
        }
    }

    /// Whether no key can be in it.
    pub(super) fn is_empty(&self) -> bool {
        matches!(&self.end, End::Before(end) if *end <= self.start)
    }

    /// For a sorted map; not for an empty span.
    pub(super) fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let start = Bound::Included(self.start.as_slice());
        let end = match &self.end {
            End::Same => start,
            End::Before(end) => Bound::Excluded(end.as_slice()),
            End::Open => Bound::Unbounded,
        };
        (start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_hold_what_etcd_says() {
        let holds = |key: &[u8], end: &[u8]| {
            let span = Span::new(key, end);
            [b"a".as_slice(), b"ab", b"b", b"\xff"].map(|key| span.contains(key))
        };
        assert_eq!(holds(b"a", b""), [true, false, false, false]);
        assert_eq!(holds(b"a", b"b"), [true, true, false, false]);
        assert_eq!(holds(b"ab", b"\0"), [false, true, true, true]);
        assert_eq!(holds(b"\0", b"\0"), [true; 4]);
        assert!(Span::new(b"b", b"a").is_empty() && Span::new(b"b", b"b").is_empty() && !Span::new(b"b", b"").is_empty());
    }
}
