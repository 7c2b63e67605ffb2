//! The child's side of the link to its parent: finds a parent, attaches, and goes elsewhere when the link ends.
//!
//! Candidates are the wanted parent first, then the ancestors that were last known, the grandparent first, then the root
//! of the tree. A child that lives with somebody else goes back when the wanted parent can be reached again.

use std::{sync::Arc, time::Duration};

use banyan_etcd::{Registry, View};
use banyan_proto::{NodeName, VERSION, dial, v1, v1::inspect_client::InspectClient, v1::tree_client::TreeClient};
use futures::{FutureExt as _, future::BoxFuture};
use rand::Rng as _;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    core::{self, Attached, Handle, Input},
    deliver::RootAddress,
    inspect::Inspector,
};

/// How long a parent has to answer the attachment.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(3);
/// Tries at the wanted parent before the others: it may just be restarting.
const WANTED_TRIES: u32 = 3;
/// The pause after a round of failures grows from this …
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// … to this, so that a parent's return is noticed soon, and a thousand orphans do not knock all at once.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A parent without a way to the root gets that long to find one.
const ROOTLESS_MAX: Duration = Duration::from_secs(5);
/// How long the wanted parent has to say how it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a child that lives elsewhere looks whether its wanted parent is back.
const RETURN_INTERVAL: Duration = Duration::from_secs(5);

/// What the uplink needs to know of its node.
pub(crate) struct Uplink {
    pub(crate) name: NodeName,
    pub(crate) tree: NodeName,
    pub(crate) address: String,
    pub(crate) incarnation: u64,
    pub(crate) fingerprint: String,
    pub(crate) registry: Registry,
    /// The wanted parent; `node move` changes it.
    pub(crate) wanted: watch::Receiver<NodeName>,
    pub(crate) core: Handle,
    pub(crate) root: watch::Sender<Option<RootAddress>>,
    pub(crate) inspector: Arc<Inspector>,
}

/// Somebody to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    name: NodeName,
    address: String,
}

/// Why a link ended.
enum End {
    /// Whoever was wanted changed, or is back.
    Moved,
    Broken,
    /// The parent found no way to the root.
    Rootless,
    /// The node is stopping.
    Stopped,
}

