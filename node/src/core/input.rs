//! What the node's task is told, and the handle to tell it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use banyan_proto::{NodeName, QueryId, v1};
use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, broadcast, mpsc, oneshot},
    time::Instant,
};

use crate::ledger::Way;

/// What happened around the node.
pub(crate) enum Input {
    ChildAttached(ChildLink),
    ChildReport {
        child: NodeName,
        link: u64,
        report: v1::Report,
    },
    /// A child lives elsewhere from now on.
    ChildLeaving {
        child: NodeName,
        link: u64,
    },
    ChildGone {
        child: NodeName,
        link: u64,
    },
    /// A child's answer to an inspection.
    Inspected {
        inspected: Box<v1::Inspected>,
    },
    Attached(Attached),
    Detached {
        link: u64,
    },
    Ancestry {
        link: u64,
        ancestry: v1::Ancestry,
    },
    Query {
        link: u64,
        /// As it came, for whoever it is passed on to.
        query: Bytes,
    },
    RootConnected {
        to: mpsc::Sender<v1::Delivery>,
        /// Over the parents, because the straight way is cut.
        relayed: bool,
    },
    /// The node's own stream over its parents begins.
    OpenDetour {
        number: u64,
        controls: mpsc::Sender<v1::Control>,
    },
    /// A message on it, or its end.
    Detour {
        number: u64,
        message: Option<Bytes>,
    },
    /// A message of a node's stream on its way up.
    ChildRelay {
        child: NodeName,
        link: u64,
        relay: v1::Relay,
    },
    /// A message on its way down.
    ParentRelay {
        link: u64,
        relay: v1::Relay,
    },
    RootLost,
    Control(v1::Control),
    Ask(Box<Ask>),
    Attach(Attach),
    /// An API's client has left for good.
    CancelAnswer {
        id: QueryId,
        owner: String,
        /// It may have overtaken its question.
        early: bool,
    },
    /// The node is its tree's root, in a reign of that number.
    Reign {
        epoch: u64,
    },
    /// Another one is the tree's root.
    StepDown,
    HolderJoined(HolderLink),
    HolderGone {
        stream: u64,
    },
    /// A node's link to its parent broke.
    Severed {
        node: NodeName,
    },
    /// Where a node stands.
    Presence {
        stream: u64,
        presence: v1::Presence,
    },
    Frame {
        stream: u64,
        frame: v1::Frame,
    },
    AskChildren {
        inspection: v1::inspection::Kind,
        reply: oneshot::Sender<Vec<(NodeName, oneshot::Receiver<v1::Inspected>)>>,
    },
    Snapshot(oneshot::Sender<Snapshot>),
    Log {
        last: u32,
        reply: oneshot::Sender<(Vec<v1::Decision>, broadcast::Receiver<v1::Decision>)>,
    },
    Why {
        id: String,
        reply: oneshot::Sender<Option<WhyFound>>,
    },
    /// Somebody wants to watch the tree; `None` where it has no root here, or too many watch it.
    Watch(oneshot::Sender<Option<mpsc::Receiver<v1::Sight>>>),
    Note(String),
    /// The node is to leave: it finishes what runs until the deadline, hands over the rest, and ends.
    Drain {
        deadline: Instant,
        begun: oneshot::Sender<v1::Draining>,
    },
    Stop(oneshot::Sender<()>),
}

impl Input {
    /// What a child said; nothing for what says nothing new.
    pub(crate) fn of_child(child: &NodeName, link: u64, up: v1::Up) -> Option<Input> {
        Some(match up.kind? {
            v1::up::Kind::Report(report) => Input::ChildReport { child: child.clone(), link, report },
            v1::up::Kind::Inspected(inspected) => Input::Inspected { inspected: Box::new(inspected) },
            v1::up::Kind::Leaving(_) => Input::ChildLeaving { child: child.clone(), link },
            v1::up::Kind::Relay(relay) => Input::ChildRelay { child: child.clone(), link, relay },
            // Said once, before the link was one.
            v1::up::Kind::Hello(_) => return None,
        })
    }

    /// What a holder said on its Deliver stream.
    pub(crate) fn of_holder(stream: u64, delivery: v1::Delivery) -> Option<Input> {
        match delivery.kind? {
            v1::delivery::Kind::Frame(frame) => Some(Input::Frame { stream, frame }),
            v1::delivery::Kind::Severed(severed) => Some(Input::Severed { node: severed.node.parse().ok()? }),
            v1::delivery::Kind::Presence(presence) => Some(Input::Presence { stream, presence }),
            v1::delivery::Kind::Hello(_) => None,
        }
    }
}

/// What the root remembers under an id or the beginning of one.
pub(crate) enum WhyFound {
    Way(Box<Way>),
    Nothing,
    Ambiguous,
}

/// A child's link, at the parent.
pub(crate) struct ChildLink {
    pub(crate) name: NodeName,
    pub(crate) address: String,
    pub(crate) link: u64,
    pub(crate) to: mpsc::Sender<v1::Down>,
}

/// The link to the parent, at the child.
pub(crate) struct Attached {
    pub(crate) link: u64,
    pub(crate) parent: NodeName,
    pub(crate) ancestry: v1::Ancestry,
    pub(crate) to: mpsc::Sender<v1::Up>,
}

/// A node's Deliver stream, at the root.
pub(crate) struct HolderLink {
    pub(crate) name: NodeName,
    pub(crate) stream: u64,
    pub(crate) to: ToHolder,
}

