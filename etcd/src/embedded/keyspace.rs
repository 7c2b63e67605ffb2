//! Keys with their versions, and the changes in the order they were made. Pure; knows no leases and no requests.
//!
//! Every committed change has a revision; older versions stay readable, and older changes watchable, until they are compacted.
//! History is bounded: past the bound the older half of it is compacted, as etcd's automatic compaction would.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use etcd_client::proto::PbKeyValue as KeyValue;

use super::{refusal::Refusal, span::Span};

/// How many changes are kept for watchers that come back. A cluster of a thousand nodes makes a few changes a minute, and whoever
/// was away for longer lists again.
const CHANGES_MAX: usize = 20_000;

/// How many bytes of values the changes may hold, whatever their number.
const CHANGES_BYTES_MAX: usize = 32 << 20;

/// Keys, versions, changes.
#[derive(Debug)]
pub(super) struct Keyspace {
    revision: i64,
    compacted: i64,
    /// A key's versions, oldest first, never none.
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    changes: VecDeque<Change>,
    /// Bytes of the keys and values of now.
    bytes: usize,
    /// Bytes of the keys and values in `changes`.
    change_bytes: usize,
}

#[derive(Debug)]
struct Version {
    revision: i64,
    /// None: deleted.
    kv: Option<Arc<KeyValue>>,
}

/// One key's change.
#[derive(Debug, Clone)]
pub(super) struct Change {
    /// The key and value, or for a deletion the key and the revision of the deletion.
    pub(super) kv: Arc<KeyValue>,
    pub(super) deleted: bool,
    /// What was there before.
    pub(super) previous: Option<Arc<KeyValue>>,
}

impl Keyspace {
    /// An empty keyspace whose history begins at `revision`.
    pub(super) fn new(revision: i64) -> Keyspace {
        Keyspace { revision, compacted: revision, keys: BTreeMap::new(), changes: VecDeque::new(), bytes: 0, change_bytes: 0 }
    }

    /// The revision of the last committed change.
    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    /// What is older can't be read any more.
    pub(super) fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Bytes of the keys and values of now.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The key now, changes that are not committed yet included.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.keys.get(key)?.last()?.kv.as_ref()
    }

    /// The keys of now, changes that are not committed yet included, in order.
    pub(super) fn now(&self, span: &Span) -> impl Iterator<Item = &Arc<KeyValue>> {
        self.at(span, i64::MAX)
    }

    /// The keys as they were at `revision`, in order; zero or less is now.
    pub(super) fn read(&self, span: &Span, revision: i64) -> Result<impl Iterator<Item = &Arc<KeyValue>>, Refusal> {
        self.check(revision)?;
        Ok(self.at(span, if revision <= 0 { i64::MAX } else { revision }))
    }

    /// Whether `revision` can be read.
    pub(super) fn check(&self, revision: i64) -> Result<(), Refusal> {
        match revision {
            ..=0 => Ok(()),
            _ if revision > self.revision => Err(Refusal::FutureRevision),
            _ if revision < self.compacted => Err(Refusal::Compacted),
            _ => Ok(()),
        }
    }

    fn at(&self, span: &Span, revision: i64) -> impl Iterator<Item = &Arc<KeyValue>> {
        let bounds = (!span.is_empty()).then(|| span.bounds());
        let histories = bounds.into_iter().flat_map(|bounds| self.keys.range::<[u8], _>(bounds));
        histories.filter_map(move |(_, versions)| {
            let known = versions.partition_point(|version| version.revision <= revision);
            versions[..known].last()?.kv.as_ref()
        })
    }

    /// Puts a key as part of the next revision. A key changes at most once in one revision.
    pub(super) fn put(&mut self, key: Vec<u8>, value: Vec<u8>, lease: i64) -> Arc<KeyValue> {
        let revision = self.revision + 1;
        let previous = self.get(&key).cloned();
        let (create_revision, version) =
            previous.as_ref().map_or((revision, 1), |previous| (previous.create_revision, previous.version + 1));
        let kv = Arc::new(KeyValue { key, create_revision, mod_revision: revision, version, value, lease });
        self.bytes += size(&kv);
        self.record(Change { kv: kv.clone(), deleted: false, previous });
        kv
    }

    /// Deletes a key as part of the next revision.
    pub(super) fn delete(&mut self, key: &[u8]) -> Option<Arc<KeyValue>> {
        let previous = self.get(key)?.clone();
        let kv = KeyValue { key: key.to_vec(), mod_revision: self.revision + 1, ..KeyValue::default() };
        self.record(Change { kv: Arc::new(kv), deleted: true, previous: Some(previous.clone()) });
        Some(previous)
    }

    fn record(&mut self, change: Change) {
        self.bytes -= change.previous.as_ref().map_or(0, |previous| size(previous));
        self.change_bytes += size(&change.kv);
        let kv = (!change.deleted).then(|| change.kv.clone());
        let version = Version { revision: change.kv.mod_revision, kv };
        self.keys.entry(change.kv.key.clone()).or_default().push(version);
        self.changes.push_back(change);
    }

    /// The changes that are not committed yet.
    pub(super) fn pending(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.since(self.revision + 1)
    }

    /// Makes the pending changes, if any, a revision.
    pub(super) fn commit(&mut self) {
        if self.changes.back().is_some_and(|last| last.kv.mod_revision > self.revision) {
            self.revision += 1;
            if self.changes.len() > CHANGES_MAX || self.change_bytes > CHANGES_BYTES_MAX {
                self.forget(self.changes[self.changes.len() / 2].kv.mod_revision);
            }
        }
    }

    /// The changes of `revision` and later, in order. What was compacted is missing.
    pub(super) fn since(&self, revision: i64) -> impl DoubleEndedIterator<Item = &Change> {
        let from = self.changes.partition_point(|change| change.kv.mod_revision < revision);
        self.changes.range(from..)
    }

    /// Drops what is older than `revision` and not needed to read at it.
    pub(super) fn compact(&mut self, revision: i64) -> Result<(), Refusal> {
        if revision <= self.compacted {
            return Err(Refusal::Compacted);
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        self.forget(revision);
        Ok(())
    }

    fn forget(&mut self, revision: i64) {
        self.compacted = revision;
        let old = self.changes.partition_point(|change| change.kv.mod_revision < revision);
        for change in self.changes.drain(..old) {
            self.change_bytes -= size(&change.kv);
        }
        self.keys.retain(|_, versions| {
            let superseded = versions.partition_point(|version| version.revision <= revision).saturating_sub(1);
            versions.drain(..superseded);
            // A deletion that nothing came after.
            versions.len() > 1 || versions[0].revision > revision || versions[0].kv.is_some()
        });
    }

    /// Puts back a key of a saved state. Refused (with false) when it can't be one of this revision.
    pub(super) fn restore(&mut self, kv: KeyValue) -> bool {
        let sound = 0 < kv.create_revision && kv.create_revision <= kv.mod_revision && kv.mod_revision <= self.revision;
        // Each revision since its creation changed it at most once.
        let sound = sound && (1..=kv.mod_revision - kv.create_revision + 1).contains(&kv.version);
        if !sound || kv.key.is_empty() || self.keys.contains_key(&kv.key) {
            return false;
        }
        self.bytes += size(&kv);
        let version = Version { revision: kv.mod_revision, kv: Some(Arc::new(kv.clone())) };
        self.keys.insert(kv.key, vec![version]);
        true
    }
}

/// What a key counts against the bounds: its bytes, and what keeping it costs beside them.
fn size(kv: &KeyValue) -> usize {
    const AROUND: usize = 128;
    kv.key.len() + kv.value.len() + AROUND
}
