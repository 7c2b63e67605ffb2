//! What a root has said of each answer: told to whoever reads it, and kept for those who come back or come late.
//!
//! The live ones are the desk's; complete ones are remembered here for as long as was asked, within bounds.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use banyan_proto::{QueryId, v1};
use bytes::Bytes;
use prost::Message as _;
use tokio::{sync::mpsc, time::Instant};

use super::chunks::Chunks;

/// A client that reads nothing for that long, with answers waiting for it, has gone or might as well have.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);
/// What a client may leave unread, in bytes: more than an answer's tokens with all their alternatives, and said twice.
const UNREAD_BYTES_MAX: u64 = 16 << 20;
/// An answer with more chunks than that can't be picked up from its start any more: ten thousand tokens with their twenty
/// alternatives each.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Whose line broke at the answer's very end still gets the end.
const RETAINED: Duration = Duration::from_secs(30);
/// A retry after that is another question.
const RETAINED_MAX: Duration = Duration::from_secs(600);
/// Complete answers kept; the ones that would go soonest go first.
const REMEMBERED_MAX: usize = 16_384;
const REMEMBERED_BYTES_MAX: usize = 128 << 20;
/// What an answer takes beside its chunks, about.
const ENTRY_BYTES: usize = 512;

/// One answer as it was said so far.
pub(super) struct Said {
    pub(super) owner: String,
    digest: Bytes,
    pub(super) payload: Bytes,
    retain: Option<Duration>,
    chunks: Chunks,
    placed: Option<v1::Placed>,
    end: Option<v1::End>,
}

/// Somebody who reads an answer.
pub(super) struct Reader {
    pub(super) serial: u64,
    pub(super) to: mpsc::UnboundedSender<v1::Answer>,
    sent: u64,
    /// Of all that was sent.
    bytes: u64,
    read: Arc<AtomicU64>,
    /// The last time that it was seen to read, and how much it had read.
    seen: (Instant, u64),
}

/// Why somebody can't have an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// It is not theirs, or its start is no longer there.
    NotFound,
    /// The id belongs to another request.
    Conflict,
}

impl Said {
    pub(super) fn new(owner: &str, question: &v1::Question) -> Self {
        let retain = match (question.resumable, question.retain_ms) {
            (false, 0) => None,
            (_, ms) => Some(Duration::from_millis(ms).clamp(RETAINED, RETAINED_MAX)),
        };
        let mut chunks = Chunks::new(0, if retain.is_some() { ANSWER_BYTES_MAX } else { 0 });
        for tokens in &question.delivered {
            chunks.push(tokens);
            // An API that had to leave chunks out.
            if tokens.chunk.is_empty() {
                chunks.cut();
            }
        }
        Said {
            owner: owner.to_owned(),
            digest: question.digest.clone(),
            payload: question.payload.clone(),
            retain,
            chunks,
            placed: None,
            end: None,
        }
    }

    /// Whether that question, or that owner, may have this answer from a position on.
    pub(super) fn admits(&self, owner: &str, digest: Option<&Bytes>, position: u32) -> Result<(), Denied> {
        if self.owner != owner || position < self.chunks.from() {
            return Err(Denied::NotFound);
        }
        match digest {
            Some(digest) if !digest.is_empty() && !self.digest.is_empty() && *digest != self.digest => Err(Denied::Conflict),
            _ => Ok(()),
        }
    }

    /// Whether it may be read by those who know its id only.
    pub(super) fn is_kept(&self) -> bool {
        self.retain.is_some()
    }

    pub(super) fn note(&mut self, kind: &v1::answer::Kind) {
        match kind {
            v1::answer::Kind::Placed(placed) => self.placed = Some(placed.clone()),
            v1::answer::Kind::Tokens(tokens) => self.chunks.push(tokens),
            v1::answer::Kind::End(end) => self.end = Some(end.clone()),
            v1::answer::Kind::Failed(_) | v1::answer::Kind::Accepted(_) => {}
        }
    }

    /// Says again what was said, to one who has the tokens before a position.
    pub(super) fn repeat(&self, reader: &mut Reader, position: u32, remaining_ms: u64) {
        use v1::answer::Kind;
        let _ = reader.tell(Kind::Accepted(v1::Accepted { payload: self.payload.clone(), remaining_ms }));
        if let Some(placed) = &self.placed {
            let _ = reader.tell(Kind::Placed(placed.clone()));
        }
        for tokens in self.chunks.since(position) {
            let _ = reader.tell(Kind::Tokens(tokens.clone()));
        }
        if let Some(end) = &self.end {
            let _ = reader.tell(Kind::End(end.clone()));
        }
    }
}

impl Reader {
    pub(super) fn new(serial: u64, to: mpsc::UnboundedSender<v1::Answer>, read: Arc<AtomicU64>, now: Instant) -> Self {
        Reader { serial, to, sent: 0, bytes: 0, read, seen: (now, 0) }
    }

