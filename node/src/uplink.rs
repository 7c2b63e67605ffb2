//! The child's side of the link to its parent: attaches, and goes elsewhere when the link ends. Whom to is [`search`]'s to say.
//!
//! Where it has the choice it attaches to the new parent first and lets go of the old one then, and reads what is still on its
//! way from there: so a move loses nothing.

pub mod search;

use std::{sync::Arc, time::Duration};

use banyan_etcd::{Registry, Root, View};
use banyan_proto::{Expected, NodeName, Transport, VERSION, dial, v1, v1::tree_client::TreeClient};
use futures::{FutureExt as _, future::BoxFuture};
use rand::Rng as _;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use self::search::{ATTACH_TIMEOUT, Candidate, End, RETURN_INTERVAL, ROOTLESS_MAX, Search, rootless};
use crate::{
    core::{self, Attached, Handle, Input},
    deliver::RootAddress,
    inspect::Inspector,
};

/// How long a parent may take to end a link that was given up.
const READ_OUT_MAX: Duration = Duration::from_secs(5);

/// What the uplink needs to know of its node.
pub(crate) struct Uplink {
    pub(crate) us: Arc<Identity>,
    pub(crate) tree: NodeName,
    pub(crate) registry: Registry,
    /// The wanted parent; `node move` changes it.
    pub(crate) wanted: watch::Receiver<NodeName>,
    pub(crate) core: Handle,
    pub(crate) root: watch::Sender<Option<RootAddress>>,
    pub(crate) inspector: Arc<Inspector>,
}

/// How the node introduces itself.
pub(crate) struct Identity {
    pub(crate) name: NodeName,
    pub(crate) address: String,
    pub(crate) incarnation: u64,
    pub(crate) fingerprint: String,
    pub(crate) cluster: NodeName,
    pub(crate) transport: Transport,
}

/// A link that was just made.
struct Joined {
    parent: Candidate,
    stream: tonic::Streaming<v1::Down>,
    to: mpsc::Sender<v1::Up>,
    ancestry: v1::Ancestry,
}

/// How a link was left.
enum Left {
    Ended(End),
    /// The node has another one, which takes over from this one.
    Replaced(Box<Joined>, Box<tonic::Streaming<v1::Down>>),
    /// The node is stopping.
    Stopped,
}

impl Uplink {
    /// Keeps the node attached to somebody until it stops.
    pub(crate) async fn run(mut self) {
        let mut view = self.registry.watch();
        let mut search = Search::new(self.us.name.clone(), self.tree.clone());
        let mut link = 0;
        let (mut next, mut old) = (None, None);
        loop {
            let joined = match next.take() {
                Some(joined) => Some(joined),
                None => {
                    let wanted = self.wanted.borrow_and_update().clone();
                    let order = search.candidates(&wanted, &view.borrow());
                    let (first, begun) = (order.first().cloned(), Instant::now());
                    let root = view.borrow_and_update().roots.get(&self.tree).cloned();
                    let joined = tokio::select! {
                        joined = self.us.clone().join(order, search.is_fresh(), false) => joined,
                        // Whoever is silent need not be waited for while the tree has another root: that one is where all lead to.
                        Ok(_) = view.wait_for(|view| is_other(view, &self.tree, root.as_ref())) => continue,
                    };
                    if let Some(first) = first.filter(|_| joined.is_none()) {
                        search.failed(&first, begun.elapsed());
                    }
                    // A root that has been stopped for a while does not know yet that it is none.
                    joined.filter(|joined| !search.is_past(&joined.ancestry, &view.borrow())).map(Box::new)
                }
            };
            if self.core.is_closed() {
                return;
            }
            let end = match joined {
                None => End::Nobody,
                Some(joined) => {
                    link += 1;
                    search.attached(joined.parent.clone(), &joined.ancestry);
                    match self.serve(link, *joined, old.take(), &mut search).await {
                        Left::Ended(end) => end,
                        Left::Replaced(joined, stream) => {
                            (next, old) = (Some(joined), Some((link, stream)));
                            End::Moved
                        }
                        Left::Stopped => return,
                    }
                }
            };
            if let Some(pause) = search.ended(end) {
                let root = view.borrow_and_update().roots.get(&self.tree).cloned();
                tokio::select! {
                    () = jitter(pause) => {}
                    // A new root need not be waited for.
                    Ok(_) = view.wait_for(|view| is_other(view, &self.tree, root.as_ref())) => {}
                }
            }
        }
    }

