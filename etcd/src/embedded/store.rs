//! The registry's state and what each request does to it: etcd's rules for Range, Put, DeleteRange, Txn, leases and compaction.
//!
//! Pure: no tokio, no files, and the time is passed in. Whatever changes is also written to a journal, which a [`Record`]
//! at a time rebuilds the same state. Answers carry the revision in their header; who answers, the server fills in.

use std::{sync::Arc, time::Duration};

use etcd_client::proto::{
    PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKeyValue, PbLeaseGrantResponse, PbLeaseKeepAliveResponse,
    PbLeaseLeasesResponse, PbLeaseRevokeResponse, PbLeaseStatus, PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
    PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse, PbResponseHeader, PbResponseOp, PbTxnOpRequest,
    PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
};

use super::{keyspace::Keyspace, leases::Leases, range, record::Record, refusal::Refusal, span::Span, txn};

/// How many bytes keys and values may take: a registry of ten thousand nodes is a tenth of it, and it has to fit in memory
/// beside whatever else the process does.
pub(super) const STORE_BYTES_MAX: usize = 64 << 20;

/// Everything the registry holds.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) keyspace: Keyspace,
    pub(super) leases: Leases,
    journal: Vec<Record>,
}

impl Store {
    /// An empty store whose history begins at `revision`.
    pub(super) fn new(revision: i64) -> Store {
        Store { keyspace: Keyspace::new(revision), leases: Leases::default(), journal: Vec::new() }
    }

    pub(super) fn revision(&self) -> i64 {
        self.keyspace.revision()
    }

