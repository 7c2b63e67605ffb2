//! The store against the simplest model of it: a copy of all keys for every revision there ever was.

use std::{collections::BTreeMap, time::Duration};

use etcd_client::{
    EventType,
    proto::{
        PbCompare, PbCompareTarget, PbDeleteRequest, PbKeyValue, PbLeaseTimeToLiveRequest, PbPutRequest, PbRangeRequest,
        PbTargetUnion, PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp,
    },
};
use proptest::prelude::*;

use super::{
    refusal::Refusal,
    span::Span,
    store::Store,
    watching::{Batch, Watching},
};

const BASE: i64 = 1000;

type Keys = BTreeMap<Vec<u8>, PbKeyValue>;

#[derive(Debug, Clone)]
enum Step {
    Put {
        key: Vec<u8>,
        value: u8,
        lease: i64,
    },
    Delete {
        key: Vec<u8>,
        end: Vec<u8>,
    },
    /// Puts two keys if the first was last changed `age` revisions ago (0: does not exist), else deletes the first.
    Txn {
        first: Vec<u8>,
        second: Vec<u8>,
        age: Option<u8>,
    },
    Compact {
        back: u8,
    },
    Grant {
        id: i64,
        ttl: i64,
    },
    Revoke {
        id: i64,
    },
    KeepAlive {
        id: i64,
    },
    Wait {
        seconds: u64,
    },
}

#[derive(Debug)]
struct Model {
    /// The keys at BASE, BASE + 1, and so on.
    revisions: Vec<Keys>,
    compacted: i64,
    /// Time to live and end, by id.
    leases: BTreeMap<i64, (u64, u64)>,
    now: u64,
}

impl Model {
    fn new() -> Model {
        Model { revisions: vec![Keys::new()], compacted: BASE, leases: BTreeMap::new(), now: 0 }
    }

    fn revision(&self) -> i64 {
        BASE + self.revisions.len() as i64 - 1
    }

    fn keys(&self) -> &Keys {
        self.revisions.last().unwrap()
    }

    fn change(&mut self, change: impl FnOnce(&mut Keys, i64)) {
        let mut keys = self.keys().clone();
        change(&mut keys, self.revision() + 1);
        if keys != *self.keys() {
            self.revisions.push(keys);
        }
    }

    fn revoke(&mut self, id: i64) -> bool {
        let had = self.leases.remove(&id).is_some();
        self.change(|keys, _| keys.retain(|_, kv| !had || kv.lease != id));
        had
    }

    fn step(&mut self, step: &Step) -> Result<(), Refusal> {
        match step {
            Step::Put { lease, .. } if *lease != 0 && !self.leases.contains_key(lease) => return Err(Refusal::LeaseNotFound),
            Step::Put { key, value, lease } => self.change(|keys, revision| set(keys, revision, key, *value, *lease)),
            Step::Delete { key, end } => {
                let span = Span::new(key, end);
                self.change(|keys, _| keys.retain(|key, _| !span.contains(key)));
            }
            Step::Txn { first, second, .. } if first == second => return Err(Refusal::DuplicateKey),
            Step::Txn { first, second, age } => {
                let wanted = age.map_or(0, |age| self.revision() - i64::from(age));
                let holds = self.keys().get(first).map_or(0, |kv| kv.mod_revision) == wanted;
                self.change(|keys, revision| {
                    if holds {
                        set(keys, revision, first, 1, 0);
                        set(keys, revision, second, 2, 0);
                    } else {
                        keys.remove(first);
                    }
                });
            }
            Step::Compact { back } => {
                let at = self.revision() - i64::from(*back);
                if at <= self.compacted {
                    return Err(Refusal::Compacted);
                }
                self.compacted = at;
            }
            Step::Grant { id, .. } if self.leases.contains_key(id) => return Err(Refusal::LeaseExists),
            Step::Grant { id, ttl } => {
                let ttl = ttl.unsigned_abs().max(2);
                self.leases.insert(*id, (ttl, self.now + ttl));
            }
            Step::Revoke { id } => return self.revoke(*id).then_some(()).ok_or(Refusal::LeaseNotFound),
            Step::KeepAlive { id } => {
                if let Some((ttl, ends)) = self.leases.get_mut(id) {
                    *ends = self.now + *ttl;
                }
            }
            Step::Wait { seconds } => {
                self.now += seconds;
                let over: Vec<i64> = self.leases.iter().filter(|(_, (_, ends))| *ends <= self.now).map(|(id, _)| *id).collect();
                over.into_iter().for_each(|id| assert!(self.revoke(id)));
            }
        }
        Ok(())
    }
}