    /// Passes on what comes down a link until it ends. `old` is the link that this one takes over from: what is on its way
    /// there is read to its end.
    async fn serve(
        &mut self,
        link: u64,
        joined: Joined,
        old: Option<(u64, Box<tonic::Streaming<v1::Down>>)>,
        search: &mut Search,
    ) -> Left {
        let Joined { parent, mut stream, to, ancestry } = joined;
        tracing::info!(node = %self.us.name, parent = %parent.name, "attached");
        let mut rootless_since = rootless(&ancestry).then(Instant::now);
        self.tell_root(&parent, &ancestry);
        // Weak, so that the task dropping its sender ends the stream.
        let replies = to.downgrade();
        let attached = Attached { link, parent: parent.name.clone(), ancestry: search.full(&ancestry), to };
        if self.core.tell(Input::Attached(attached)).await.is_err() {
            return Left::Stopped;
        }
        if let Some((link, stream)) = old {
            tokio::spawn(read_out(self.core.clone(), link, *stream));
        }
        let mut view = self.registry.watch();
        let mut home = search.home(&self.wanted.borrow(), &view.borrow_and_update());
        let mut back = tokio::time::interval_at(Instant::now() + RETURN_INTERVAL, RETURN_INTERVAL);
        let mut tries = 0;
        // Another link is made beside this one, which goes on meanwhile.
        let mut joining: Option<BoxFuture<'static, Option<Joined>>> = None;
        let mut leaving = false;
        let end = loop {
            let patience = rootless_since.map(|since| since + ROOTLESS_MAX);
            tokio::select! {
                down = stream.message() => {
                    let kind = match down {
                        Ok(Some(down)) => down.kind,
                        Ok(None) => break Left::Ended(End::Broken),
                        Err(status) => {
                            tracing::info!(node = %self.us.name, parent = %parent.name, error = status.message(), "link broke");
                            break Left::Ended(End::Broken);
                        }
                    };
                    match kind {
                        Some(v1::down::Kind::Query(query)) => match self.core.tell(Input::Query { link, query }).await {
                            Ok(()) => {}
                            Err(core::Stopped) => break Left::Stopped,
                        },
                        Some(v1::down::Kind::Ancestry(ancestry)) => {
                            if !search.told(&ancestry) {
                                break Left::Ended(End::Broken);
                            }
                            rootless_since = rootless(&ancestry).then(Instant::now);
                            self.tell_root(&parent, &ancestry);
                            if self.core.tell(Input::Ancestry { link, ancestry: search.full(&ancestry) }).await.is_err() {
                                break Left::Stopped;
                            }
                        }
                        Some(v1::down::Kind::Inspection(inspection)) => self.inspect(inspection, replies.clone()),
                        Some(v1::down::Kind::Leaving(_)) => {
                            tracing::info!(node = %self.us.name, parent = %parent.name, "the parent is about to leave");
                            leaving = true;
                            joining = Some(self.us.clone().join_after(Duration::ZERO, self.others(search, &view.borrow())).boxed());
                        }
                        Some(v1::down::Kind::Rejected(_)) => break Left::Ended(End::Broken),
                        Some(v1::down::Kind::Relay(relay)) => match self.core.tell(Input::ParentRelay { link, relay }).await {
                            Ok(()) => {}
                            Err(core::Stopped) => break Left::Stopped,
                        },
                        // A newer parent's message that this version does not know.
                        None => {}
                    }
                }
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        break Left::Stopped;
                    }
                    joining = self.return_to_wanted(&parent, search, &view.borrow());
                }
                Ok(()) = view.changed() => {
                    // The tree has another root: it is wanted at once.
                    let now = search.home(&self.wanted.borrow(), &view.borrow_and_update());
                    if now.is_some() && now != home {
                        home = now;
                        joining = self.return_to_wanted(&parent, search, &view.borrow());
                    }
                }
                _ = back.tick(), if joining.is_none() => joining = self.return_to_wanted(&parent, search, &view.borrow()),
                joined = async { joining.as_mut().expect("guarded").await }, if joining.is_some() => {
                    joining = None;
                    match joined {
                        Some(joined) => break Left::Replaced(Box::new(joined), Box::new(stream)),
                        None if leaving => {
                            let pause = search::pause_after(tries);
                            tries += 1;
                            joining = Some(self.us.clone().join_after(pause, self.others(search, &view.borrow())).boxed());
                        }
                        // The next tick tries again.
                        None => {}
                    }
                }
                () = tokio::time::sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => break Left::Ended(End::Rootless),
            }
        };
        let end = match end {
            Left::Replaced(..) => return end,
            Left::Ended(End::Broken) if leaving => Left::Ended(End::Leaving),
            end => end,
        };
        // The task ends only with the node.
        if self.core.tell(Input::Detached { link }).await.is_err() { Left::Stopped } else { end }
    }

    /// Tries the wanted parent, where that is another than the present one.
    fn return_to_wanted(&self, parent: &Candidate, search: &Search, view: &View) -> Option<BoxFuture<'static, Option<Joined>>> {
        let wanted = self.wanted.borrow().clone();
        let home = search.home(&wanted, view).map_or(wanted.clone(), |home| home.name);
        if home == parent.name {
            return None;
        }
        let order = search.all(&wanted, view).into_iter().filter(|candidate| candidate.name == home).collect();
        Some(self.us.clone().join_after(Duration::ZERO, order).boxed())
    }

    /// Everybody but the present parent.
    fn others(&self, search: &Search, view: &View) -> Vec<Candidate> {
        let all = search.all(&self.wanted.borrow(), view);
        all.into_iter().filter(|candidate| !search.is_parent(&candidate.name)).collect()
    }

    /// Answers an inspection beside the link, so that queries do not wait for it.
    fn inspect(&self, inspection: v1::Inspection, replies: mpsc::WeakSender<v1::Up>) {
        let inspector = self.inspector.clone();
        tokio::spawn(async move {
            let inspected = inspector.answer(inspection).await;
            if let Some(to) = replies.upgrade() {
                // Fails only when the link has ended.
                let _ = to.send(v1::Up { kind: Some(v1::up::Kind::Inspected(inspected)) }).await;
            }
        });
    }

    fn tell_root(&self, parent: &Candidate, ancestry: &v1::Ancestry) {
        if rootless(ancestry) {
            return;
        }
        let (name, address) = match ancestry.ancestors.as_slice() {
            [] | [_] => (parent.name.clone(), parent.address.clone()),
            [.., root] => match root.name.parse() {
                Ok(name) => (name, root.address.clone()),
                // The next ancestry names one, or the link ends.
                Err(_) => return,
            },
        };
        let root = Some(RootAddress { name, address, epoch: ancestry.epoch });
        self.root.send_if_modified(|known| {
            if *known == root {
                false
            } else {
                known.clone_from(&root);
                true
            }
        });
    }
}

