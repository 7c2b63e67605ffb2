//! Reading a request's body: bounded in size, in time, by what all bodies may take together and by the API's end, with an error
//! that says which.

use axum::{
    body::Body,
    extract::{FromRequest, Request},
    http::{StatusCode, header},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::{caller::Caller, openai::Error, routes::Context};

/// The unit in which memory is counted out.
const PERMIT_BYTES: usize = 1024;

/// A whole body.
pub(crate) struct Whole {
    pub(crate) bytes: Bytes,
    pub(crate) arrival: Arrival,
}

/// What the answer to a body needs to know of it, and the memory that it takes until it is answered.
pub(crate) struct Arrival {
    /// What the request is known by when it comes again.
    pub(crate) key: u64,
    /// Whether it does, at the time that it was told.
    pub(crate) returning: bool,
    /// Who asks.
    pub(crate) caller: Caller,
    _memory: OwnedSemaphorePermit,
}

/// As many permits as that many bytes are worth.
pub(crate) fn permits(bytes: usize) -> usize {
    bytes.div_ceil(PERMIT_BYTES).clamp(1, Semaphore::MAX_PERMITS)
}

impl FromRequest<Context> for Whole {
    type Rejection = Error;

    async fn from_request(request: Request, context: &Context) -> Result<Self, Error> {
        let limits = &context.limits;
        let too_large = || {
            Error::invalid(format!("the body is larger than {} bytes: shorten it", limits.body_bytes))
                .status(StatusCode::PAYLOAD_TOO_LARGE)
        };
        let announced =
            request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > limits.body_bytes as u64) {
            return Err(too_large());
        }
        // What does not say how much it is may be the most.
        let most = announced.map_or(limits.body_bytes, |length| length as usize);
        let wanted = u32::try_from(permits(most)).unwrap_or(u32::MAX);
        let Ok(mut memory) = context.bodies.clone().try_acquire_many_owned(wanted) else { return Err(Error::crowded()) };
        let path = request.uri().path().to_owned();
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
        let body: Limited<Body> = Limited::new(request.into_body(), limits.body_bytes);
        let arrived = tokio::select! {
            biased;
            arrived = tokio::time::timeout(limits.body_read, body.collect()) => arrived,
            () = context.stopping.cancelled() => return Err(Error::closing()),
        };
        match arrived {
            Ok(Ok(whole)) => {
                let bytes = whole.to_bytes();
                // Dropped, the rest is free again.
                drop(memory.split(memory.num_permits().saturating_sub(permits(bytes.len()))));
                let key = context.returns.key(&path, &bytes);
                let arrival = Arrival { key, returning: context.returns.is_back(key, Instant::now()), caller, _memory: memory };
                Ok(Whole { bytes, arrival })
            }
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(_)) => Err(Error::invalid("the body ended before its announced length: send it again")),
            Err(_) => {
                Err(Error::invalid(format!("the body did not arrive within {} s: send it again", limits.body_read.as_secs()))
                    .status(StatusCode::REQUEST_TIMEOUT))
            }
        }
    }
}