fn set(keys: &mut Keys, revision: i64, key: &[u8], value: u8, lease: i64) {
    let before = keys.get(key);
    let create_revision = before.map_or(revision, |kv| kv.create_revision);
    let version = before.map_or(1, |kv| kv.version + 1);
    let kv = PbKeyValue { key: key.to_vec(), value: vec![value], create_revision, mod_revision: revision, version, lease };
    keys.insert(key.to_vec(), kv);
}

fn apply(store: &mut Store, step: &Step, now: u64) -> Result<(), Refusal> {
    let now = Duration::from_secs(now);
    let put = |key: &[u8], value: u8, lease| PbPutRequest { key: key.to_vec(), value: vec![value], lease, ..Default::default() };
    match step {
        Step::Put { key, value, lease } => store.put(put(key, *value, *lease)).map(|_| ()),
        Step::Delete { key, end } => {
            let request = PbDeleteRequest { key: key.clone(), range_end: end.clone(), prev_kv: false };
            store.delete(request).map(|_| ())
        }
        Step::Txn { first, second, age } => {
            let operation = |request| PbTxnRequestOp { request: Some(request) };
            let wanted = age.map_or(0, |age| store.revision() - i64::from(age));
            let delete = PbDeleteRequest { key: first.clone(), ..Default::default() };
            let request = PbTxnRequest {
                compare: vec![PbCompare {
                    target: PbCompareTarget::Mod as i32,
                    key: first.clone(),
                    target_union: Some(PbTargetUnion::ModRevision(wanted)),
                    ..PbCompare::default()
                }],
                success: vec![
                    operation(PbTxnOpRequest::RequestPut(put(first, 1, 0))),
                    operation(PbTxnOpRequest::RequestPut(put(second, 2, 0))),
                ],
                failure: vec![operation(PbTxnOpRequest::RequestDeleteRange(delete))],
            };
            store.txn(request).map(|_| ())
        }
        Step::Compact { back } => store.compact(store.revision() - i64::from(*back)).map(|_| ()),
        Step::Grant { id, ttl } => store.grant(*id, *ttl, now).map(|_| ()),
        Step::Revoke { id } => store.revoke(*id).map(|_| ()),
        Step::KeepAlive { id } => {
            store.keep_alive(*id, now);
            Ok(())
        }
        Step::Wait { .. } => {
            store.expire(now);
            Ok(())
        }
    }
}

fn all_at(store: &Store, revision: i64) -> Result<Vec<PbKeyValue>, Refusal> {
    let request = PbRangeRequest { key: vec![0], range_end: vec![0], revision, ..PbRangeRequest::default() };
    store.range(&request).map(|response| response.kvs)
}

/// Everything a watcher from `next` gets.
fn events_from(store: &Store, next: i64) -> Result<Vec<etcd_client::proto::PbEvent>, i64> {
    let span = Span::new(b"\0", b"\0");
    let mut watching = Watching { span, next, puts: true, deletions: true, previous: true };
    let mut events = Vec::new();
    loop {
        match watching.advance(&store.keyspace) {
            Batch::CaughtUp => return Ok(events),
            Batch::Events(more) => events.extend(more),
            Batch::Compacted(at) => return Err(at),
        }
    }
}

fn check(store: &Store, model: &Model) {
    assert_eq!((store.revision(), store.keyspace.compacted()), (model.revision(), model.compacted));
    for (past, keys) in model.revisions.iter().enumerate() {
        let revision = BASE + past as i64;
        let expected: Vec<_> = keys.values().cloned().collect();
        let expected = if revision < model.compacted { Err(Refusal::Compacted) } else { Ok(expected) };
        assert_eq!(all_at(store, revision), expected, "at {revision}");

        // Replaying the events from the next revision on gives the keys of now.
        match events_from(store, revision + 1) {
            Err(at) => assert!(at == model.compacted && revision + 1 < at),
            Ok(events) if revision >= model.compacted => {
                let mut replayed = keys.clone();
                for event in events {
                    let kv = event.kv.unwrap();
                    if event.r#type == EventType::Delete as i32 {
                        assert_eq!(replayed.remove(&kv.key), event.prev_kv);
                    } else {
                        let before = replayed.insert(kv.key.clone(), kv);
                        assert_eq!(before, event.prev_kv);
                    }
                }
                assert_eq!(replayed, *model.keys());
            }
            Ok(_) => assert_eq!(revision + 1, model.compacted),
        }
    }
    assert_eq!(all_at(store, model.revision() + 1), Err(Refusal::FutureRevision));

    let ids: Vec<i64> = store.leases.iter().map(|(id, _)| id).collect();
    assert_eq!(ids, model.leases.keys().copied().collect::<Vec<_>>());
    for (id, (ttl, ends)) in &model.leases {
        let request = PbLeaseTimeToLiveRequest { id: *id, keys: true };
        let told = store.time_to_live(&request, Duration::from_secs(model.now));
        let held: Vec<_> = model.keys().values().filter(|kv| kv.lease == *id).map(|kv| kv.key.clone()).collect();
        assert_eq!((told.granted_ttl as u64, told.ttl as u64, told.keys), (*ttl, ends - model.now, held));
    }
}

