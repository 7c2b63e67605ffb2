//! `Inspect`: looking in from outside, by name.

use std::sync::Arc;

use banyan_proto::{v1, v1::inspect_server::Inspect};
use futures::{StreamExt as _, stream};
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{
    core::{Handle, Input},
    inspect::{Inspector, Unanswered},
};

pub(crate) struct InspectService {
    pub(crate) inspector: Arc<Inspector>,
    pub(crate) core: Handle,
}

#[tonic::async_trait]
impl Inspect for InspectService {
    async fn status(&self, request: Request<v1::Target>) -> Result<Response<v1::NodeStatus>, Status> {
        Ok(Response::new(self.inspector.status(&request.into_inner().name).await?))
    }

    type LogStream = stream::BoxStream<'static, Result<v1::Decision, Status>>;

    async fn log(&self, request: Request<v1::LogRequest>) -> Result<Response<Self::LogStream>, Status> {
        let request = request.into_inner();
        if !self.inspector.is_us(&request.name) {
            if request.follow {
                return Err(Status::failed_precondition("a log is followed at the node itself, whose address does not answer"));
            }
            let decisions = self.inspector.log(&request).await?.decisions;
            return Ok(Response::new(stream::iter(decisions.into_iter().map(Ok)).boxed()));
        }
        let last = request.last;
        let (kept, followed) = self.core.request(|reply| Input::Log { last, reply }).await.map_err(|_| Unanswered::Stopped)?;
        let kept = stream::iter(kept.into_iter().map(Ok));
        if !request.follow {
            return Ok(Response::new(kept.boxed()));
        }
        // A follower that can't keep up misses decisions; their numbers show the gap.
        let followed = BroadcastStream::new(followed).filter_map(async |decision| decision.ok().map(Ok));
        Ok(Response::new(kept.chain(followed).boxed()))
    }

    async fn view(&self, request: Request<v1::Target>) -> Result<Response<v1::TreeView>, Status> {
        Ok(Response::new(self.inspector.view(&request.into_inner().name).await?))
    }

    async fn why(&self, request: Request<v1::WhyRequest>) -> Result<Response<v1::Way>, Status> {
        Ok(Response::new(self.inspector.why(request.into_inner().id).await?))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::Draining>, Status> {
        Ok(Response::new(self.inspector.drain(&request.into_inner()).await?))
    }

    async fn r#move(&self, request: Request<v1::MoveRequest>) -> Result<Response<v1::Moved>, Status> {
        Ok(Response::new(self.inspector.move_to(&request.into_inner()).await?))
    }

    type WatchStream = stream::BoxStream<'static, Result<v1::Sight, Status>>;

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        match self.core.request(Input::Watch).await.map_err(|_| Unanswered::Stopped)? {
            Some(sights) => Ok(Response::new(ReceiverStream::new(sights).map(Ok).boxed())),
            None => Err(Status::failed_precondition("only a root that reigns is watched, by as many as it has room for")),
        }
    }
}
