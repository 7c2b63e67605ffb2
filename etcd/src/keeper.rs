//! The task behind a registration: renews the lease, looks that the key is still ours, registers again when it is not.
//!
//! It never gives up: a lost lease is a hint, never a death, and a registry that is gone comes back.

use std::{sync::Arc, time::Duration};

use banyan_proto::NodeName;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    MoveError, RegisterError, Registry, Role, View,
    backoff::Backoff,
    enrol::{self, Enrolled, Occasion},
    lease::{Lease, Renewal},
};

/// What the holder of a registration may wish for.
#[derive(Debug)]
pub(crate) enum Wish {
    /// Another parent.
    Move { parent: NodeName, reply: oneshot::Sender<Result<(), MoveError>> },
    /// The free place of its tree's root.
    Reign { former: Vec<NodeName>, reply: oneshot::Sender<Result<u64, RegisterError>> },
}

pub(crate) struct Keeper {
    registry: Registry,
    /// None between losing one lease and being granted the next.
    lease: Option<Lease>,
    renewed: Instant,
    entry: watch::Sender<Enrolled>,
    registered: watch::Sender<bool>,
    wishes: mpsc::Receiver<Wish>,
    backoff: Backoff,
    next: Instant,
    /// Whether the last return was refused: said once, not at every try.
    refused: bool,
}

impl Keeper {
    pub(crate) fn new(
        registry: Registry,
        lease: Lease,
        entry: watch::Sender<Enrolled>,
        registered: watch::Sender<bool>,
        wishes: mpsc::Receiver<Wish>,
    ) -> Self {
        let next = Instant::now() + lease.ttl() / 3;
        let (renewed, backoff) = (Instant::now(), Backoff::while_unavailable());
        Keeper { registry, lease: Some(lease), renewed, entry, registered, wishes, backoff, next, refused: false }
    }

    /// Keeps the registration until `leave`, then gives it back.
    pub(crate) async fn run(mut self, leave: CancellationToken) {
        leave.run_until_cancelled(self.keep()).await;
        self.registered.send_replace(false);
        if let Some(lease) = self.lease.take() {
            lease.revoke().await;
        }
    }

    async fn keep(&mut self) {
        let mut view = self.registry.watch();
        loop {
            let entry = self.entry.borrow().clone();
            tokio::select! {
                Some(wish) = self.wishes.recv() => match wish {
                    // Whoever asked may have gone.
                    Wish::Move { parent, reply } => _ = reply.send(self.change_parent(parent).await),
                    Wish::Reign { former, reply } => _ = reply.send(self.reign(&former).await),
                },
                () = tokio::time::sleep_until(self.next) => self.tend().await,
                // The next renewal would notice too; this is sooner.
                () = vanished(&mut view, &entry), if *self.registered.borrow() => self.tend().await,
            }
        }
    }

    async fn tend(&mut self) {
        let wait = match self.try_to_tend().await {
            Ok(ttl) => {
                self.backoff.reset();
                // Two renewals may fail and the third still comes in time.
                ttl / 3
            }
            Err(error) => {
                let name = self.entry.borrow().member.name.clone();
                debug!(node = %name, %error, "could not keep the registration");
                self.backoff.next()
            }
        };
        self.next = Instant::now() + wait;
    }

