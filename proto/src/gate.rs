//! The door of every server: a role may call what its part in the tree needs, and nothing else.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use futures::future::{Either, Ready, ready};
use tonic::{
    Status,
    body::Body,
    codegen::http::{Request, Response},
};
use tower::{Layer, Service};

use crate::transport::Peer;

/// Looks at each call before its service does. Over plain TCP nobody is known, and everybody passes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gate;

/// A service behind the door.
#[derive(Clone, Debug)]
pub struct Guarded<S>(S);

impl<S> Layer<S> for Gate {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded(inner)
    }
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        match request.extensions().get::<Peer>() {
            Some(Peer(Some(identity))) if !identity.role.may_call(path) => {
                tracing::warn!(peer = %identity, path, "refused a call");
                let refused = Status::permission_denied(format!("{identity} may not call {path}: its role is {}", identity.role));
                Either::Right(ready(Ok(refused.into_http())))
            }
            _ => Either::Left(self.0.call(request)),
        }
    }
}
