//! The child's side of the link to its parent: attaches, and goes elsewhere when the link ends. Whom to is [`search`]'s to say.

pub mod search;

use std::{sync::Arc, time::Duration};

use banyan_etcd::Registry;
use banyan_proto::{NodeName, VERSION, dial, v1, v1::inspect_client::InspectClient, v1::tree_client::TreeClient};
use futures::{FutureExt as _, future::BoxFuture};
use rand::Rng as _;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use self::search::{ATTACH_TIMEOUT, Candidate, End, RETURN_INTERVAL, RETURN_TIMEOUT, ROOTLESS_MAX, Search, rootless};
use crate::{
    core::{self, Attached, Handle, Input},
    deliver::RootAddress,
    inspect::Inspector,
};

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

/// How a link was left.
enum Left {
    Ended(End),
    /// The node is stopping.
    Stopped,
}

impl Uplink {
    /// Keeps the node attached to somebody until it stops.
    pub(crate) async fn run(mut self) {
        let view = self.registry.watch();
        let mut search = Search::new(self.name.clone(), self.tree.clone());
        let mut link = 0;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let candidates = search.candidates(&wanted, &view.borrow());
            let mut end = End::Nobody;
            for candidate in candidates {
                link += 1;
                match self.attach(&candidate, &search).await {
                    Ok((stream, to, ancestry)) => {
                        search.attached(candidate.clone(), &ancestry);
                        end = match self.serve(link, &candidate, &wanted, stream, to, ancestry, &mut search).await {
                            Left::Ended(end) => end,
                            Left::Stopped => return,
                        };
                        break;
                    }
                    // Those that stay away are news once.
                    Err(error) if search.is_fresh() => {
                        tracing::info!(node = %self.name, parent = %candidate.name, %error, "can't attach, trying again");
                    }
                    Err(error) => tracing::debug!(node = %self.name, parent = %candidate.name, %error, "can't attach"),
                }
            }
            if end == End::Nobody && self.core.is_closed() {
                return;
            }
            if let Some(pause) = search.ended(end) {
                jitter(pause).await;
            }
        }
    }

    #[allow(clippy::type_complexity, reason = "the parts of one link")]
    async fn attach(
        &self,
        candidate: &Candidate,
        search: &Search,
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
        if search.is_among(&ancestry) {
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
        search: &mut Search,
    ) -> Left {
        tracing::info!(node = %self.name, parent = %parent.name, "attached");
        let mut rootless_since = rootless(&ancestry).then(Instant::now);
        self.tell_root(parent, &ancestry);
        // Weak, so that the task dropping its sender ends the stream.
        let replies = to.downgrade();
        let attached = Attached { link, parent: parent.name.clone(), ancestry: search.full(&ancestry), to };
        if self.core.tell(Input::Attached(attached)).await.is_err() {
            return Left::Stopped;
        }
        let mut back = tokio::time::interval_at(Instant::now() + RETURN_INTERVAL, RETURN_INTERVAL);
        let mut returning: Option<BoxFuture<'static, bool>> = None;
        let end = loop {
            let patience = rootless_since.map(|since| since + ROOTLESS_MAX);
            tokio::select! {
                down = stream.message() => {
                    let kind = match down {
                        Ok(Some(down)) => down.kind,
                        Ok(None) => break Left::Ended(End::Broken),
                        Err(status) => {
                            tracing::info!(node = %self.name, parent = %parent.name, error = status.message(), "link broke");
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
                            self.tell_root(parent, &ancestry);
                            if self.core.tell(Input::Ancestry { link, ancestry: search.full(&ancestry) }).await.is_err() {
                                break Left::Stopped;
                            }
                        }
                        Some(v1::down::Kind::Inspection(inspection)) => self.inspect(inspection, replies.clone()),
                        Some(v1::down::Kind::Rejected(_)) => break Left::Ended(End::Broken),
                        // A newer parent's message that this version does not know.
                        None => {}
                    }
                }
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        break Left::Stopped;
                    }
                    if *self.wanted.borrow() != parent.name {
                        break Left::Ended(End::Moved);
                    }
                }
                // Asked beside the link, which goes on meanwhile.
                _ = back.tick(), if parent.name != *wanted && returning.is_none() => {
                    returning = Some(can_return(self.registry.clone(), wanted.clone()).boxed());
                }
                back = async { returning.as_mut().expect("guarded").await }, if returning.is_some() => {
                    returning = None;
                    if back {
                        break Left::Ended(End::Moved);
                    }
                }
                () = tokio::time::sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => break Left::Ended(End::Rootless),
            }
        };
        // The task ends only with the node.
        if self.core.tell(Input::Detached { link }).await.is_err() { Left::Stopped } else { end }
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
    matches!(timeout(RETURN_TIMEOUT, asked).await, Ok(Some(true)))
}

/// Sleeps between half and one and a half times as long, so that orphans do not knock in step.
async fn jitter(pause: Duration) {
    let factor = rand::rng().random_range(0.5..1.5);
    sleep(pause.mul_f64(factor)).await;
}
