//! What the registry keeps for the cluster's authority: join tokens that were not used yet, as hashes, and names that were given out.
//!
//! What a record says is the authority's to write and to check. That exactly one takes it is this transaction's.

use std::time::Duration;

use banyan_proto::NodeName;
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};

use crate::{ReadError, Registry};

/// What is kept of a name whose certificates are not renewed.
const REVOKED: &str = "revoked";

/// What became of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redeemed {
    /// It was ours, and is nobody's any more.
    Taken,
    /// There is none: it was used, its time is over, or it never was.
    Gone,
    /// The name was given out before; the token is still good.
    NameTaken,
}

impl Registry {
    /// Keeps a record under a token's hash until somebody takes it, or the time is over.
    pub async fn keep_token(&self, hash: &str, record: Vec<u8>, time: Duration) -> Result<(), ReadError> {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX).max(1);
        let lease = self.call(self.leases().grant(seconds, None)).await.map_err(|source| self.unreadable(source))?;
        let options = PutOptions::new().with_lease(lease.id());
        let put = self.call(self.kv().put(self.keys().token(hash), record, Some(options))).await;
        put.map(drop).map_err(|source| self.unreadable(source))
    }

    /// The record under a token's hash.
    pub async fn token(&self, hash: &str) -> Result<Option<Vec<u8>>, ReadError> {
        let key = self.keys().token(hash);
        let got = self.patiently(|| async { self.call(self.kv().get(key.as_str(), None)).await }).await;
        Ok(got.map_err(|source| self.unreadable(source))?.kvs().first().map(|kv| kv.value().to_vec()))
    }

    /// Takes a token, once; with `claim`, and a name of that role that nobody was given before.
    pub async fn redeem(&self, hash: &str, claim: Option<(&str, &NodeName)>) -> Result<Redeemed, ReadError> {
        let key = self.keys().token(hash);
        let mut conditions = vec![Compare::create_revision(key.as_str(), CompareOp::Greater, 0)];
        let mut changes = vec![TxnOp::delete(key.as_str(), None)];
        if let Some((role, name)) = claim {
            let name = self.keys().certificate(role, name);
            conditions.push(Compare::create_revision(name.as_str(), CompareOp::Equal, 0));
            changes.push(TxnOp::put(name, "", None));
        }
        // Tried once: what a lost answer has done can't be told from what somebody else has.
        let done = self.call(self.kv().txn(Txn::new().when(conditions).and_then(changes))).await;
        if done.map_err(|source| self.unreadable(source))?.succeeded() {
            return Ok(Redeemed::Taken);
        }
        Ok(if self.token(hash).await?.is_some() { Redeemed::NameTaken } else { Redeemed::Gone })
    }

    /// Gives a name to whoever has a certificate for it, so that no token without a name can take it.
    pub async fn claim_name(&self, role: &str, name: &NodeName) -> Result<(), ReadError> {
        self.put_name(role, name, "").await
    }

    /// Lets nobody renew a certificate of that name, until the name is claimed again.
    pub async fn revoke_name(&self, role: &str, name: &NodeName) -> Result<(), ReadError> {
        self.put_name(role, name, REVOKED).await
    }

    /// Whether a name's certificates are not renewed.
    pub async fn is_revoked(&self, role: &str, name: &NodeName) -> Result<bool, ReadError> {
        let key = self.keys().certificate(role, name);
        let got = self.patiently(|| async { self.call(self.kv().get(key.as_str(), None)).await }).await;
        let got = got.map_err(|source| self.unreadable(source))?;
        Ok(got.kvs().first().is_some_and(|kv| kv.value() == REVOKED.as_bytes()))
    }

    async fn put_name(&self, role: &str, name: &NodeName, state: &str) -> Result<(), ReadError> {
        let put = self.call(self.kv().put(self.keys().certificate(role, name), state, None)).await;
        put.map(drop).map_err(|source| self.unreadable(source))
    }
}
