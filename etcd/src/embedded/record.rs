//! A line of the journal: what changed, in etcd's own messages, so that the file's format is one that is documented.
//!
//! A record is one letter for its kind, then the message. Replaying a state's records, and those after them, gives the state
//! again; a record that can't follow from what was before is refused, so a damaged file is noticed.

use std::{sync::Arc, time::Duration};

use etcd_client::{
    EventType,
    proto::{
        PbCompactionRequest, PbEvent, PbKeyValue, PbLeaseGrantRequest, PbLeaseRevokeRequest, PbResponseHeader, PbWatchResponse,
    },
};
use prost::Message;

use super::{keyspace::Change, refusal::Refusal, span::Span, store::Store};

/// How many keys go into one record of a saved state; each stays far below what one record may take.
const KEYS_PER_RECORD: usize = 16;

/// An encoded record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record(Vec<u8>);

/// The kinds.
const BASE: u8 = b'B';
const KEYS: u8 = b'K';
const CHANGES: u8 = b'C';
const GRANT: u8 = b'G';
const REVOKE: u8 = b'R';
const COMPACT: u8 = b'T';

/// Why a record can't be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unsound {
    #[error("a record of an unknown kind")]
    Kind,
    #[error("a record that is no message")]
    Message,
    #[error("a record that does not follow from those before it")]
    Sequence,
}

impl Record {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn changes(revision: i64, changes: &[Change]) -> Record {
        let events = changes.iter().map(|change| PbEvent {
            r#type: if change.deleted { EventType::Delete as i32 } else { EventType::Put as i32 },
            kv: Some((*change.kv).clone()),
            prev_kv: None,
        });
        encode(CHANGES, &at(revision, events.collect()))
    }

    pub(super) fn grant(id: i64, ttl: i64) -> Record {
        encode(GRANT, &PbLeaseGrantRequest { id, ttl })
    }

    pub(super) fn revocation(id: i64) -> Record {
        encode(REVOKE, &PbLeaseRevokeRequest { id })
    }

    pub(super) fn compaction(revision: i64) -> Record {
        encode(COMPACT, &PbCompactionRequest { revision, physical: false })
    }
}

impl Store {
    /// The state as records, without its history.
    pub(super) fn to_records(&self) -> Vec<Record> {
        let mut records = vec![encode(BASE, &at(self.revision(), Vec::new()))];
        records.extend(self.leases.iter().map(|(id, lease)| Record::grant(id, lease.ttl)));
        let everything = Span::new(b"\0", b"\0");
        let keys: Vec<_> = self.keyspace.now(&everything).collect();
        for keys in keys.chunks(KEYS_PER_RECORD) {
            let event = |kv: &&Arc<PbKeyValue>| PbEvent { r#type: 0, kv: Some((***kv).clone()), prev_kv: None };
            records.push(encode(KEYS, &at(self.revision(), keys.iter().map(event).collect())));
        }
        records
    }

    /// The state that a journal's first record tells.
    pub(super) fn from_record(record: &[u8]) -> Result<Store, Unsound> {
        match record.split_first() {
            Some((&BASE, message)) => match revision_of(&decode::<PbWatchResponse>(message)?) {
                revision @ 1..=REVISION_MAX => Ok(Store::new(revision)),
                _ => Err(Unsound::Sequence),
            },
            _ => Err(Unsound::Sequence),
        }
    }

    /// Takes in the next record. Leases begin anew at `now`: nobody could renew them while no server ran.
    pub(super) fn replay(&mut self, record: &[u8], now: Duration) -> Result<(), Unsound> {
        let Some((kind, message)) = record.split_first() else { return Err(Unsound::Kind) };
        let done = match *kind {
            KEYS => {
                let keys: PbWatchResponse = decode(message)?;
                revision_of(&keys) == self.revision() && keys.events.into_iter().all(|event| self.restore(event))
            }
            CHANGES => {
                let changes: PbWatchResponse = decode(message)?;
                let next = self.revision() < REVISION_MAX && revision_of(&changes) == self.revision() + 1;
                let some = !changes.events.is_empty();
                let sound = next && some && changes.events.into_iter().all(|event| self.replay_change(event));
                self.keyspace.commit();
                sound
            }
            GRANT => {
                let PbLeaseGrantRequest { id, ttl } = decode(message)?;
                id != 0 && self.leases.grant(id, ttl, now).is_ok()
            }
            REVOKE => {
                let PbLeaseRevokeRequest { id } = decode(message)?;
                self.leases.remove(id).is_some_and(|lease| lease.keys.is_empty())
            }
            COMPACT => {
                let PbCompactionRequest { revision, .. } = decode(message)?;
                // A saved state has no history, so what was compacted after it may be older than all that is here.
                matches!(self.keyspace.compact(revision), Ok(()) | Err(Refusal::Compacted))
            }
            _ => return Err(Unsound::Kind),
        };
        if done { Ok(()) } else { Err(Unsound::Sequence) }
    }

    fn restore(&mut self, event: PbEvent) -> bool {
        let Some(kv) = event.kv else { return false };
        if kv.lease != 0 && !self.leases.contains(kv.lease) {
            return false;
        }
        self.leases.hand_over(&kv.key, 0, kv.lease);
        self.keyspace.restore(kv)
    }

    fn replay_change(&mut self, event: PbEvent) -> bool {
        let Some(kv) = event.kv else { return false };
        if kv.key.is_empty() || kv.mod_revision != self.revision() + 1 {
            return false;
        }
        let before = self.keyspace.get(&kv.key).cloned();
        if before.as_ref().is_some_and(|before| before.mod_revision == kv.mod_revision) {
            return false;
        }
        let held_by = before.map_or(0, |before| before.lease);
        if event.r#type == EventType::Delete as i32 {
            self.leases.hand_over(&kv.key, held_by, 0);
            return self.keyspace.delete(&kv.key).is_some();
        }
        if kv.lease != 0 && !self.leases.contains(kv.lease) {
            return false;
        }
        self.leases.hand_over(&kv.key, held_by, kv.lease);
        let (create_revision, version) = (kv.create_revision, kv.version);
        let kv = self.keyspace.put(kv.key, kv.value, kv.lease);
        (kv.create_revision, kv.version) == (create_revision, version)
    }
}

/// The highest revision of a file: more would take a million writes a second for three hundred thousand years, and leaves
/// room to count on.
const REVISION_MAX: i64 = i64::MAX / 2;

fn at(revision: i64, events: Vec<PbEvent>) -> PbWatchResponse {
    let header = Some(PbResponseHeader { revision, ..PbResponseHeader::default() });
    PbWatchResponse { header, events, ..PbWatchResponse::default() }
}

fn revision_of(message: &PbWatchResponse) -> i64 {
    message.header.as_ref().map_or(0, |header| header.revision)
}

fn encode(kind: u8, message: &impl Message) -> Record {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(kind);
    // Writing to a Vec can't run out of room.
    message.encode(&mut bytes).expect("a Vec grows");
    Record(bytes)
}

fn decode<M: Message + Default>(message: &[u8]) -> Result<M, Unsound> {
    M::decode(message).map_err(|_| Unsound::Message)
}
