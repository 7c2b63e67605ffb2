//! A lease of ours: granted, renewed by the keeper, revoked at the end, in the background if it is just dropped.

use std::time::Duration;

use tracing::debug;

use crate::{CallError, Registry};

/// A granted lease.
pub(crate) struct Lease {
    id: i64,
    ttl: Duration,
    registry: Registry,
    /// Whether the registry may still hold it.
    held: bool,
}

/// Why a lease was not renewed.
pub(crate) enum Renewal {
    /// The registry has no such lease any more.
    Gone,
    /// Nobody knows: no answer.
    Failed(CallError),
}

impl Lease {
    /// Asks for a lease.
    pub(crate) async fn grant(registry: &Registry) -> Result<Lease, CallError> {
        let seconds = registry.lease_ttl().as_millis().div_ceil(1000).max(1);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let granted = registry.call(registry.leases().grant(seconds, None)).await?;
        let ttl = Duration::from_secs(granted.ttl().max(1).unsigned_abs());
        Ok(Lease { id: granted.id(), ttl, registry: registry.clone(), held: true })
    }

    pub(crate) fn id(&self) -> i64 {
        self.id
    }

    /// How long it lives without renewal.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Renews it. Each renewal is a short stream of its own: there is no long one to lose and to mend.
    pub(crate) async fn renew(&self) -> Result<(), Renewal> {
        match self.registry.call(self.registry.leases().keep_alive(self.id)).await {
            Ok(_) => Ok(()),
            // How etcd-client tells of an answer with no time left.
            Err(CallError::Client(etcd_client::Error::LeaseKeepAliveError(_))) => Err(Renewal::Gone),
            Err(error) => Err(Renewal::Failed(error)),
        }
    }

    /// Forgets it: the registry has lost it already.
    pub(crate) fn let_go(mut self) {
        self.held = false;
    }

    /// Gives it back, and with it whatever it holds.
    pub(crate) async fn revoke(mut self) {
        self.held = false;
        self.registry.abandon(self.id);
        revoke(&self.registry, self.id).await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.held {
            let (registry, id) = (self.registry.clone(), self.id);
            registry.abandon(id);
            self.registry.runtime().spawn(async move { revoke(&registry, id).await });
        }
    }
}

async fn revoke(registry: &Registry, id: i64) {
    let revoked = registry.patiently(|| async { registry.call(registry.leases().revoke(id)).await }).await;
    match revoked {
        Ok(_) => registry.forget(id),
        Err(CallError::Status { status }) if status.code() == tonic::Code::NotFound => registry.forget(id),
        // Its time to live ends it, and until then it is remembered as ours.
        Err(error) => debug!(lease = id, %error, "could not revoke a lease"),
    }
}
