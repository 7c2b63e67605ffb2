//! `Root`: the API's questions come in, and the nodes' deliveries.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use banyan_proto::{
    NodeName, QueryId,
    transport::Peer,
    v1::{self, AnswerRef, root_server::Root},
};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    core::{self, AnswerStream, Ask, Attach, Handle, HolderLink, Input, ToHolder},
    translate,
};

/// More choices than an answer has.
const CHOICES_MAX: u32 = 1024;

/// What questions may take that the node's task has not looked at yet, in KiB: a burst of the largest.
const UNSEEN_KIB_MAX: usize = 64 << 10;

pub(crate) struct RootService {
    core: Handle,
    asks: AtomicU64,
    unseen: Arc<Semaphore>,
}

impl RootService {
    pub(crate) fn new(core: Handle) -> Self {
        let unseen = Arc::new(Semaphore::new(UNSEEN_KIB_MAX));
        RootService { core, asks: AtomicU64::new(0), unseen }
    }
}

#[tonic::async_trait]
impl Root for RootService {
    type AskStream = AnswerStream;
    type AttachStream = AnswerStream;

    async fn ask(&self, request: Request<v1::Question>) -> Result<Response<AnswerStream>, Status> {
        let question = request.into_inner();
        let id = translate::asked_id(&question).ok_or_else(|| Status::invalid_argument("the header has no 16-byte id"))?;
        let (to, from) = mpsc::unbounded_channel();
        let read = Arc::new(AtomicU64::new(0));
        let serial = self.asks.fetch_add(1, Ordering::Relaxed);
        let kib = u32::try_from(question.payload.len() / 1024 + 1).unwrap_or(u32::MAX);
        let memory = match question.again {
            // What was accepted once is not refused now.
            true => self.unseen.clone().acquire_many_owned(kib.min(UNSEEN_KIB_MAX as u32)).await.ok(),
            false => self.unseen.clone().try_acquire_many_owned(kib).ok(),
        };
        match memory {
            Some(memory) => {
                let ask = Ask { question, serial, to, read: read.clone(), _memory: Some(memory) };
                self.core.tell(Input::Ask(Box::new(ask))).await.map_err(|_| stopping())?;
            }
            // Fails never: the other end is below.
            None => drop(to.send(crowded())),
        }
        Ok(Response::new(self.core.answers(id, serial, from, read)))
    }

    async fn attach(&self, request: Request<v1::AnswerRef>) -> Result<Response<AnswerStream>, Status> {
        let wanted = request.into_inner();
        let id = QueryId::from_wire(&wanted.id).map_err(|_| Status::invalid_argument("there is no 16-byte id"))?;
        let (to, from) = mpsc::unbounded_channel();
        let read = Arc::new(AtomicU64::new(0));
        let serial = self.asks.fetch_add(1, Ordering::Relaxed);
        let attach = Attach { id, owner: wanted.owner, serial, to, read: read.clone() };
        self.core.tell(Input::Attach(attach)).await.map_err(|_| stopping())?;
        Ok(Response::new(self.core.answers(id, serial, from, read)))
    }

    async fn cancel(&self, request: Request<v1::AnswerRef>) -> Result<Response<v1::Cancelled>, Status> {
        let AnswerRef { id, owner, following } = request.into_inner();
        let first = QueryId::from_wire(&id).map_err(|_| Status::invalid_argument("there is no 16-byte id"))?;
        for number in 0..=following.min(CHOICES_MAX) {
            let id = first.nth(number as usize);
            // Whoever names one query may do so before it has been asked here; whoever ends an answer has seen it.
            let early = following == 0;
            self.core.tell(Input::CancelAnswer { id, owner: owner.clone(), early }).await.map_err(|_| stopping())?;
        }
        Ok(Response::new(v1::Cancelled {}))
    }

    type DeliverStream = futures::stream::BoxStream<'static, Result<v1::Control, Status>>;

    async fn deliver(&self, request: Request<Streaming<v1::Delivery>>) -> Result<Response<Self::DeliverStream>, Status> {
        let peer = Peer::of(&request);
        let mut deliveries = request.into_inner();
        let hello = match deliveries.message().await?.and_then(|delivery| delivery.kind) {
            Some(v1::delivery::Kind::Hello(hello)) => hello,
            _ => return Err(Status::invalid_argument("a node says hello first")),
        };
        peer.must_be(&hello.node)?;
        let name: NodeName =
            hello.node.parse().map_err(|error: banyan_proto::NameError| Status::invalid_argument(error.to_string()))?;
        let stream = self.core.next_stream();
        let (to, outbox) = mpsc::channel(core::OUTBOX);
        let to = ToHolder::Stream(to);
        self.core.tell(Input::HolderJoined(HolderLink { name, stream, to })).await.map_err(|_| stopping())?;
        tokio::spawn(read(self.core.clone(), stream, deliveries));
        let controls = futures::StreamExt::map(ReceiverStream::new(outbox), Ok);
        Ok(Response::new(Box::pin(controls)))
    }
}

/// Passes on frames until the stream ends. The root always reads: a frame waits for the task alone, never for a client.
async fn read(core: Handle, stream: u64, mut deliveries: Streaming<v1::Delivery>) {
    loop {
        match deliveries.message().await {
            Ok(Some(delivery)) => {
                if let Some(input) = Input::of_holder(stream, delivery)
                    && core.tell(input).await.is_err()
                {
                    return;
                }
            }
            Ok(None) => break,
            Err(status) => {
                tracing::info!(stream, error = status.message(), "a node's stream broke");
                break;
            }
        }
    }
    // Fails only when the root is stopping.
    let _ = core.tell(Input::HolderGone { stream }).await;
}

fn crowded() -> v1::Answer {
    let failed = v1::Failed {
        reason: v1::Failure::Overloaded.into(),
        message: "the root has more questions to look at than it can keep: ask again in a second".to_owned(),
        retry_after_ms: 1000,
        ..Default::default()
    };
    v1::Answer { kind: Some(v1::answer::Kind::Failed(failed)) }
}

fn stopping() -> Status {
    Status::unavailable("the root is stopping")
}
