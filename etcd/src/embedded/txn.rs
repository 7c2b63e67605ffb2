//! What a transaction may ask for, and when its compares hold: etcd's rules, none of which change anything.

use std::{cmp::Ordering, collections::BTreeSet};

use etcd_client::{
    CompareOp,
    proto::{PbCompare, PbCompareTarget, PbKeyValue, PbTargetUnion, PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp},
};
use prost::Message;

use super::{keyspace::Keyspace, refusal::Refusal, span::Span};

/// How many compares, and how many operations, one transaction may have; etcd's default.
const OPERATIONS_MAX: usize = 128;

/// The largest request that writes, in bytes; etcd's default.
const REQUEST_BYTES_MAX: usize = 3 << 19;

/// Looks at the request alone.
pub(super) fn check(request: &PbTxnRequest) -> Result<(), Refusal> {
    let most = request.compare.len().max(request.success.len()).max(request.failure.len());
    if most > OPERATIONS_MAX {
        return Err(Refusal::TooManyOps);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Refusal::EmptyKey);
    }
    for operation in request.success.iter().chain(&request.failure) {
        check_operation(operation)?;
    }
    check_overlaps(&request.success)?;
    check_overlaps(&request.failure)?;
    if request.encoded_len() > REQUEST_BYTES_MAX {
        return Err(Refusal::RequestTooLarge);
    }
    Ok(())
}

fn check_operation(operation: &PbTxnRequestOp) -> Result<(), Refusal> {
    let key = match &operation.request {
        // etcd's answer to an operation of no kind.
        None => return Err(Refusal::KeyNotFound),
        Some(PbTxnOpRequest::RequestRange(range)) => &range.key,
        Some(PbTxnOpRequest::RequestDeleteRange(delete)) => &delete.key,
        Some(PbTxnOpRequest::RequestPut(put)) => {
            if put.ignore_value && !put.value.is_empty() {
                return Err(Refusal::ValueProvided);
            }
            if put.ignore_lease && put.lease != 0 {
                return Err(Refusal::LeaseProvided);
            }
            &put.key
        }
        Some(PbTxnOpRequest::RequestTxn(_)) => return Err(Refusal::NestedTxn),
    };
    if key.is_empty() { Err(Refusal::EmptyKey) } else { Ok(()) }
}

/// A transaction changes each key at most once.
fn check_overlaps(operations: &[PbTxnRequestOp]) -> Result<(), Refusal> {
    let mut puts = BTreeSet::new();
    let mut deletions = Vec::new();
    for operation in operations {
        match &operation.request {
            Some(PbTxnOpRequest::RequestPut(put)) if !puts.insert(put.key.as_slice()) => return Err(Refusal::DuplicateKey),
            Some(PbTxnOpRequest::RequestDeleteRange(delete)) => deletions.push(Span::new(&delete.key, &delete.range_end)),
            _ => {}
        }
    }
    let put_and_deleted = deletions.iter().any(|span| puts.iter().any(|key| span.contains(key)));
    if put_and_deleted { Err(Refusal::DuplicateKey) } else { Ok(()) }
}

/// Whether a compare holds: for every key of its range, or for a key that does not exist when there is none.
pub(super) fn holds(keyspace: &Keyspace, compare: &PbCompare) -> bool {
    let span = Span::new(&compare.key, &compare.range_end);
    let mut found = keyspace.now(&span).peekable();
    if found.peek().is_none() {
        // A key that does not exist has no value to compare with; its numbers are all 0.
        let by_value = compare.target == PbCompareTarget::Value as i32;
        return !by_value && matches(compare, &PbKeyValue::default());
    }
    found.all(|kv| matches(compare, kv))
}

fn matches(compare: &PbCompare, kv: &PbKeyValue) -> bool {
    let Ok(target) = PbCompareTarget::try_from(compare.target) else { return true };
    let wanted = compare.target_union.as_ref();
    let order = match target {
        PbCompareTarget::Value => match wanted {
            Some(PbTargetUnion::Value(value)) => kv.value.cmp(value),
            _ => kv.value.as_slice().cmp(&[]),
        },
        PbCompareTarget::Version => number(kv.version, wanted, |wanted| match wanted {
            PbTargetUnion::Version(version) => Some(*version),
            _ => None,
        }),
        PbCompareTarget::Create => number(kv.create_revision, wanted, |wanted| match wanted {
            PbTargetUnion::CreateRevision(revision) => Some(*revision),
            _ => None,
        }),
        PbCompareTarget::Mod => number(kv.mod_revision, wanted, |wanted| match wanted {
            PbTargetUnion::ModRevision(revision) => Some(*revision),
            _ => None,
        }),
        PbCompareTarget::Lease => number(kv.lease, wanted, |wanted| match wanted {
            PbTargetUnion::Lease(lease) => Some(*lease),
            _ => None,
        }),
    };
    match CompareOp::try_from(compare.result) {
        Ok(CompareOp::Equal) => order == Ordering::Equal,
        Ok(CompareOp::NotEqual) => order != Ordering::Equal,
        Ok(CompareOp::Greater) => order == Ordering::Greater,
        Ok(CompareOp::Less) => order == Ordering::Less,
        Err(_) => true,
    }
}

/// Compares with the wanted number; a union of another kind than the target counts as 0.
fn number(have: i64, wanted: Option<&PbTargetUnion>, pick: impl Fn(&PbTargetUnion) -> Option<i64>) -> Ordering {
    have.cmp(&wanted.and_then(pick).unwrap_or(0))
}
