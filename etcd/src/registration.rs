//! A name that is held: the handle of the one who registered. The keeper task does the work.

use banyan_proto::NodeName;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    Member, MoveError, Registry, ReignError,
    enrol::Enrolled,
    keeper::{Keeper, Wish},
    lease::Lease,
};

/// Wishes that wait for the one before: they are made by people, or once in a reign.
const WISHES_WAITING: usize = 4;

/// A name that is held for as long as this lives. A lost lease is had again, under a new incarnation; nothing ends a
/// registration but [`Registration::leave`] and dropping it (which leaves in the background).
#[derive(Debug)]
pub struct Registration {
    entry: watch::Receiver<Enrolled>,
    registered: watch::Receiver<bool>,
    wishes: mpsc::Sender<Wish>,
    leave: DropGuard,
    keeper: JoinHandle<()>,
}

impl Registration {
    pub(crate) fn start(registry: Registry, lease: Lease, enrolled: Enrolled) -> Registration {
        let (wishes, requests) = mpsc::channel(WISHES_WAITING);
        let (entry_sender, entry) = watch::channel(enrolled);
        let (registered_sender, registered) = watch::channel(true);
        let leaving = CancellationToken::new();
        let keeper = Keeper::new(registry.clone(), lease, entry_sender, registered_sender, requests);
        let keeper = registry.runtime().spawn(keeper.run(leaving.clone()));
        Registration { entry, registered, wishes, leave: leaving.drop_guard(), keeper }
    }

    /// The member as it was registered last, with its parent and incarnation.
    pub fn member(&self) -> Member {
        self.entry.borrow().member.clone()
    }

    /// The number of a root's reign; None for other nodes.
    pub fn epoch(&self) -> Option<u64> {
        self.entry.borrow().epoch
    }

    /// Whether the registry holds the name for us, as far as we know. False says nothing about the tree: everyone goes on
    /// with what they know, and the name is taken again as soon as that can be.
    pub fn registered(&self) -> watch::Receiver<bool> {
        self.registered.clone()
    }

    /// Changes the wanted parent, in one transaction that can't make a cycle.
    pub async fn move_to(&self, parent: NodeName) -> Result<(), MoveError> {
        let (reply, answer) = oneshot::channel();
        let left = || MoveError::Left(self.entry.borrow().member.name.clone());
        self.wishes.send(Wish::Move { parent, reply }).await.map_err(|_| left())?;
        answer.await.map_err(|_| left())?
    }

    /// Takes the free place of the tree's root, in one transaction; `former` are the names of the roots before. Gives back the
    /// number of the reign.
    ///
    /// # Errors
    /// When another one was faster, or the registry does not answer.
    pub async fn reign(&self, former: Vec<NodeName>) -> Result<u64, ReignError> {
        let (reply, answer) = oneshot::channel();
        self.wishes.send(Wish::Reign { former, reply }).await.map_err(|_| ReignError::Left)?;
        answer.await.map_err(|_| ReignError::Left)?.map_err(ReignError::Refused)
    }

    /// Waits until the number of a root's reign is another one than `known`: its key was lost and taken again, or (None)
    /// another root has taken its place.
    pub fn epoch_other_than(&self, known: Option<u64>) -> impl Future<Output = Option<u64>> + Send + 'static + use<> {
        let mut entry = self.entry.clone();
        async move {
            let changed = entry.wait_for(|entry| entry.epoch != known).await.map(|entry| entry.epoch);
            match changed {
                Ok(epoch) => epoch,
                // The registration has ended, and with it all changes.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Gives the name back, and waits until that is done or the time-out is over (then the lease ends by itself).
    pub async fn leave(self) {
        drop(self.leave);
        // The keeper neither panics nor is aborted, and if it were, there'd be nothing left to wait for.
        let _ = self.keeper.await;
    }
}
