//! A door in front of a root that shuts behind a given token: so that a node can be lost at exactly that one.
//!
//! It speaks the root's protocol to nodes and to the API, and passes everything on, message for message.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use banyan_proto::{
    MESSAGE_BYTES_MAX, QueryId, dial,
    v1::{
        self,
        part::Kind,
        root_client::RootClient,
        root_server::{Root, RootServer},
        tree_client::TreeClient,
        tree_server::{Tree, TreeServer},
    },
};
use futures::{SinkExt as _, StreamExt as _, channel::mpsc, stream::BoxStream};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{Request, Response, Status, Streaming, transport::Channel};

/// Messages on their way; whoever is slower waits.
const OUTBOX: usize = 1024;

/// A door. Closed when dropped.
pub struct Gate {
    address: String,
    door: Door,
    serving: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Door {
    root: Arc<OnceLock<Channel>>,
    orders: Arc<Mutex<Orders>>,
}

#[derive(Default)]
struct Orders {
    /// Behind how many tokens of which query to shut, and who wants to know whose stream that was.
    shut_after: HashMap<QueryId, (u32, oneshot::Sender<String>)>,
    /// Nodes that may not come back.
    shut: BTreeSet<String>,
}

impl Gate {
    /// Opens one on a free port of loopback.
    ///
    /// # Panics
    /// When there is none.
    pub async fn open() -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address").to_string();
        let door = Door::default();
        let root = RootServer::new(door.clone());
        let tree = TreeServer::new(door.clone());
        let router = dial::server()
            .add_service(root.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(tree.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX));
        let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = tokio::spawn(async move {
            let _ = router.serve_with_incoming(incoming).await;
        });
        Gate { address, door, serving }
    }

    /// Where it is, for the root to advertise.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Says where the root really is.
    ///
    /// # Panics
    /// When that is no address.
    pub fn lead_to(&self, root: &str) {
        let channel = dial::endpoint(root).expect("a root's address is one").connect_lazy();
        // Said once.
        let _ = self.door.root.set(channel);
    }

    /// Shuts the stream of whoever runs the query `id` when it brings what comes behind the first `tokens` tokens, and for good.
    /// Gives the node's name.
    pub fn shut_after(&self, id: QueryId, tokens: u32) -> oneshot::Receiver<String> {
        let (tell, told) = oneshot::channel();
        self.door.orders().shut_after.insert(id, (tokens, tell));
        told
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Door {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn root(&self) -> Result<Channel, Status> {
        self.root.get().cloned().ok_or_else(|| Status::unavailable("the gate leads nowhere yet"))
    }

    /// What may pass of a frame, and whether that is the last.
    fn inspect(&self, node: &str, frame: v1::Frame) -> (v1::Frame, bool) {
        let mut orders = self.orders();
        let mut passing = Vec::new();
        for part in frame.parts {
            let order = QueryId::from_wire(&part.id).ok().and_then(|id| Some((id, orders.shut_after.get(&id)?.0)));
            let beyond = order.is_some_and(|(_, limit)| match &part.kind {
                Some(Kind::Tokens(tokens)) => tokens.position + tokens.ids.len() as u32 > limit,
                Some(Kind::Finished(_)) => true,
                _ => false,
            });
            if let Some((id, _)) = order.filter(|_| beyond) {
                orders.shut.insert(node.to_owned());
                if let Some((_, tell)) = orders.shut_after.remove(&id) {
                    // Whoever asked may have gone.
                    let _ = tell.send(node.to_owned());
                }
                return (v1::Frame { parts: passing }, true);
            }
            passing.push(part);
        }
        (v1::Frame { parts: passing }, false)
    }
}

#[tonic::async_trait]
impl Root for Door {
    type AskStream = Streaming<v1::Answer>;

    async fn ask(&self, request: Request<v1::Question>) -> Result<Response<Self::AskStream>, Status> {
        RootClient::new(self.root()?).max_decoding_message_size(MESSAGE_BYTES_MAX).ask(request).await
    }

    type AttachStream = Streaming<v1::Answer>;

    async fn attach(&self, request: Request<v1::AnswerRef>) -> Result<Response<Self::AttachStream>, Status> {
        RootClient::new(self.root()?).max_decoding_message_size(MESSAGE_BYTES_MAX).attach(request).await
    }

    async fn cancel(&self, request: Request<v1::AnswerRef>) -> Result<Response<v1::Cancelled>, Status> {
        RootClient::new(self.root()?).cancel(request).await
    }

    type DeliverStream = BoxStream<'static, Result<v1::Control, Status>>;

    async fn deliver(&self, request: Request<Streaming<v1::Delivery>>) -> Result<Response<Self::DeliverStream>, Status> {
        let mut deliveries = request.into_inner();
        let first = deliveries.message().await?.ok_or_else(|| Status::invalid_argument("a node says hello first"))?;
        let Some(v1::delivery::Kind::Hello(hello)) = &first.kind else {
            return Err(Status::invalid_argument("a node says hello first"));
        };
        let node = hello.node.clone();
        if self.orders().shut.contains(&node) {
            return Err(Status::unavailable("the gate is shut"));
        }
        let (mut to, outbox) = mpsc::channel(OUTBOX);
        to.try_send(first).expect("a new channel has room");
        let door = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(delivery)) = deliveries.message().await {
                let (delivery, last) = match delivery.kind {
                    Some(v1::delivery::Kind::Frame(frame)) => {
                        let (frame, last) = door.inspect(&node, frame);
                        (v1::Delivery { kind: Some(v1::delivery::Kind::Frame(frame)) }, last)
                    }
                    _ => (delivery, false),
                };
                if to.send(delivery).await.is_err() || last {
                    return;
                }
            }
        });
        let mut root = RootClient::new(self.root()?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Response::new(root.deliver(outbox).await?.into_inner().boxed()))
    }
}

#[tonic::async_trait]
impl Tree for Door {
    type AttachStream = Streaming<v1::Down>;

    async fn attach(&self, request: Request<Streaming<v1::Up>>) -> Result<Response<Self::AttachStream>, Status> {
        let mut up = request.into_inner();
        let (mut to, outbox) = mpsc::channel(OUTBOX);
        tokio::spawn(async move {
            // The link ends where its child's end does, with or without a word.
            while let Ok(Some(message)) = up.message().await {
                if to.send(message).await.is_err() {
                    return;
                }
            }
        });
        TreeClient::new(self.root()?).max_decoding_message_size(MESSAGE_BYTES_MAX).attach(outbox).await
    }
}