    /// Renews the lease, and registers again if the registry lost it or its keys. Returns the lease's time to live.
    async fn try_to_tend(&mut self) -> Result<Duration, RegisterError> {
        if let Some(lease) = &self.lease {
            match lease.renew().await {
                Ok(()) => {
                    self.renewed = Instant::now();
                    let (ttl, id) = (lease.ttl(), lease.id());
                    let member = self.entry.borrow().member.clone();
                    let held = enrol::is_held(&self.registry, &member, id).await;
                    if held.map_err(|error| self.registry.unavailable(error))? {
                        self.tell(true);
                        return Ok(ttl);
                    }
                }
                Err(Renewal::Gone) => {
                    if let Some(lease) = self.lease.take() {
                        lease.let_go();
                    }
                }
                Err(Renewal::Failed(error)) => {
                    if self.renewed.elapsed() > lease.ttl() {
                        self.tell(false);
                    }
                    return Err(self.registry.unavailable(error));
                }
            }
        }
        self.tell(false);
        let lease = match self.lease.take() {
            Some(lease) => lease,
            None => Lease::grant(&self.registry).await.map_err(|error| self.registry.unavailable(error))?,
        };
        let (ttl, id) = (lease.ttl(), lease.id());
        self.lease = Some(lease);
        let Enrolled { member, former, .. } = self.entry.borrow().clone();
        let enrolled = match enrol::enrol(&self.registry, &member, &former, id, Occasion::Return).await {
            Ok(enrolled) => enrolled,
            Err(RegisterError::TreeTaken { tree, holder }) => {
                // Its reign is over: from now on it waits for its turn.
                warn!(node = %member.name, %tree, root = %holder.name, "another root has taken its place");
                self.entry.send_modify(|entry| {
                    (entry.member.role, entry.epoch, entry.former) = (Role::Standby, None, Vec::new());
                });
                return Ok(Duration::ZERO);
            }
            Err(error) => {
                let refused = !matches!(error, RegisterError::Unavailable { .. });
                if refused && !self.refused {
                    warn!(node = %member.name, %error, "can't register again; trying on");
                }
                self.refused = refused;
                return Err(error);
            }
        };
        self.refused = false;
        self.renewed = Instant::now();
        info!(node = %member.name, incarnation = enrolled.member.incarnation, "registered again");
        self.entry.send_replace(enrolled);
        self.tell(true);
        Ok(ttl)
    }

    async fn change_parent(&mut self, parent: NodeName) -> Result<(), MoveError> {
        let mut member = self.entry.borrow().member.clone();
        if member.parent.is_none() {
            return Err(MoveError::Root(member.name));
        }
        let Some(lease) = self.lease.as_ref().filter(|_| *self.registered.borrow()) else {
            return Err(MoveError::Unregistered(member.name));
        };
        member.parent = Some(parent);
        let enrolled = enrol::enrol(&self.registry, &member, &[], lease.id(), Occasion::Move).await?;
        info!(node = %member.name, parent = ?enrolled.member.parent, "moved");
        self.entry.send_replace(enrolled);
        Ok(())
    }

    async fn reign(&mut self, former: &[NodeName]) -> Result<u64, RegisterError> {
        let mut member = self.entry.borrow().member.clone();
        member.role = Role::Root;
        let lease = match self.lease.take() {
            Some(lease) => lease,
            None => Lease::grant(&self.registry).await.map_err(|error| self.registry.unavailable(error))?,
        };
        let id = lease.id();
        self.lease = Some(lease);
        let enrolled = enrol::enrol(&self.registry, &member, former, id, Occasion::Reign).await?;
        let epoch = enrolled.epoch.unwrap_or_default();
        info!(node = %member.name, epoch, "took the place of the tree's root");
        self.entry.send_replace(enrolled);
        self.tell(true);
        Ok(epoch)
    }

    fn tell(&self, registered: bool) {
        self.registered.send_if_modified(|told| std::mem::replace(told, registered) != registered);
    }
}

/// Waits until the view shows that the entry is not in the registry any more, or is another's.
async fn vanished(view: &mut watch::Receiver<Arc<View>>, entry: &Enrolled) {
    let gone = |view: &View| {
        let seen = view.members.get(&entry.member.name);
        view.live && view.revision > entry.revision && seen.is_none_or(|seen| seen.incarnation != entry.member.incarnation)
    };
    loop {
        if view.changed().await.is_err() {
            // The watcher has ended, and with it what this could notice.
            return std::future::pending().await;
        }
        if gone(&view.borrow_and_update()) {
            return;
        }
    }
}
