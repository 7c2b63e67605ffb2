//! How the server says no: etcd's own texts and codes, on which etcd-client, etcdctl and other clients depend.
//!
//! Source: etcd's `etcdserver/api/v3rpc/rpctypes/error.go` and `mvcc/watcher.go` (3.4).

use tonic::{Code, Status};

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    #[error("etcdserver: key not found")]
    KeyNotFound,
    #[error("etcdserver: value is provided")]
    ValueProvided,
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    #[error("etcdserver: permission denied")]
    NotAllowed,
    #[error("banyan's embedded registry knows no transactions inside transactions: use etcd for these")]
    NestedTxn,
}

impl Refusal {
    fn code(self) -> Code {
        match self {
            Refusal::EmptyKey
            | Refusal::KeyNotFound
            | Refusal::ValueProvided
            | Refusal::LeaseProvided
            | Refusal::TooManyOps
            | Refusal::DuplicateKey
            | Refusal::RequestTooLarge => Code::InvalidArgument,
            Refusal::Compacted | Refusal::FutureRevision | Refusal::LeaseTtlTooLarge => Code::OutOfRange,
            Refusal::NoSpace | Refusal::TooManyRequests => Code::ResourceExhausted,
            Refusal::LeaseNotFound => Code::NotFound,
            Refusal::LeaseExists => Code::FailedPrecondition,
            Refusal::NotAllowed => Code::PermissionDenied,
            Refusal::NestedTxn => Code::Unimplemented,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        Status::new(refusal.code(), refusal.to_string())
    }
}

/// The answer to the parts of etcd's API that no registry needs.
pub(super) fn not_here(what: &str) -> Status {
    Status::unimplemented(format!("banyan's embedded registry has no {what}: use etcd for it"))
}
