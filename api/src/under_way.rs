//! Whether a connection has a request under way: from its complete head to the last of its answer.
//!
//! Knows when the answer's body was handed over; whether the client has taken it is `stall.rs`'s to say.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, Bytes};
use hyper::{
    Request, Response,
    body::{Body as HttpBody, Frame, SizeHint},
    service::Service,
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

/// Counts requests of one connection.
#[derive(Clone, Default)]
pub(crate) struct UnderWay(TaskTracker);

impl UnderWay {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Answers as `service` does.
    pub(crate) fn counted<S>(&self, service: S) -> Counted<S> {
        Counted { service, requests: self.0.clone() }
    }
}

/// A service whose requests are counted.
pub(crate) struct Counted<S> {
    service: S,
    requests: TaskTracker,
}

impl<R, S> Service<Request<R>> for Counted<S>
where
    S: Service<Request<R>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<CountedBody>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn call(&self, request: Request<R>) -> Self::Future {
        let token = self.requests.token();
        let answer = self.service.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| CountedBody { body, _token: token })) })
    }
}

/// The body of an answer, dropped when all of it was handed over.
pub(crate) struct CountedBody {
    body: Body,
    _token: TaskTrackerToken,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