impl Identity {
    /// Attaches to the first of them that takes the node; with `rooted`, and has a way to the root.
    async fn join(self: Arc<Self>, order: Vec<Candidate>, fresh: bool, rooted: bool) -> Option<Joined> {
        for parent in order {
            match self.attach(parent.clone()).await {
                Ok(joined) if rooted && rootless(&joined.ancestry) => {}
                Ok(joined) => return Some(joined),
                // Those that stay away are news once.
                Err(error) if fresh => {
                    tracing::info!(node = %self.name, parent = %parent.name, %error, "can't attach, trying again");
                }
                Err(error) => tracing::debug!(node = %self.name, parent = %parent.name, %error, "can't attach"),
            }
        }
        None
    }

    /// Joins somebody who has a way to the root, after a pause with jitter.
    async fn join_after(self: Arc<Self>, pause: Duration, order: Vec<Candidate>) -> Option<Joined> {
        jitter(pause).await;
        self.join(order, false, true).await
    }

    async fn attach(&self, parent: Candidate) -> Result<Joined, String> {
        let endpoint = dial::endpoint(&parent.address).map_err(|error| error.to_string())?;
        let channel = self.transport.lazily(&endpoint, Expected::member(&parent.name));
        let mut client = TreeClient::new(channel)
            .max_decoding_message_size(banyan_proto::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(banyan_proto::MESSAGE_BYTES_MAX);
        let (to, outbox) = mpsc::channel(core::OUTBOX);
        let hello = v1::Hello {
            name: self.name.to_string(),
            incarnation: self.incarnation,
            version: VERSION.to_owned(),
            fingerprint: self.fingerprint.clone(),
            address: self.address.clone(),
            cluster: self.cluster.to_string(),
        };
        to.try_send(v1::Up { kind: Some(v1::up::Kind::Hello(hello)) }).expect("a new channel has room");
        let attached = async {
            let mut stream =
                client.attach(ReceiverStream::new(outbox)).await.map_err(|status| status.message().to_owned())?.into_inner();
            let first = stream.message().await.map_err(|status| status.message().to_owned())?;
            match first.and_then(|down| down.kind) {
                Some(v1::down::Kind::Ancestry(ancestry)) => Ok((stream, ancestry)),
                Some(v1::down::Kind::Rejected(rejected)) => Err(rejected.message),
                _ => Err("it did not say where it stands in the tree".to_owned()),
            }
        };
        let (stream, ancestry) =
            timeout(ATTACH_TIMEOUT, attached).await.map_err(|_| "it did not answer in time".to_owned())??;
        if search::is_among(&self.name, &ancestry) {
            return Err("this node is above it, so attaching would close a circle".to_owned());
        }
        Ok(Joined { parent, stream, to, ancestry })
    }
}

/// Whether the tree has a root, and another one than before.
fn is_other(view: &View, tree: &NodeName, before: Option<&Root>) -> bool {
    view.roots.get(tree).is_some_and(|now| Some(now) != before)
}

/// Reads a link to its end that another one took over from: the queries that were on their way are taken as well.
async fn read_out(core: Handle, link: u64, mut stream: tonic::Streaming<v1::Down>) {
    let rest = async {
        while let Ok(Some(down)) = stream.message().await {
            if let Some(v1::down::Kind::Query(query)) = down.kind
                && core.tell(Input::Query { link, query }).await.is_err()
            {
                return;
            }
        }
    };
    // A parent that does not end it sends nothing more either: it knows that the child has gone.
    let _ = timeout(READ_OUT_MAX, rest).await;
}

/// Sleeps between half and one and a half times as long, so that orphans do not knock in step.
async fn jitter(pause: Duration) {
    let factor = rand::rng().random_range(0.5..1.5);
    sleep(pause.mul_f64(factor)).await;
}