fn keys() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![b"a".to_vec(), b"ab".to_vec(), b"b".to_vec(), b"c".to_vec(), b"d".to_vec()])
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ends = prop::sample::select(vec![vec![], vec![0], b"b".to_vec(), b"c".to_vec(), b"a".to_vec()]);
    let step = prop_oneof![
        6 => (keys(), any::<u8>(), 0..3i64).prop_map(|(key, value, lease)| Step::Put { key, value, lease }),
        2 => (keys(), ends).prop_map(|(key, end)| Step::Delete { key, end }),
        3 => (keys(), keys(), prop::option::of(0..4u8)).prop_map(|(first, second, age)| Step::Txn { first, second, age }),
        1 => (0..8u8).prop_map(|back| Step::Compact { back }),
        2 => (1..3i64, 0..6i64).prop_map(|(id, ttl)| Step::Grant { id, ttl }),
        1 => (1..3i64).prop_map(|id| Step::Revoke { id }),
        1 => (1..3i64).prop_map(|id| Step::KeepAlive { id }),
        2 => (0..4u64).prop_map(|seconds| Step::Wait { seconds }),
    ];
    proptest::collection::vec(step, 0..40)
}

proptest! {
    #[test]
    fn the_store_does_what_the_model_does(steps in steps()) {
        let (mut store, mut model) = (Store::new(BASE), Model::new());
        for step in &steps {
            let expected = model.step(step);
            prop_assert_eq!(apply(&mut store, step, model.now), expected, "{:?}", step);
            check(&store, &model);
        }
    }

    #[test]
    fn the_journal_gives_the_same_state_again(steps in steps(), saved_after in 0..40usize) {
        let mut store = Store::new(BASE);
        let mut records = store.to_records();
        let mut now = 0;
        for (count, step) in steps.iter().enumerate() {
            if let Step::Wait { seconds } = step {
                now += seconds;
            }
            let _ = apply(&mut store, step, now);
            records.extend(store.take_journal());
            if count == saved_after {
                records = store.to_records();
            }
        }
        let mut again = Store::from_record(records[0].bytes()).unwrap();
        for record in &records[1..] {
            again.replay(record.bytes(), Duration::ZERO).unwrap();
        }
        prop_assert_eq!(again.to_records(), store.to_records());
        prop_assert_eq!(again.keyspace.bytes(), store.keyspace.bytes());
        prop_assert_eq!(again.take_journal(), []);
        for revision in again.keyspace.compacted()..=again.revision() {
            if revision >= store.keyspace.compacted() {
                prop_assert_eq!(all_at(&again, revision), all_at(&store, revision));
            }
        }
    }
}

#[test]
fn a_long_history_forgets_its_older_half_and_no_more() {
    let mut store = Store::new(1);
    for count in 0..25_000u32 {
        let request = PbPutRequest { key: (count % 10).to_le_bytes().to_vec(), value: vec![1], ..PbPutRequest::default() };
        store.put(request).unwrap();
        store.take_journal();
    }
    let (oldest, revision) = (store.keyspace.compacted(), store.revision());
    assert!(oldest > 10_000 && revision - oldest >= 10_000, "{oldest} to {revision}");
    assert_eq!(events_from(&store, oldest - 1), Err(oldest));
    assert_eq!(events_from(&store, oldest).unwrap().len() as i64, revision - oldest + 1);
    assert_eq!(all_at(&store, 0).unwrap().len(), 10);
}

#[test]
fn a_full_store_refuses_puts_and_lets_keys_be_deleted() {
    let mut store = Store::new(1);
    let put = |store: &mut Store, key: u32| {
        store.put(PbPutRequest { key: key.to_le_bytes().to_vec(), value: vec![0; 1 << 20], ..PbPutRequest::default() })
    };
    let refused = (0..100).map(|key| put(&mut store, key)).find_map(Result::err);
    assert_eq!(refused, Some(Refusal::NoSpace));
    let everything = PbDeleteRequest { key: vec![0], range_end: vec![0], prev_kv: false };
    assert!(store.delete(everything).unwrap().deleted > 60);
    assert!(put(&mut store, 0).is_ok());
    let large = PbPutRequest { key: vec![1], value: vec![0; 2 << 20], ..PbPutRequest::default() };
    assert_eq!(store.put(large), Err(Refusal::RequestTooLarge));
}
