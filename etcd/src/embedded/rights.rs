//! What whoever comes with a certificate may write: a node its own name, a root its place as well, the authority its tokens.
//!
//! As etcd's own roles would have it (docs/security.md). Everybody of the cluster may read; over plain TCP nobody is known, and
//! everybody may write.

use banyan_proto::{Identity, Role, transport::Peer};
use etcd_client::proto::{PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp};

use super::refusal::Refusal;

/// Whose request it is.
#[derive(Debug, Clone)]
pub(super) struct Rights(Option<Identity>);

/// What is done to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Put,
    Deletion,
}

impl Rights {
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Rights {
        Rights(Peer::of(request).0)
    }

    /// Refuses a change of a key, or with `range_end` of all up to there.
    pub(super) fn check(&self, change: Change, key: &[u8], range_end: &[u8]) -> Result<(), Refusal> {
        match &self.0 {
            Some(identity) if !may(identity, change, key, range_end) => {
                tracing::warn!(peer = %identity, key = %String::from_utf8_lossy(key), "refused a change in the registry");
                Err(Refusal::NotAllowed)
            }
            _ => Ok(()),
        }
    }

    /// Of either branch: which one is taken is only known when it is.
    pub(super) fn check_txn(&self, txn: &PbTxnRequest) -> Result<(), Refusal> {
        let check = |operation: &PbTxnRequestOp| match &operation.request {
            Some(PbTxnOpRequest::RequestPut(put)) => self.check(Change::Put, &put.key, b""),
            Some(PbTxnOpRequest::RequestDeleteRange(delete)) => self.check(Change::Deletion, &delete.key, &delete.range_end),
            // Reads; a transaction in it is refused as such.
            _ => Ok(()),
        };
        txn.success.iter().chain(&txn.failure).try_for_each(check)
    }
}

fn may(identity: &Identity, change: Change, key: &[u8], range_end: &[u8]) -> bool {
    if identity.role == Role::Operator {
        return true;
    }
    let prefix = format!("/banyan/{}/", identity.cluster);
    let place = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(&prefix)?.split_once('/'));
    let Some((kind, name)) = place.filter(|_| range_end.is_empty()) else { return false };
    match (identity.role, kind) {
        (Role::Node | Role::Root, "nodes") if name == identity.name.as_str() => true,
        (Role::Root, "roots") => true,
        // A standby clears away what a dead root has left.
        (Role::Root, "nodes") => change == Change::Deletion,
        (Role::Authority, "tokens" | "certificates") => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_changes_its_own_keys_and_no_others() {
        let may = |who: &str, change, key: &str| Rights(Some(who.parse().unwrap())).check(change, key.as_bytes(), b"").is_ok();
        let (a, root, ca) = ("banyan://c/node/a", "banyan://c/root/r", "banyan://c/authority/ca");
        for (who, put, deletion, key) in [
            (a, true, true, "/banyan/c/nodes/a"),
            (a, false, false, "/banyan/c/nodes/b"),
            (a, false, false, "/banyan/d/nodes/a"),
            (a, false, false, "/banyan/c/nodes/a/b"),
            (a, false, false, "/banyan/c/roots/main"),
            (a, false, false, "/banyan/c/tokens/x"),
            (a, false, false, "/somebody/elses"),
            (root, true, true, "/banyan/c/nodes/r"),
            (root, true, true, "/banyan/c/roots/main"),
            (root, false, true, "/banyan/c/nodes/a"),
            (root, false, false, "/banyan/c/tokens/x"),
            (ca, true, true, "/banyan/c/tokens/x"),
            (ca, true, true, "/banyan/c/certificates/node/a"),
            (ca, false, false, "/banyan/c/nodes/a"),
            ("banyan://c/api/a", false, false, "/banyan/c/nodes/a"),
            ("banyan://c/operator/me", true, true, "/banyan/c/nodes/a"),
        ] {
            assert_eq!((may(who, Change::Put, key), may(who, Change::Deletion, key)), (put, deletion), "{who} {key}");
        }
        let everything = Rights(Some(root.parse().unwrap())).check(Change::Deletion, b"/banyan/c/nodes/", b"/banyan/c/nodes0");
        assert_eq!(everything, Err(Refusal::NotAllowed));
        assert!(Rights(None).check(Change::Put, b"anything", b"").is_ok());
    }
}
