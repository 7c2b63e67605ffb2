//! Who reigns over a tree: a root keeps its place as long as it holds it, and a standby takes it when its root is dead.
//!
//! Two roots never answer for one reign, whatever is guessed here: the place is taken by one transaction, its number fences
//! all that the former root sent, and nodes and APIs follow the registry. What a wrong guess would cost is a pause. So these
//! count as dead: a root whose key is gone and that does not answer (a lost lease alone is no death; a live root takes its
//! key again); one whose address refuses, as the host of a killed process does at once; and one that is silent to us and to all
//! nodes below it that can be asked, or, where none can, to us and to the registry: it has let a renewal of its lease pass. While
//! a node below it still hears it, it is only we who don't.

use std::{sync::Arc, time::Duration};

use banyan_etcd::{Member, Registration, Registry, Role, Root, View};
use banyan_proto::{
    Expected, NodeName, Transport, dial,
    v1::{self, inspect_client::InspectClient},
};
use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use tokio::{
    net::TcpStream,
    sync::{Mutex, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::core::{Handle, Input};

/// How often a standby looks at its root.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long a root has to answer; it says no more than a few numbers, and is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// When one node below does not hear the root, others have that much longer to say that they do.
const CONTRADICTION: Duration = Duration::from_millis(250);
/// A root that is silent for that long may be dead.
const SILENCE: Duration = Duration::from_millis(2000);
/// An address that refuses once may be about to listen again.
const REFUSALS: u32 = 2;
/// Nodes below the root that are asked whether they hear it.
const WITNESSES_MAX: usize = 8;

/// A node that is, or may be, its tree's root.
pub(crate) struct Throne {
    pub(crate) name: NodeName,
    pub(crate) tree: NodeName,
    /// Whether it waits for its turn when another one reigns.
    pub(crate) standby: bool,
    pub(crate) registry: Registry,
    pub(crate) registration: Arc<Mutex<Option<Registration>>>,
    pub(crate) core: Handle,
    /// The reign that it began with.
    pub(crate) epoch: Option<u64>,
    /// Told when another one reigns and this one does not wait.
    pub(crate) deposed: CancellationToken,
    pub(crate) transport: Transport,
}

/// What is known of a root's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signs {
    /// It said that it reigns.
    answers: bool,
    /// Nobody listens at its address, or somebody else.
    refusals: u32,
    /// How long it has said nothing.
    silent: Duration,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Alive,
    /// Dead if no node hears it; with `lapsed`, where none can be asked, if its lease missed a renewal as well.
    Dead {
        lapsed: bool,
    },
}

/// What nodes below a root say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Yes,
    No,
    NobodyToAsk,
    /// Those that could say so do not answer.
    Unknown,
}

fn judge(signs: Signs) -> Verdict {
    if signs.refusals >= REFUSALS {
        Verdict::Dead { lapsed: false }
    } else if !signs.answers && signs.silent >= SILENCE {
        Verdict::Dead { lapsed: true }
    } else {
        Verdict::Alive
    }
}

impl Throne {
    /// Reigns, waits, and reigns again, until the node stops.
    pub(crate) async fn run(self) {
        let mut view = self.registry.watch();
        let mut told = self.epoch;
        loop {
            let mut changed = match self.registration.lock().await.as_ref() {
                Some(registration) => {
                    let epoch = registration.epoch();
                    let stopped = match (told, epoch) {
                        (_, Some(epoch)) if told != Some(epoch) => self.core.tell(Input::Reign { epoch }).await.is_err(),
                        (Some(_), None) => self.core.tell(Input::StepDown).await.is_err(),
                        _ => false,
                    };
                    if stopped {
                        return;
                    }
                    told = epoch;
                    Box::pin(registration.epoch_other_than(epoch))
                }
                // It has left.
                None => return,
            };
            match told {
                Some(epoch) => tokio::select! {
                    _ = &mut changed => {}
                    () = self.core.ended() => return,
                    () = overtaken(&mut view, &self.tree, &self.name, epoch) => {
                        tracing::warn!(node = %self.name, "another root reigns");
                        if self.core.tell(Input::StepDown).await.is_err() {
                            return;
                        }
                        told = None;
                        // The registration finds out by itself; until then nothing is said. It may find the place free
                        // again, and itself in a new reign: so any other number than that of the reign that ended will do.
                        tokio::select! {
                            _ = &mut changed => {}
                            () = self.core.ended() => return,
                        }
                    }
                },
                None if self.standby => tokio::select! {
                    () = self.wait_for_turn(&mut view) => {}
                    () = self.core.ended() => return,
                },
                None => {
                    self.deposed.cancel();
                    return;
                }
            }
            if self.core.is_closed() {
                return;
            }
        }
    }