impl Uplink {
    /// Keeps the node attached to somebody until it stops.
    pub(crate) async fn run(mut self) {
        let view = self.registry.watch();
        let mut ancestors: Vec<Candidate> = Vec::new();
        let mut pause = PAUSE_MIN;
        let mut link = 0;
        let mut failures = 0;
        let mut avoid = None;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let anybody = failures >= WANTED_TRIES || avoid.is_some();
            let mut candidates = candidates(&wanted, &ancestors, &view.borrow(), &self.tree, &self.name, anybody);
            // Whoever is cut off from the root is the last resort.
            candidates.sort_by_key(|candidate| avoid.as_ref() == Some(&candidate.name));
            let (mut ended, mut last) = (None, None);
            for candidate in candidates {
                link += 1;
                match self.attach(&candidate).await {
                    Ok((stream, to, ancestry)) => {
                        failures = 0;
                        pause = PAUSE_MIN;
                        remember(&mut ancestors, &candidate, &ancestry);
                        let end = self.serve(link, &candidate, &wanted, stream, to, ancestry, &mut ancestors).await;
                        ended = Some(end);
                        last = Some(candidate.name);
                        break;
                    }
                    // Those that stay away are news once.
                    Err(error) if failures == 0 => {
                        tracing::info!(node = %self.name, parent = %candidate.name, %error, "can't attach, trying again");
                    }
                    Err(error) => tracing::debug!(node = %self.name, parent = %candidate.name, %error, "can't attach"),
                }
            }
            match ended {
                Some(End::Stopped) => return,
                Some(End::Moved) => avoid = None,
                Some(End::Broken) => {
                    avoid = None;
                    jitter(PAUSE_MIN).await;
                }
                Some(End::Rootless) => {
                    avoid = last;
                    jitter(PAUSE_MIN).await;
                }
                None if self.core.is_closed() => return,
                None => {
                    failures += 1;
                    jitter(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    #[allow(clippy::type_complexity, reason = "the parts of one link")]
    async fn attach(
        &self,
        candidate: &Candidate,
    ) -> Result<(tonic::Streaming<v1::Down>, mpsc::Sender<v1::Up>, v1::Ancestry), String> {
        let channel = dial::endpoint(&candidate.address).map_err(|error| error.to_string())?.connect_lazy();
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
            cluster: self.registry.cluster().to_string(),
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
        if self.is_among(&ancestry) {
            return Err("this node is above it, so attaching would close a circle".to_owned());
        }
        Ok((stream, to, ancestry))
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one link")]
    async fn serve(
        &mut self,
        link: u64,
        parent: &Candidate,
        wanted: &NodeName,
        mut stream: tonic::Streaming<v1::Down>,
        to: mpsc::Sender<v1::Up>,
        ancestry: v1::Ancestry,
        ancestors: &mut Vec<Candidate>,
    ) -> End {
        tracing::info!(node = %self.name, parent = %parent.name, "attached");
        let mut rootless_since = rootless(&ancestry).then(Instant::now);
        self.tell_root(parent, &ancestry);
        // Weak, so that the task dropping its sender ends the stream.
        let replies = to.downgrade();
        let attached = Attached { link, parent: parent.name.clone(), ancestry: full(parent, &ancestry), to };
        if self.core.tell(Input::Attached(attached)).await.is_err() {
            return End::Stopped;
        }
        let mut back = tokio::time::interval_at(Instant::now() + RETURN_INTERVAL, RETURN_INTERVAL);
        let mut returning: Option<BoxFuture<'static, bool>> = None;
        let end = loop {
            let patience = rootless_since.map(|since| since + ROOTLESS_MAX);
            tokio::select! {
                down = stream.message() => {
                    let kind = match down {
                        Ok(Some(down)) => down.kind,
                        Ok(None) => break End::Broken,
                        Err(status) => {
                            tracing::info!(node = %self.name, parent = %parent.name, error = status.message(), "link broke");
                            break End::Broken;
                        }
                    };
                    match kind {
                        Some(v1::down::Kind::Query(query)) => match self.core.tell(Input::Query { link, query }).await {
                            Ok(()) => {}
                            Err(core::Stopped) => break End::Stopped,
                        },
                        Some(v1::down::Kind::Ancestry(ancestry)) => {
                            if self.is_among(&ancestry) {
                                break End::Broken;
                            }
                            rootless_since = rootless(&ancestry).then(Instant::now);
                            remember(ancestors, parent, &ancestry);
                            self.tell_root(parent, &ancestry);
                            if self.core.tell(Input::Ancestry { link, ancestry: full(parent, &ancestry) }).await.is_err() {
                                break End::Stopped;
                            }
                        }
                        Some(v1::down::Kind::Inspection(inspection)) => self.inspect(inspection, replies.clone()),
                        Some(v1::down::Kind::Rejected(_)) => break End::Broken,
                        // A newer parent's message that this version does not know.
                        None => {}
                    }
                }
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        break End::Stopped;
                    }
                    if *self.wanted.borrow() != parent.name {
                        break End::Moved;
                    }
                }
                // Asked beside the link, which goes on meanwhile.
                _ = back.tick(), if parent.name != *wanted && returning.is_none() => {
                    returning = Some(can_return(self.registry.clone(), wanted.clone()).boxed());
                }
                back = async { returning.as_mut().expect("guarded").await }, if returning.is_some() => {
                    returning = None;
                    if back {
                        break End::Moved;
                    }
                }
                () = tokio::time::sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => break End::Rootless,
            }
        };
        // The task ends only with the node.
        if self.core.tell(Input::Detached { link }).await.is_err() { End::Stopped } else { end }
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

    fn is_among(&self, ancestry: &v1::Ancestry) -> bool {
        ancestry.ancestors.iter().any(|ancestor| ancestor.name == self.name.as_str())
    }

    fn tell_root(&self, parent: &Candidate, ancestry: &v1::Ancestry) {
        if rootless(ancestry) {
            return;
        }
        let address = match ancestry.ancestors.len() {
            0 | 1 => parent.address.clone(),
            count => ancestry.ancestors[count - 1].address.clone(),
        };
        let root = Some(RootAddress { address, epoch: ancestry.epoch });
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

/// Whether the wanted parent answers and has a way to the root.
async fn can_return(registry: Registry, wanted: NodeName) -> bool {
    let address = registry.watch().borrow().members.get(&wanted).map(|member| member.address.clone());
    let asked = async {
        let mut inspect = InspectClient::new(dial::endpoint(&address?).ok()?.connect_lazy());
        let status = inspect.status(v1::Target { name: wanted.to_string() }).await.ok()?.into_inner();
        Some(status.epoch != 0)
    };
    matches!(timeout(ASK_TIMEOUT, asked).await, Ok(Some(true)))
}

/// A parent with no way to the root says so by an epoch of 0.
fn rootless(ancestry: &v1::Ancestry) -> bool {
    ancestry.epoch == 0
}

/// The ancestry with the parent's address, which only the one who dialled it knows.
fn full(parent: &Candidate, ancestry: &v1::Ancestry) -> v1::Ancestry {
    let mut full = ancestry.clone();
    if let Some(first) = full.ancestors.first_mut() {
        first.address.clone_from(&parent.address);
    }
    full
}

fn remember(ancestors: &mut Vec<Candidate>, parent: &Candidate, ancestry: &v1::Ancestry) {
    if rootless(ancestry) {
        return;
    }
    let known = full(parent, ancestry).ancestors.into_iter();
    *ancestors = known.filter_map(|one| Some(Candidate { name: one.name.parse().ok()?, address: one.address })).collect();
}

/// Whom to try, in order. Others than the wanted parent only once that had its chances.
fn candidates(
    wanted: &NodeName,
    ancestors: &[Candidate],
    view: &View,
    tree: &NodeName,
    us: &NodeName,
    anybody: bool,
) -> Vec<Candidate> {
    let mut order = Vec::new();
    if let Some(member) = view.members.get(wanted) {
        order.push(Candidate { name: wanted.clone(), address: member.address.clone() });
    } else if let Some(known) = ancestors.iter().find(|known| known.name == *wanted) {
        // Gone from the registry, or the registry is gone: its last address is worth a try.
        order.push(known.clone());
    }
    if anybody || order.is_empty() {
        order.extend(ancestors.iter().filter(|known| known.name != *wanted).cloned());
        if let Some(root) = view.roots.get(tree) {
            order.push(Candidate { name: root.name.clone(), address: root.address.clone() });
        }
    }
    order.retain(|candidate| candidate.name != *us);
    order.dedup();
    order
}

/// Sleeps between half and one and a half times as long, so that orphans do not knock in step.
async fn jitter(pause: Duration) {
    let factor = rand::rng().random_range(0.5..1.5);
    sleep(pause.mul_f64(factor)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str) -> Candidate {
        Candidate { name: name.parse().unwrap(), address: format!("{name}:1") }
    }

    fn names(order: &[Candidate]) -> Vec<&str> {
        order.iter().map(|candidate| candidate.name.as_str()).collect()
    }

    #[test]
    fn an_orphan_tries_its_parent_then_the_grandparent_then_the_root() {
        let ancestors = [candidate("parent"), candidate("grandparent"), candidate("root")];
        let view = View::default();
        let (parent, tree, us) = ("parent".parse().unwrap(), "main".parse().unwrap(), "leaf".parse().unwrap());
        assert_eq!(names(&candidates(&parent, &ancestors, &view, &tree, &us, false)), ["parent"]);
        assert_eq!(names(&candidates(&parent, &ancestors, &view, &tree, &us, true)), ["parent", "grandparent", "root"]);
    }
}
