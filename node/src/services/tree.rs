//! `Tree`: the parent's side of the link to a child.

use std::sync::atomic::{AtomicU64, Ordering};

use banyan_proto::{NodeName, transport::Peer, v1, v1::tree_server::Tree};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::core::{self, ChildLink, Handle, Input};

pub(crate) struct TreeService {
    pub(crate) cluster: NodeName,
    pub(crate) core: Handle,
    links: AtomicU64,
}

impl TreeService {
    pub(crate) fn new(cluster: NodeName, core: Handle) -> Self {
        TreeService { cluster, core, links: AtomicU64::new(0) }
    }
}

#[tonic::async_trait]
impl Tree for TreeService {
    type AttachStream = futures::stream::BoxStream<'static, Result<v1::Down, Status>>;

    async fn attach(&self, request: Request<Streaming<v1::Up>>) -> Result<Response<Self::AttachStream>, Status> {
        let peer = Peer::of(&request);
        let mut up = request.into_inner();
        let hello = match up.message().await?.and_then(|up| up.kind) {
            Some(v1::up::Kind::Hello(hello)) => hello,
            _ => return Err(Status::invalid_argument("a child says hello first")),
        };
        peer.must_be(&hello.name)?;
        let name: NodeName =
            hello.name.parse().map_err(|error: banyan_proto::NameError| Status::invalid_argument(error.to_string()))?;
        if hello.cluster != self.cluster.as_str() {
            return Err(Status::failed_precondition(format!(
                "it belongs to the cluster {}, not to {}",
                self.cluster, hello.cluster
            )));
        }
        let link = self.links.fetch_add(1, Ordering::Relaxed) + 1;
        let (to, outbox) = mpsc::channel(core::OUTBOX);
        let attached = ChildLink { name: name.clone(), address: hello.address, link, to };
        self.core.tell(Input::ChildAttached(attached)).await.map_err(|_| Status::unavailable("the node is stopping"))?;
        tokio::spawn(read(self.core.clone(), name, link, up));
        let down = futures::StreamExt::map(ReceiverStream::new(outbox), Ok);
        Ok(Response::new(Box::pin(down)))
    }
}

/// Passes on what the child says until its stream ends.
async fn read(core: Handle, child: NodeName, link: u64, mut up: Streaming<v1::Up>) {
    loop {
        let input = match up.message().await {
            // What is unknown comes from a newer child.
            Ok(Some(up)) => match Input::of_child(&child, link, up) {
                Some(input) => input,
                None => continue,
            },
            Ok(None) => break,
            Err(status) => {
                tracing::info!(%child, error = status.message(), "a child's link broke");
                break;
            }
        };
        if core.tell(input).await.is_err() {
            return;
        }
    }
    // Fails only when the node is stopping.
    let _ = core.tell(Input::ChildGone { child, link }).await;
}
