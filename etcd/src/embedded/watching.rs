//! What a watcher gets next: pure, read from the history when the watcher's stream has room for more.
//!
//! A watcher holds no queue. It remembers the revision it wants next, so a slow client costs nothing, and one that is slower
//! than the history is long is told that its revision was compacted, as etcd does.

use etcd_client::{
    EventType,
    proto::{PbEvent, PbKeyValue},
};

use super::{
    keyspace::{Change, Keyspace},
    span::Span,
};

/// How many events go into one message, if they are of several revisions (one revision is never split): few enough to be
/// small, many enough that catching up takes few round trips.
const EVENTS_MAX: usize = 500;

/// How many bytes of keys and values go into one message, again of several revisions: a quarter of what gRPC clients take
/// by default.
const EVENTS_BYTES_MAX: usize = 1 << 20;

/// A watcher's place in the history.
#[derive(Debug, Clone)]
pub(super) struct Watching {
    pub(super) span: Span,
    /// The next revision that it wants.
    pub(super) next: i64,
    pub(super) puts: bool,
    pub(super) deletions: bool,
    /// Whether it wants the values from before, too.
    pub(super) previous: bool,
}

/// What there is for a watcher.
#[derive(Debug, PartialEq)]
pub(super) enum Batch {
    /// Nothing more for now.
    CaughtUp,
    /// Events, in order, whole revisions.
    Events(Vec<PbEvent>),
    /// What it wants next is forgotten; the oldest revision that is not.
    Compacted(i64),
}

impl Watching {
    /// Takes the next events, and moves on behind them.
    pub(super) fn advance(&mut self, keyspace: &Keyspace) -> Batch {
        if self.next < keyspace.compacted() {
            return Batch::Compacted(keyspace.compacted());
        }
        let mut events = Vec::new();
        let (mut bytes, mut last) = (0, 0);
        for change in keyspace.since(self.next) {
            let full = events.len() >= EVENTS_MAX || bytes >= EVENTS_BYTES_MAX;
            if full && change.kv.mod_revision != last {
                self.next = change.kv.mod_revision;
                return Batch::Events(events);
            }
            last = change.kv.mod_revision;
            if self.wants(change) {
                bytes += change.kv.key.len() + change.kv.value.len();
                events.push(self.event(change, keyspace.compacted()));
            }
        }
        self.next = self.next.max(keyspace.revision() + 1);
        if events.is_empty() { Batch::CaughtUp } else { Batch::Events(events) }
    }

    fn wants(&self, change: &Change) -> bool {
        self.span.contains(&change.kv.key) && if change.deleted { self.deletions } else { self.puts }
    }

    fn event(&self, change: &Change, compacted: i64) -> PbEvent {
        let copy = |kv: &PbKeyValue| kv.clone();
        // etcd reads the value from before at the revision before, which may be compacted.
        let readable = change.kv.mod_revision > compacted;
        let previous = change.previous.as_deref().filter(|_| self.previous && readable).map(copy);
        let kind = if change.deleted { EventType::Delete } else { EventType::Put };
        PbEvent { r#type: kind as i32, kv: Some(copy(&change.kv)), prev_kv: previous }
    }
}