    /// False when it has gone, or leaves too much unread.
    pub(super) fn tell(&mut self, kind: v1::answer::Kind) -> bool {
        let answer = v1::Answer { kind: Some(kind) };
        self.sent += 1;
        self.bytes += answer.encoded_len() as u64;
        self.unread() <= UNREAD_BYTES_MAX && self.to.send(answer).is_ok()
    }

    /// Bytes that it has not read, about: by their number, as if all answers were of one size.
    pub(super) fn unread(&self) -> u64 {
        let unread = self.sent.saturating_sub(super::load(&self.read));
        self.bytes.saturating_mul(unread) / self.sent.max(1)
    }

    /// Whether answers have waited for it for too long.
    pub(super) fn is_stalled(&mut self, now: Instant) -> bool {
        let read = super::load(&self.read);
        if read != self.seen.1 || read == self.sent {
            self.seen = (now, read);
        }
        now - self.seen.0 > CLIENT_PATIENCE
    }
}

/// Complete answers. See the module.
#[derive(Default)]
pub(super) struct Remembered {
    answers: HashMap<QueryId, (Instant, Said)>,
    expiries: BTreeSet<(Instant, QueryId)>,
    bytes: usize,
}

impl Remembered {
    pub(super) fn get(&self, id: &QueryId) -> Option<&Said> {
        self.answers.get(id).map(|(_, said)| said)
    }

    pub(super) fn keep(&mut self, now: Instant, id: QueryId, said: Said) {
        let Some(retain) = said.retain else { return };
        self.forget(&id);
        self.bytes += said.chunks.bytes() + said.payload.len() + ENTRY_BYTES;
        self.expiries.insert((now + retain, id));
        self.answers.insert(id, (now + retain, said));
        while self.answers.len() > REMEMBERED_MAX || self.bytes > REMEMBERED_BYTES_MAX {
            let Some(&(_, soonest)) = self.expiries.first() else { return };
            self.forget(&soonest);
        }
    }

    pub(super) fn forget(&mut self, id: &QueryId) {
        if let Some((expiry, said)) = self.answers.remove(id) {
            self.expiries.remove(&(expiry, *id));
            self.bytes -= said.chunks.bytes() + said.payload.len() + ENTRY_BYTES;
        }
    }

    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(expiry, id)) = self.expiries.first()
            && expiry <= now
        {
            self.forget(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(position: u32, chunk: usize) -> v1::answer::Kind {
        v1::answer::Kind::Tokens(v1::Tokens { position, ids: vec![position], chunk: vec![b'x'; chunk].into() })
    }

    fn question(retain_ms: u64) -> v1::Question {
        v1::Question { resumable: true, retain_ms, digest: "d".into(), ..Default::default() }
    }

    fn heard(said: &Said, position: u32) -> Vec<u32> {
        let (to, mut from) = mpsc::unbounded_channel();
        said.repeat(&mut Reader::new(1, to, Arc::default(), Instant::now()), position, 0);
        let mut positions = Vec::new();
        while let Ok(answer) = from.try_recv() {
            if let Some(v1::answer::Kind::Tokens(tokens)) = answer.kind {
                positions.push(tokens.position);
            }
        }
        positions
    }

    #[test]
    fn what_was_said_is_said_again_from_any_position_to_its_owner_alone() {
        let mut said = Said::new("o", &question(0));
        for position in 0..4 {
            said.note(&tokens(position, 1));
        }
        assert_eq!(heard(&said, 0), [0, 1, 2, 3]);
        assert_eq!(heard(&said, 3), [3]);
        assert_eq!(said.admits("o", None, 0), Ok(()));
        assert_eq!(said.admits("somebody else", None, 0), Err(Denied::NotFound));
        assert_eq!(said.admits("o", Some(&"e".into()), 0), Err(Denied::Conflict));
    }

    #[test]
    fn an_answer_that_is_too_long_is_kept_from_its_end_on_only() {
        let mut said = Said::new("o", &question(0));
        said.note(&tokens(0, ANSWER_BYTES_MAX));
        said.note(&tokens(1, 1));
        assert_eq!(said.admits("o", None, 0), Err(Denied::NotFound));
        assert_eq!((said.admits("o", None, 1), heard(&said, 1)), (Ok(()), vec![1]));
    }

    #[test]
    fn complete_answers_are_kept_for_their_time_and_the_soonest_to_go_make_room() {
        let (now, mut kept) = (Instant::now(), Remembered::default());
        let id = QueryId::from_u128;
        kept.keep(now, id(1), Said::new("o", &question(600_000)));
        for number in 2..=REMEMBERED_MAX as u128 + 1 {
            kept.keep(now + Duration::from_nanos(number as u64), id(number), Said::new("o", &question(0)));
        }
        assert!(kept.get(&id(1)).is_some() && kept.get(&id(2)).is_none() && kept.get(&id(3)).is_some());
        kept.expire(now + Duration::from_secs(31));
        assert!(kept.get(&id(1)).is_some() && kept.get(&id(3)).is_none());
        kept.expire(now + Duration::from_secs(600));
        assert_eq!((kept.answers.len(), kept.expiries.len(), kept.bytes), (0, 0, 0));
    }
}