    /// What changed since this was called last.
    pub(super) fn take_journal(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.journal)
    }

    pub(super) fn range(&self, request: &PbRangeRequest) -> Result<PbRangeResponse, Refusal> {
        if request.key.is_empty() {
            return Err(Refusal::EmptyKey);
        }
        range::range(&self.keyspace, request)
    }

    pub(super) fn put(&mut self, request: PbPutRequest) -> Result<PbPutResponse, Refusal> {
        match self.single(PbTxnOpRequest::RequestPut(request))? {
            PbTxnOpResponse::ResponsePut(response) => Ok(response),
            _ => unreachable!("a put is answered by a put's answer"),
        }
    }

    pub(super) fn delete(&mut self, request: PbDeleteRequest) -> Result<PbDeleteResponse, Refusal> {
        match self.single(PbTxnOpRequest::RequestDeleteRange(request))? {
            PbTxnOpResponse::ResponseDeleteRange(response) => Ok(response),
            _ => unreachable!("a deletion is answered by a deletion's answer"),
        }
    }

    fn single(&mut self, operation: PbTxnOpRequest) -> Result<PbTxnOpResponse, Refusal> {
        let request = PbTxnRequest { success: vec![PbTxnRequestOp { request: Some(operation) }], ..PbTxnRequest::default() };
        let response = self.txn(request)?.responses.pop().and_then(|response| response.response);
        Ok(response.expect("a transaction answers each of its operations"))
    }

    /// All of it or nothing: what could be refused is looked at before anything is changed.
    pub(super) fn txn(&mut self, request: PbTxnRequest) -> Result<PbTxnResponse, Refusal> {
        txn::check(&request)?;
        let succeeded = request.compare.iter().all(|compare| txn::holds(&self.keyspace, compare));
        let operations = if succeeded { request.success } else { request.failure };
        let operations: Vec<PbTxnOpRequest> = operations.into_iter().filter_map(|operation| operation.request).collect();
        self.check(&operations)?;
        let responses = operations.into_iter().map(|operation| self.apply(operation));
        let responses = responses.map(|response| response.map(|response| PbResponseOp { response: Some(response) }));
        let responses = responses.collect::<Result<_, _>>();
        self.commit();
        Ok(PbTxnResponse { header: self.header(), succeeded, responses: responses? })
    }

    /// Looks for whatever would make an operation fail midway.
    fn check(&self, operations: &[PbTxnOpRequest]) -> Result<(), Refusal> {
        let mut bytes = self.keyspace.bytes();
        for operation in operations {
            match operation {
                PbTxnOpRequest::RequestPut(put) => {
                    bytes += put.key.len() + put.value.len();
                    if bytes > STORE_BYTES_MAX {
                        return Err(Refusal::NoSpace);
                    }
                    if put.lease != 0 && !self.leases.contains(put.lease) {
                        return Err(Refusal::LeaseNotFound);
                    }
                    if (put.ignore_value || put.ignore_lease) && self.keyspace.get(&put.key).is_none() {
                        return Err(Refusal::KeyNotFound);
                    }
                }
                PbTxnOpRequest::RequestRange(range) => self.keyspace.check(range.revision)?,
                PbTxnOpRequest::RequestDeleteRange(_) => {}
                PbTxnOpRequest::RequestTxn(_) => return Err(Refusal::NestedTxn),
            }
        }
        Ok(())
    }

    fn apply(&mut self, operation: PbTxnOpRequest) -> Result<PbTxnOpResponse, Refusal> {
        match operation {
            PbTxnOpRequest::RequestRange(request) => {
                let mut response = range::range(&self.keyspace, &request)?;
                response.header = self.header();
                Ok(PbTxnOpResponse::ResponseRange(response))
            }
            PbTxnOpRequest::RequestPut(request) => {
                let previous = self.keyspace.get(&request.key).cloned();
                let before = |kv: &Option<Arc<PbKeyValue>>| kv.as_ref().map_or(0, |kv| kv.lease);
                let kept = |kv: &Option<Arc<PbKeyValue>>| kv.as_ref().map_or_else(Vec::new, |kv| kv.value.clone());
                let lease = if request.ignore_lease { before(&previous) } else { request.lease };
                let value = if request.ignore_value { kept(&previous) } else { request.value };
                self.leases.hand_over(&request.key, before(&previous), lease);
                self.keyspace.put(request.key, value, lease);
                let prev_kv = previous.filter(|_| request.prev_kv).map(|kv| (*kv).clone());
                Ok(PbTxnOpResponse::ResponsePut(PbPutResponse { header: self.header(), prev_kv }))
            }
            PbTxnOpRequest::RequestDeleteRange(request) => {
                let span = Span::new(&request.key, &request.range_end);
                let deleted = self.delete_keys(self.keyspace.now(&span).map(|kv| kv.key.clone()).collect());
                let count = i64::try_from(deleted.len()).unwrap_or(i64::MAX);
                let prev_kvs = if request.prev_kv { deleted.iter().map(|kv| (**kv).clone()).collect() } else { Vec::new() };
                let response = PbDeleteResponse { header: self.header(), deleted: count, prev_kvs };
                Ok(PbTxnOpResponse::ResponseDeleteRange(response))
            }
            PbTxnOpRequest::RequestTxn(_) => Err(Refusal::NestedTxn),
        }
    }

    fn delete_keys(&mut self, keys: Vec<Vec<u8>>) -> Vec<Arc<PbKeyValue>> {
        let mut deleted = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(previous) = self.keyspace.delete(&key) {
                self.leases.hand_over(&key, previous.lease, 0);
                deleted.push(previous);
            }
        }
        deleted
    }

    fn commit(&mut self) {
        let pending: Vec<_> = self.keyspace.pending().cloned().collect();
        if !pending.is_empty() {
            self.keyspace.commit();
            self.journal.push(Record::changes(self.revision(), &pending));
        }
    }

    pub(super) fn compact(&mut self, revision: i64) -> Result<PbCompactionResponse, Refusal> {
        self.keyspace.compact(revision)?;
        self.journal.push(Record::compaction(revision));
        Ok(PbCompactionResponse { header: self.header() })
    }

    /// Grants a lease under an id that the caller chose, or drew.
    pub(super) fn grant(&mut self, id: i64, ttl: i64, now: Duration) -> Result<PbLeaseGrantResponse, Refusal> {
        let ttl = self.leases.grant(id, ttl, now)?;
        self.journal.push(Record::grant(id, ttl));
        Ok(PbLeaseGrantResponse { header: self.header(), id, ttl, error: String::new() })
    }

    /// Renews a lease. Unlike elsewhere, no such lease is not an error but an answer without time to live.
    pub(super) fn keep_alive(&mut self, id: i64, now: Duration) -> PbLeaseKeepAliveResponse {
        let ttl = self.leases.renew(id, now).unwrap_or(0);
        PbLeaseKeepAliveResponse { header: self.header(), id, ttl }
    }

    /// Ends a lease, and deletes its keys in one revision.
    pub(super) fn revoke(&mut self, id: i64) -> Result<PbLeaseRevokeResponse, Refusal> {
        let lease = self.leases.remove(id).ok_or(Refusal::LeaseNotFound)?;
        self.delete_keys(lease.keys.into_iter().collect());
        self.commit();
        // Behind the deletions: a file that ends in between has a lease without keys, and not keys without their lease.
        self.journal.push(Record::revocation(id));
        Ok(PbLeaseRevokeResponse { header: self.header() })
    }

    pub(super) fn time_to_live(&self, request: &PbLeaseTimeToLiveRequest, now: Duration) -> PbLeaseTimeToLiveResponse {
        let empty =
            PbLeaseTimeToLiveResponse { header: self.header(), id: request.id, ttl: -1, granted_ttl: 0, keys: Vec::new() };
        match self.leases.get(request.id) {
            None => empty,
            Some(lease) => {
                let keys = if request.keys { lease.keys.iter().cloned().collect() } else { Vec::new() };
                PbLeaseTimeToLiveResponse { ttl: lease.left(now), granted_ttl: lease.ttl, keys, ..empty }
            }
        }
    }

    pub(super) fn list_leases(&self) -> PbLeaseLeasesResponse {
        let mut leases: Vec<_> = self.leases.iter().map(|(id, lease)| (lease.ends, id)).collect();
        leases.sort_unstable();
        let leases = leases.into_iter().map(|(_, id)| PbLeaseStatus { id }).collect();
        PbLeaseLeasesResponse { header: self.header(), leases }
    }

    /// Ends the leases whose time is over.
    pub(super) fn expire(&mut self, now: Duration) {
        for id in self.leases.over(now) {
            let ended = self.revoke(id);
            debug_assert!(ended.is_ok(), "a lease that is over was there");
        }
    }

    /// The revision of now; inside a transaction that has changed something, the one that it will have.
    fn header(&self) -> Option<PbResponseHeader> {
        let pending = i64::from(self.keyspace.pending().next().is_some());
        Some(PbResponseHeader { revision: self.revision() + pending, ..PbResponseHeader::default() })
    }
}