/// How a holder hears from the root.
pub(crate) enum ToHolder {
    Stream(mpsc::Sender<v1::Control>),
    /// Over the links, as its deliveries come.
    Links,
}

/// A question, and where its answer goes.
pub(crate) struct Ask {
    pub(crate) question: v1::Question,
    /// Tells the asks of one id apart.
    pub(crate) serial: u64,
    /// Bounded by the answer: a client that reads nothing holds no more than its own tokens, and not for long.
    pub(crate) to: mpsc::UnboundedSender<v1::Answer>,
    /// Answers that the client has read.
    pub(crate) read: Arc<AtomicU64>,
    /// What it takes of the memory for questions that nobody has looked at yet.
    pub(crate) _memory: Option<OwnedSemaphorePermit>,
}

/// A wish to read an answer from its start, and where it goes.
pub(crate) struct Attach {
    pub(crate) id: QueryId,
    pub(crate) owner: String,
    pub(crate) serial: u64,
    pub(crate) to: mpsc::UnboundedSender<v1::Answer>,
    pub(crate) read: Arc<AtomicU64>,
}

/// The node's figures at one moment.
pub(crate) struct Snapshot {
    pub(crate) attached: Option<String>,
    pub(crate) connected: bool,
    pub(crate) running: u32,
    pub(crate) queued: u32,
    pub(crate) has_room: bool,
    pub(crate) room: u32,
    pub(crate) children: Vec<v1::ChildStatus>,
    pub(crate) ancestry: Vec<String>,
    pub(crate) rooted: bool,
    pub(crate) draining: bool,
    /// The parent over which answers go.
    pub(crate) through: Option<String>,
    pub(crate) tokens: u64,
    pub(crate) waiting: u32,
    pub(crate) live: u32,
    pub(crate) epoch: u64,
    pub(crate) uptime: Duration,
    pub(crate) kv: Option<v1::Kv>,
    pub(crate) accounts: Vec<v1::Account>,
    pub(crate) loads: Vec<v1::Load>,
}

/// Tells the node's task. The task ends when the last handle is gone, or by [`Handle::stop`].
#[derive(Clone)]
pub(crate) struct Handle {
    pub(super) inbox: mpsc::Sender<Input>,
    pub(super) leavers: mpsc::UnboundedSender<(QueryId, u64)>,
    pub(super) left: Arc<AtomicBool>,
    pub(super) streams: Arc<AtomicU64>,
}

/// The task has ended: the node is stopping.
#[derive(Debug)]
pub(crate) struct Stopped;

impl Handle {
    pub(crate) async fn tell(&self, input: Input) -> Result<(), Stopped> {
        self.inbox.send(input).await.map_err(|_| Stopped)
    }

    /// Tells something that carries a place for the reply, and waits for that.
    pub(crate) async fn request<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.tell(input(reply)).await?;
        answer.await.map_err(|_| Stopped)
    }

    /// Ends the task: a root fails what is live, a node hands back what it holds.
    pub(crate) async fn stop(&self) {
        // It may have ended by itself.
        let _ = self.request(Input::Stop).await;
    }

    /// Begins to leave; what still runs at the deadline is handed over. The task ends when all is done.
    pub(crate) async fn drain(&self, deadline: Duration) -> Result<v1::Draining, Stopped> {
        let deadline = Instant::now() + deadline;
        self.request(|begun| Input::Drain { deadline, begun }).await
    }

    /// A number for one more Deliver stream, greater than all before.
    pub(crate) fn next_stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether the task ended because it was told to leave.
    pub(crate) fn has_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// Whether the task has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.inbox.is_closed()
    }

    /// Waits until the task has ended.
    pub(crate) async fn ended(&self) {
        self.inbox.closed().await;
    }

    /// The stream of a query's answers; dropping it tells that the client left.
    pub(crate) fn answers(
        &self,
        id: QueryId,
        serial: u64,
        from: mpsc::UnboundedReceiver<v1::Answer>,
        read: Arc<AtomicU64>,
    ) -> AnswerStream {
        AnswerStream { id, serial, from, read, leavers: self.leavers.clone(), ended: false }
    }
}

/// A query's answers, as its client reads them.
pub(crate) struct AnswerStream {
    id: QueryId,
    serial: u64,
    from: mpsc::UnboundedReceiver<v1::Answer>,
    read: Arc<AtomicU64>,
    leavers: mpsc::UnboundedSender<(QueryId, u64)>,
    ended: bool,
}

impl futures::Stream for AnswerStream {
    type Item = Result<v1::Answer, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.from.poll_recv(context);
        match &next {
            Poll::Ready(Some(_)) => {
                self.read.fetch_add(1, Ordering::Relaxed);
            }
            Poll::Ready(None) => self.ended = true,
            Poll::Pending => {}
        }
        next.map(|answer| answer.map(Ok))
    }
}

impl Drop for AnswerStream {
    fn drop(&mut self) {
        if !self.ended {
            // Fails only when the node is stopping, which cancels everything anyway.
            let _ = self.leavers.send((self.id, self.serial));
        }
    }
}

/// The node that an inspection is meant for.
pub(super) fn target_of(inspection: &v1::inspection::Kind) -> String {
    match inspection {
        v1::inspection::Kind::Status(target) | v1::inspection::Kind::View(target) => target.name.clone(),
        v1::inspection::Kind::Log(request) => request.name.clone(),
        v1::inspection::Kind::Move(request) => request.name.clone(),
        v1::inspection::Kind::Drain(request) => request.name.clone(),
    }
}