    /// Returns when the place was taken, or may have been.
    async fn wait_for_turn(&self, view: &mut watch::Receiver<Arc<View>>) {
        let mut watched: Option<Watched> = None;
        loop {
            let now = view.borrow_and_update().clone();
            let seen = now.roots.get(&self.tree).filter(|root| root.name != self.name);
            if let Some(root) = seen
                && watched.as_ref().is_none_or(|watched| watched.root != *root)
            {
                watched = Some(Watched::new(root.clone(), &self.transport));
            }
            let free = match (&mut watched, seen) {
                (Some(watched), Some(_)) => match judge(watched.look().await) {
                    Verdict::Dead { lapsed } => self.evict(&watched.root, &now, lapsed).await,
                    Verdict::Alive => false,
                },
                // Its key is gone; a root that lives takes it again first.
                (Some(watched), None) if now.live => !watched.look().await.answers,
                (None, None) => now.live && !now.roots.contains_key(&self.tree),
                _ => false,
            };
            if free && self.take(watched.as_ref().map(|watched| &watched.root)).await {
                return;
            }
            if self.core.is_closed() || self.registration.lock().await.is_none() {
                return;
            }
            tokio::select! {
                _ = view.changed() => {}
                () = sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    async fn evict(&self, root: &Root, view: &View, lapsed: bool) -> bool {
        let lapsed = match self.is_heard(root, view).await {
            Heard::Yes => return false,
            // Whatever the registry has of it, a root that reaches nobody below is none.
            Heard::No => false,
            Heard::NobodyToAsk => lapsed,
            Heard::Unknown => true,
        };
        match self.registry.evict_root(&self.tree, root, lapsed).await {
            Ok(evicted) => evicted,
            Err(error) => {
                tracing::debug!(node = %self.name, %error, "can't look at the root's key");
                false
            }
        }
    }

    /// Asks nodes below the root whether they hear it.
    async fn is_heard(&self, root: &Root, view: &View) -> Heard {
        let below = view.members.values().filter(|member| {
            member.role == Role::Node
                && member.tree == self.tree
                && member.parent.as_ref().is_some_and(|name| root.is_called(name))
        });
        let mut asked: FuturesUnordered<_> =
            below.take(WITNESSES_MAX).map(|member| status(channel(&member.address, &member.name, &self.transport))).collect();
        if asked.is_empty() {
            return Heard::NobodyToAsk;
        }
        let (mut heard, mut until) = (Heard::Unknown, Instant::now() + ANSWER_TIMEOUT);
        loop {
            match timeout_at(until, asked.next()).await {
                Ok(Some(Some(status))) if status.attached == root.name.as_str() && status.epoch == root.epoch => {
                    return Heard::Yes;
                }
                Ok(Some(Some(_))) => (heard, until) = (Heard::No, until.min(Instant::now() + CONTRADICTION)),
                Ok(Some(None)) => {}
                Ok(None) | Err(_) => return heard,
            }
        }
    }

    async fn take(&self, before: Option<&Root>) -> bool {
        let former = before.map(|root| root.former_of(&self.name)).unwrap_or_default();
        let registration = self.registration.lock().await;
        let Some(registration) = registration.as_ref() else { return true };
        match registration.reign(former).await {
            Ok(epoch) => {
                tracing::info!(node = %self.name, tree = %self.tree, epoch, "reigns");
                true
            }
            Err(error) => {
                tracing::info!(node = %self.name, %error, "could not take the root's place");
                false
            }
        }
    }
}

/// Who takes the tree when its root leaves now: a standby that answers. None as well where the registry is away, for then nobody
/// could take it, or where another one reigns.
pub(crate) async fn successor(view: &View, tree: &NodeName, us: &NodeName, transport: &Transport) -> Option<NodeName> {
    let reigns = view.roots.get(tree).is_some_and(|root| root.name == *us);
    if !view.live || !reigns {
        return None;
    }
    let waits = |member: &&Member| member.role == Role::Standby && member.tree == *tree && member.name != *us;
    let asked = view
        .members
        .values()
        .filter(waits)
        .take(WITNESSES_MAX)
        .map(|member| status(channel(&member.address, &member.name, transport)));
    let answers = join_all(asked).await;
    answers.into_iter().flatten().find(|status| status.state == "standby").and_then(|status| status.name.parse().ok())
}

/// A root that is looked at from outside.
struct Watched {
    root: Root,
    channel: Option<Channel>,
    heard: Instant,
    refusals: u32,
}

impl Watched {
    fn new(root: Root, transport: &Transport) -> Self {
        Watched { channel: channel(&root.address, &root.name, transport), root, heard: Instant::now(), refusals: 0 }
    }

    async fn look(&mut self) -> Signs {
        let status = status(self.channel.clone()).await;
        let answers = status.as_ref().is_some_and(|status| status.name == self.root.name.as_str() && status.epoch != 0);
        // Where somebody else answers, or it says itself that it reigns no more, that root is gone.
        let refuses = !answers && (status.is_some() || refuses(&self.root.address).await);
        if answers {
            self.heard = Instant::now();
        }
        self.refusals = if refuses { self.refusals + 1 } else { 0 };
        Signs { answers, refusals: self.refusals, silent: self.heard.elapsed() }
    }
}

fn channel(address: &str, name: &NodeName, transport: &Transport) -> Option<Channel> {
    Some(transport.lazily(&dial::endpoint(address).ok()?, Expected::member(name)))
}

async fn status(channel: Option<Channel>) -> Option<v1::NodeStatus> {
    let asked = async { InspectClient::new(channel?).status(v1::Target::default()).await.ok() };
    Some(timeout(ANSWER_TIMEOUT, asked).await.ok()??.into_inner())
}

/// Whether the host says that nobody listens there; a silent one says nothing.
async fn refuses(address: &str) -> bool {
    let address = address.trim_start_matches("http://");
    let dialled = timeout(ANSWER_TIMEOUT, TcpStream::connect(address)).await;
    dialled.is_ok_and(|dialled| dialled.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused))
}

/// Waits until the registry names another root with a later reign.
async fn overtaken(view: &mut watch::Receiver<Arc<View>>, tree: &NodeName, us: &NodeName, epoch: u64) {
    let other = |root: &Root| root.name != *us && root.epoch > epoch;
    let ended = view.wait_for(|view| view.roots.get(tree).is_some_and(other)).await.is_err();
    if ended {
        // The watcher has ended, and with it what this could notice.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_dead_when_its_address_refuses_or_nobody_hears_of_it() {
        let signs = |answers, refusals, silent_ms| Signs { answers, refusals, silent: Duration::from_millis(silent_ms) };
        for (signs, verdict) in [
            (signs(true, 0, 0), Verdict::Alive),
            (signs(false, 1, 250), Verdict::Alive),
            (signs(false, 2, 500), Verdict::Dead { lapsed: false }),
            (signs(false, 0, 1900), Verdict::Alive),
            (signs(false, 0, 2000), Verdict::Dead { lapsed: true }),
        ] {
            assert_eq!(judge(signs), verdict, "{signs:?}");
        }
    }
}
